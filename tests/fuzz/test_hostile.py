"""Hostile bytes for the decoder and for the reader of histories: refused with a declared error, or right."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz import batches, decoder, state
from stream.errors import InvalidRecordError, StateError
from stream.events.decode import MAX_RECORD_BYTES, MAX_RECORD_VALUES, decode_row
from stream.features.windows import records as layout
from stream.features.windows.arrays import CHUNK, H_COUNT, H_FIRST_CHUNK, H_NEXT_CHUNK, HDR_SIZE, HEAD
from stream.state.format import _MAGIC, CORRUPT, FORMAT_VERSION, OK, checksum
from support import unpacked
from support.paths import SEARCH_PATH

ORDINARY = json.dumps(decoder._BODY).encode()
LARGEST = 16 << 20  # of what max_record_bytes may be

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)
seeds = st.integers(0, 2**32).map(random.Random)


# --- records -------------------------------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_any_bytes_are_decoded_or_refused(raw: bytes) -> None:
    decoder.check(raw)


@given(st.dictionaries(st.sampled_from(sorted(decoder._BODY)), anything, max_size=4))
def test_any_values_are_decoded_or_refused(changes: dict[str, object]) -> None:
    """Python's JSON writes NaN and infinities as such."""
    decoder.check(json.dumps(decoder._BODY | changes).encode())


@given(seeds)
def test_changed_records_are_decoded_or_refused(rng: random.Random) -> None:
    decoder.check(decoder.hostile(rng))


def test_an_ordinary_record_is_taken() -> None:
    """The others would hold, too, if nothing was ever taken."""
    assert decoder.check(ORDINARY)
    assert sum(decoder.check(decoder.hostile(random.Random(at))) for at in range(2_000)) > 50


@pytest.mark.parametrize(
    "token", [b"NaN", b"Infinity", b"-Infinity", b'"NaN"', b'"-Infinity"', b"1e999", b"-1e999"]
)
@pytest.mark.parametrize("field", ["amount", "pre_balance", "event_time", "attributes", "speed"])
def test_no_field_takes_what_is_not_finite(field: str, token: bytes) -> None:
    plain = ORDINARY.replace(b": ", b":")
    old = {"amount": b"12.1", "pre_balance": b'"100.00"', "speed": b"1.5"}.get(field)
    if old is None:
        body = dict(decoder._BODY)
        del body[field]
        raw = json.dumps(body).encode()[:-1] + b',"%s":%s}' % (field.encode(), token)
    else:
        raw = plain.replace(b'"%s":%s' % (field.encode(), old), b'"%s":%s' % (field.encode(), token))
    assert token in raw
    if field == "speed" and token.startswith(b'"'):  # an attribute may be a text
        assert decoder.check(raw)
    else:
        assert not decoder.check(raw)


@pytest.mark.parametrize(
    ("raw", "max_bytes", "says"),
    [
        (b'{"memo":"' + b"x" * 100_000_000 + b'"}', LARGEST, "more than the 16777216 allowed by max_record_bytes"),
        (b" " * (MAX_RECORD_BYTES + 1), MAX_RECORD_BYTES, "more than the 65536 allowed by max_record_bytes"),
        (b"{" + b",".join(b'"%d":1' % at for at in range(1_000_000)) + b"}", LARGEST, "32768 values"),
        (b'{"a":[' + b"1.5," * 4_000_000 + b"1]}", LARGEST, "32768 values"),
        (b"[" * 1_000_000, LARGEST, "recursion limit"),
        (b'{"a":' * 1_000_000 + b"1" + b"}" * 1_000_000, LARGEST, "recursion limit"),
        (b'{"amount":' + b"9" * 10_000_000 + b"}", LARGEST, "number out of range"),
    ],
)  # fmt: skip
def test_what_would_take_much_memory_or_time_is_refused_by_a_limit(
    raw: bytes, max_bytes: int, says: str
) -> None:
    with pytest.raises(InvalidRecordError, match=says):
        decode_row(raw, max_bytes)


