"""Stored records: what is written comes back, and what cannot be used is an error of one user only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.errors import NewerFormatError
from stream.features.windows import records as layout
from stream.features.windows.arrays import (
    CHUNK,
    H_BASE,
    H_COUNT,
    H_FIRST_CHUNK,
    H_HEAD,
    H_LIVE,
    H_NEWEST_EXPIRED,
    H_NEXT_CHUNK,
    H_PENDING,
    HDR_SIZE,
    HEAD,
    SCORED,
    SEGMENT,
    Sealed,
    new_sealed,
)
from stream.features.windows.events import FAILED
from stream.state.format import FORMAT_VERSION, OK, checksum, user_of_key
from support import unpacked
from support.histories import DAY, HOUR, Engine, Event

if TYPE_CHECKING:
    from stream.errors import StateError

START = 1_700_000_000_000
NEWER = FORMAT_VERSION + 1
words_of = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=4 * HEAD, max_size=4 * HEAD)


def history(user: str, count: int, step: int = HOUR) -> list[tuple[str, Event]]:
    return [(user, Event(f"{user}-{at}", START + at * step, at, f"m{at % 7}")) for at in range(count)]


def filled(**counts: int) -> Engine:
    engine = Engine()
    for user, count in counts.items():
        engine.take(history(user, count))
    return engine


def with_version(record: bytes, version: int) -> bytes:
    return bytes([version]) + record[1:]


# --- round trips ---------------------------------------------------------------------------------------


def stored_head(record: bytes) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    hdr, head = np.zeros(HDR_SIZE, np.int64), np.zeros((4, HEAD), np.int64)
    pending = np.zeros(CHUNK + 1, np.int64)
    words = np.frombuffer(record, np.int64)
    return layout.unpack_head(words, 0, len(words), hdr, head, pending), hdr, head, pending


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.integers(0, HEAD - 1),
    st.integers(0, CHUNK - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, 70, 2**27, 2**27 + 5, 2**32 - 1, 2**32 + 3, 2**50]),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=H_NEWEST_EXPIRED + 1, max_size=H_NEWEST_EXPIRED + 1),
    words_of,
)
def test_a_head_comes_back(
    count: int, lost: int, live: int, first: int, fields: list[int], events: list[int]
) -> None:
    """Also one with numbers of chunks that a key, and lost live bits, hold in part only."""
    hdr = np.zeros(HDR_SIZE, np.int64)
    hdr[: H_NEWEST_EXPIRED + 1] = fields
    hdr[H_FIRST_CHUNK] = first
    hdr[H_NEXT_CHUNK] = first + fields[H_NEXT_CHUNK] % layout._DAMAGED_CHUNKS
    hdr[H_COUNT] = 2**57 + fields[H_COUNT] % 2**40
    hdr[H_HEAD], hdr[H_PENDING], hdr[H_LIVE] = count, lost, live
    head = np.array(events, np.int64).reshape(4, HEAD)
    pending = first * CHUNK + np.arange(CHUNK + 1, dtype=np.int64) * 97_000_003 % 2**32
    words = np.zeros(layout.MAX_HEAD_WORDS, np.int64)
    size = layout.pack_head(hdr, head, pending, words)
    status, hdr2, head2, pending2 = stored_head(words[:size].tobytes())
    assert status == OK
    hdr[H_BASE] = first // SEGMENT * SEGMENT
    np.testing.assert_array_equal(hdr2, hdr)
    np.testing.assert_array_equal(head2[:, :count], head[:, :count])
    np.testing.assert_array_equal(pending2[:lost], pending[:lost])


def some_chunks(seed: int, count: int) -> Sealed:
    """Return chunks of random bits, every one loaded."""
    rng = np.random.default_rng(seed)
    sealed = new_sealed(SEGMENT * (count // SEGMENT + 1), count + 1)
    for part in (
        sealed.times,
        sealed.sums,
        sealed.live,
        sealed.merchants,
        sealed.id_fingerprints,
        sealed.store,
    ):
        part.view(np.uint8)[:] = rng.integers(0, 256, part.view(np.uint8).shape)
    sealed.slot[:count] = rng.permutation(count)
    return sealed


def packed(sealed: Sealed, *parts: tuple[int, int, int, int]) -> list[bytes]:
    sizes = np.zeros(len(parts), np.int64)
    words = layout.pack_parts(sealed, np.array(parts, np.int64), sizes)
    assert sizes.sum() == len(words)
    return [part.tobytes() for part in np.split(words, np.cumsum(sizes)[:-1])]


def test_chunks_come_back() -> None:
    sealed = some_chunks(1, 5)
    records = packed(sealed, *[(layout.CHUNK_KIND, chunk, 1, 0) for chunk in range(5)])
    for chunk, record in enumerate(records):
        found = unpacked.unpack_chunk(record, b"")
        np.testing.assert_array_equal(found, sealed.store[sealed.slot[chunk]])


@pytest.mark.parametrize("chunks", range(1, SEGMENT + 1))
def test_a_segment_comes_back(chunks: int) -> None:
    sealed = some_chunks(chunks, SEGMENT + chunks)
    [_, record] = packed(sealed, (layout.CHUNK_KIND, 0, 1, 0), (layout.SEGMENT_KIND, SEGMENT, chunks, 0))
    found = unpacked.unpack_segment(record, b"")
    for name, part in zip(("times", "sums", "merchants", "id_fingerprints"), found, strict=True):
        expected = getattr(sealed, name)[SEGMENT : SEGMENT + chunks]
        np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize("chunks", [0, 1, 2, 3, 64, 65])
def test_live_bitmaps_come_back(chunks: int) -> None:
    sealed = some_chunks(chunks, chunks + 2)
    [record] = packed(sealed, (layout.LIVE_KIND, 2, chunks, 9))
    first, live2 = unpacked.unpack_live(record, b"")
    assert first == 9
    np.testing.assert_array_equal(live2, sealed.live[2 : chunks + 2])


@given(st.binary(max_size=40), st.integers(0, 2**32 - 1))
def test_keys_say_whose_they_are(user: bytes, number: int) -> None:
    assert user_of_key(layout.chunk_key(user, number)) == (user, "C", number)
    assert user_of_key(layout.segment_key(user, number)) == (user, "S", number)
    assert user_of_key(layout.live_key(user)) == (user, "L", 0)
    assert user_of_key(layout.head_key(user)) == (user, "H", 0)


def test_users_whose_names_look_like_keys_do_not_meet() -> None:
    plain = filled(a=70)
    names = ["a\0H\0\0\0\0", "a\0C\0\0\0\0", "a\0", "\0", "a\0L\0\0\0\0", "__faust\0offset__"]
    engine = filled(a=70, **dict.fromkeys(names, 70))
    assert len(engine.memory) == len(plain.memory) * (len(names) + 1)
    assert plain.memory.items() <= engine.memory.items()


# --- damage --------------------------------------------------------------------------------------------


def meets(engine: Engine, user: str) -> StateError:
    """Return the error of the next event of ``user``, who shares its batch with healthy neighbours.

    The event is late, so that every record of the user is read. Asserts that the user's state is left as
    it is and that the neighbours go on as if it was not there.
    """
    twin = filled(**dict.fromkeys(["before", "behind"], 100), small=5)
    neighbours = [
        (name, Event("new", START + 200 * HOUR, 77, "m1")) for name in ("before", "small", "behind")
    ]
    for name in ("before", "small", "behind"):
        engine.memory.update({k: v for k, v in twin.memory.items() if user_of_key(k)[0] == name.encode()})
    taken = [*neighbours[:2], (user, Event("late", START + HOUR // 2, 5, "m2")), neighbours[2]]
    taken.append((user, Event("later", START + 300 * HOUR, 5, "m2")))
    engine.next_offset = twin.next_offset = 10_000
    untouched = {k: v for k, v in engine.memory.items() if user_of_key(k)[0] == user.encode()}
    result, features = engine.decide(taken, engine.next_offset)
    (error,) = result.errors.values()
    assert result.outcome.tolist() == [SCORED, SCORED, FAILED, SCORED, FAILED]
    assert {user_of_key(key)[0] for key, _ in result.writes} == {b"before", b"small", b"behind"}
    engine.memory.write(result.writes)
    left = {k: v for k, v in engine.memory.items() if user_of_key(k)[0] == user.encode()}
    assert left == untouched
    _, alone = twin.take(neighbours)
    np.testing.assert_array_equal(features[[0, 1, 3]], alone)
    for key, value in twin.memory.items():
        if user_of_key(key)[0] == b"before":
            assert engine.memory[key] == value
    text = str(error)
    assert repr(user) in text
    assert "\n" not in text
    return error


def keys_of(engine: Engine, user: str) -> dict[str, bytes]:
    """Return one key of each kind of a user's records; of the chunks and segments the first."""
    found: dict[str, bytes] = {}
    for key in sorted(engine.memory):
        owner, kind, _ = user_of_key(key)
        if owner == user.encode():
            found.setdefault(kind, key)
    return found