def test_the_longest_record_that_is_valid_is_within_the_limits() -> None:
    """Every text at its longest and of nothing but commas."""
    attributes = {f"{at:02}" + "," * 62: "," * 256 for at in range(64)}
    longest = dict.fromkeys(("transaction_id", "user_id", "merchant_id", "card_id", "device_id"), "," * 128)
    names = {"channel": "," * 64, "transaction_type": "," * 64, "memo": "," * 1024, "attributes": attributes}
    raw = json.dumps(decoder._BODY | longest | names).encode()
    assert raw.count(b",") < MAX_RECORD_VALUES
    assert decoder.check(raw)


# --- batches as they are fetched -----------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_any_bytes_of_a_fetch_are_records_or_a_batch_that_is_named(raw: bytes) -> None:
    batches.check(raw)


@settings(max_examples=400)
@given(seeds)
def test_changed_batches_are_records_or_a_batch_that_is_named(rng: random.Random) -> None:
    batches.check(batches.hostile(rng))


@given(seeds)
def test_ordinary_batches_are_read_whole(rng: random.Random) -> None:
    """The others would hold, too, if nothing was ever read."""
    made = [batches.ordinary(rng, first) for first in (0, 100, 200)]
    assert batches.check(b"".join(batch for batch, _ in made)) == sum(len(records) for _, records in made)


@given(seeds)
def test_message_sets_of_the_old_versions_are_read_whole(rng: random.Random) -> None:
    data, count = batches.old(rng)
    assert batches.check(data) == count


# --- stored records ------------------------------------------------------------------------------------


@given(st.binary(max_size=600))
def test_any_bytes_are_a_record_or_a_state_error(raw: bytes) -> None:
    for unpack, key in (
        (unpacked.unpack_chunk, layout.chunk_key(b"u", 1)),
        (unpacked.unpack_segment, layout.segment_key(b"u", 1)),
        (unpacked.unpack_live, layout.live_key(b"u")),
        (layout.migrate, layout.head_key(b"u")),
    ):
        for start in (b"", key[-5:-4]):
            with pytest.raises(StateError, match="user 'u'"):
                unpack(start + raw, key)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=3, max_size=170), st.sampled_from("HCSL"))
def test_any_words_with_a_right_checksum_are_read_or_refused(values: list[int], kind: str) -> None:
    words = np.array(values, np.int64)
    words[0] = _MAGIC | (ord(kind) << 8) | FORMAT_VERSION
    words[1] = checksum(words, 2, len(words))
    hdr, head = np.zeros(HDR_SIZE, np.int64), np.zeros((4, HEAD), np.int64)
    pending = np.zeros(CHUNK + 1, np.int64)
    status = layout.unpack_head(words, 0, len(words), hdr, head, pending)
    assert status in {OK, CORRUPT}
    if status == OK:
        assert 0 <= hdr[H_FIRST_CHUNK] <= hdr[H_NEXT_CHUNK] < 2**32
        assert 32 * (hdr[H_NEXT_CHUNK] - hdr[H_FIRST_CHUNK]) <= hdr[H_COUNT]
        assert hdr[H_NEXT_CHUNK] - hdr[H_FIRST_CHUNK] <= layout._DAMAGED_CHUNKS
    for unpack in (unpacked.unpack_chunk, unpacked.unpack_segment, unpacked.unpack_live):
        try:
            unpack(words.tobytes(), layout.chunk_key(b"u", 1))
        except StateError as error:
            assert "\n" not in str(error)


@pytest.fixture(scope="module")
def readers() -> list[state.Reader]:
    return [state.Reader(resident=False), state.Reader(resident=True)]


@given(seeds)
def test_damaged_histories_are_errors_of_their_users_alone(
    readers: list[state.Reader], rng: random.Random
) -> None:
    for reader in readers:
        reader.check([state.hostile(rng) for _ in range(5)], rng)


def test_so_many_hostile_inputs_end_no_process() -> None:
    """In a process of its own: compiled code that went wrong would end it by a signal. ``make fuzz`` runs a million."""
    done = subprocess.run(
        [sys.executable, "-m", "fuzz", "--runs", "20000", "--seed", "3"],
        env={**os.environ, "PYTHONPATH": SEARCH_PATH},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20,000 hostile inputs" in done.stdout