KINDS = ["H", "C", "S", "L"]
NAMES = {"H": "head", "C": "chunk 0", "S": "segment 0", "L": "live bitmap"}


def test_the_damage_tests_are_not_vacuous() -> None:
    engine = filled(victim=200)
    assert list(keys_of(engine, "victim")) == ["C", "H", "L", "S"]
    with pytest.raises(ValueError, match="not enough values"):
        meets(engine, "victim")


@pytest.mark.parametrize("kind", KINDS)
def test_a_byte_changed_anywhere_is_noticed(kind: str) -> None:
    engine = filled(victim=200)
    key = keys_of(engine, "victim")[kind]
    whole = engine.memory[key]
    probe = [("victim", Event("late", START + HOUR // 2, 5, "m2"))]
    for place in range(len(whole)):
        damaged = bytearray(whole)
        # The first byte is the version: with a small change it is a version to come, and ends the worker.
        damaged[place] ^= 128 if place == 0 else 1 << (place % 8)
        engine.memory[key] = bytes(damaged)
        result, _ = engine.decide(probe, engine.next_offset)
        assert result.outcome.tolist() == [FAILED], f"byte {place} of {len(whole)}"
        assert result.writes == []
        assert f"'victim' ({NAMES[kind]})" in str(result.errors[0])
    engine.memory[key] = whole
    assert engine.decide(probe, engine.next_offset)[0].errors == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_cut_short_or_too_long_is_noticed(kind: str) -> None:
    engine = filled(victim=200)
    key = keys_of(engine, "victim")[kind]
    whole = engine.memory[key]
    probe = [("victim", Event("late", START + HOUR // 2, 5, "m2"))]
    cuts = [whole[:size] for size in range(1, len(whole))]
    for record in [*cuts, whole + b"\0", whole + bytes(8), whole + whole]:
        engine.memory[key] = record
        result, _ = engine.decide(probe, engine.next_offset)
        assert result.outcome.tolist() == [FAILED], f"{len(record)} of {len(whole)} bytes"
        assert result.writes == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["damaged", "empty", "another kind's"])
def test_damage_is_one_user_s_error(kind: str, what: str) -> None:
    engine = filled(victim=200)
    keys = keys_of(engine, "victim")
    record = engine.memory[keys[kind]]
    engine.memory[keys[kind]] = {
        "damaged": record[:40] + bytes([record[40] ^ 1]) + record[41:],
        "empty": b"",
        "another kind's": engine.memory[keys["C" if kind == "H" else "H"]],
    }[what]
    text = str(meets(engine, "victim"))
    assert NAMES[kind] in text
    assert "corrupt" in text


@pytest.mark.parametrize("kind", KINDS)
def test_state_of_a_newer_version_refuses_no_customer(kind: str) -> None:
    """It ends the worker: every user that a newer worker has served would be refused otherwise."""
    engine = filled(victim=200)
    key = keys_of(engine, "victim")[kind]
    engine.memory[key] = with_version(engine.memory[key], NEWER)
    before = dict(engine.memory)
    text = f"format {NEWER}, newer than the {FORMAT_VERSION} of this program: upgrade this worker"
    with pytest.raises(NewerFormatError, match=text):
        engine.decide([("victim", Event("late", START + HOUR // 2, 5, "m2"))], engine.next_offset)
    assert dict(engine.memory) == before


@pytest.mark.parametrize("kind", ["C", "S", "L"])
def test_a_missing_record_is_one_user_s_error(kind: str) -> None:
    engine = filled(victim=200)
    del engine.memory[keys_of(engine, "victim")[kind]]
    assert f"{NAMES[kind]}) is missing" in str(meets(engine, "victim"))


@pytest.mark.parametrize("kind", ["S", "L"])
def test_a_record_older_than_the_head_is_one_user_s_error(kind: str) -> None:
    """As after a write that was torn: the head names chunks that the other record does not have."""
    engine = filled(victim=130)
    old = {key: engine.memory[key] for key in keys_of(engine, "victim").values()}
    engine.take([("victim", event) for _, event in history("victim", 260)[130:]])
    key = keys_of(engine, "victim")[kind]
    engine.memory[key] = old[key]
    assert "does not cover the chunks that the head lists" in str(meets(engine, "victim"))


def test_a_damaged_chunk_that_no_event_needs_harms_nobody() -> None:
    """Its summary answers for it; it is met when a window's edge comes to lie in it."""
    engine = filled(victim=200)
    key = keys_of(engine, "victim")["C"]
    engine.memory[key] = b"junk"
    result, _ = engine.decide([("victim", Event("soon", START + 200 * HOUR, 5))], engine.next_offset)
    assert result.errors == {}
    result, _ = engine.decide(
        [("victim", Event("weeks", START + 30 * DAY + 5 * HOUR, 5))], engine.next_offset
    )
    assert "chunk 0" in str(result.errors[0])


# --- versions ------------------------------------------------------------------------------------------


def older(record: bytes, kind: str) -> bytes:
    """Return a record as version 1 stored it: a head's live bits beside its counts, all else as today."""
    words = np.frombuffer(record, np.int64).copy()
    words[0] -= 1
    if kind == "H":
        counts, live = 2 + H_NEWEST_EXPIRED + 1, 2 + H_NEWEST_EXPIRED + 2
        assert 0 <= words[live] < 2**32
        words[counts] |= words[live] << 16
        words = np.delete(words, live)
        words[1] = checksum(words, 2, len(words))
    return words.tobytes()


@pytest.mark.parametrize("count", [5, 80, 1_170])
def test_an_older_version_is_migrated_when_it_is_read(count: int) -> None:
    assert FORMAT_VERSION == 2, "and so should the version that this test is about"
    engine, twin = filled(user=count), filled(user=count)
    for key, record in engine.memory.items():
        engine.memory[key] = older(record, user_of_key(key)[1])
        assert engine.memory[key] != twin.memory[key]
    more = [
        ("user", Event("late", START + (count - 3) * HOUR, 5, "m2")),
        ("user", Event("on time", START + (count + 200) * HOUR, 6, "m3")),
    ]
    assert engine.take(more)[0] == twin.take(more)[0] == ["scored", "scored"]
    key = layout.head_key(b"user")
    assert engine.memory[key] == twin.memory[key]
    again = [("user", Event("more", START + (count + 300) * HOUR, 6, "m3"))]
    np.testing.assert_array_equal(engine.take(again)[1], twin.take(again)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_version_that_is_too_old_is_an_error(kind: str) -> None:
    engine = filled(victim=200)
    key = keys_of(engine, "victim")[kind]
    engine.memory[key] = with_version(engine.memory[key], 0)
    assert "has format 0, which this program no longer reads" in str(meets(engine, "victim"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_migration_does_not_hide_damage(kind: str) -> None:
    engine = filled(victim=200)
    key = keys_of(engine, "victim")[kind]
    record = older(engine.memory[key], kind)
    for damaged in (
        record[:-8] + bytes([record[-8] ^ 1]) + record[-7:],
        record[:-8],
        record[:16],
        record[:9],
    ):
        engine.memory[key] = damaged
        assert "corrupt" in str(meets(engine, "victim"))


#: A user's head as a program of format 1 stored it.
STORED_HEAD = bytes.fromhex(
    "0148535200000000268bbce38372bfe500000000000000004d00000000000000"
    "0068e5cf8b0100000068e5cf8b01000001000000000000000000000000000000"
    + 64
    * "00"
    + "00000000000000c001000100000000000068e5cf8b0100000000000000000000"
    "0444cc705e1aa5d0116f7aee0d3b06a3"
)


def test_a_head_that_was_stored_in_format_1_is_still_read() -> None:
    engine = Engine()
    engine.memory[layout.head_key(b"u")] = STORED_HEAD
    engine.next_offset = 1
    twin = filled(u=1)
    more = history("u", 3)[1:]
    np.testing.assert_array_equal(engine.take(more)[1], twin.take(more)[1])
