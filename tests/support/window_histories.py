"""Histories to try windows on, drawn and made, and the engine held against the oracle."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from stream.features.spec import FeatureSpec
from stream.features.windows import records as layout
from stream.features.windows.arrays import (
    CHUNK,
    H_FIRST_CHUNK,
    H_HEAD,
    H_LIVE,
    H_NEXT_CHUNK,
    H_PENDING,
    HEAD,
    SEGMENT,
    new_header,
)
from stream.features.windows.cache import HistoryCache
from stream.state.format import OK, user_of_key
from support import unpacked
from support.histories import DAY, HOUR, Engine, Event, Taken, User, disagreements

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt


#: The same examples in every run: what fails here fails everywhere.
REPEATABLE = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

START = 1_700_000_000_000

MOST = 10**15

LATENESS = [0, HOUR, 3 * DAY, 30 * DAY]

EDGES = [0, 1, HOUR - 1, HOUR, HOUR + 1, DAY - 1, DAY, DAY + 1, 7 * DAY, 7 * DAY + 1, 30 * DAY - 1, 30 * DAY]

EDGES += [30 * DAY + 1, 33 * DAY, 33 * DAY + 1, 60 * DAY, 61 * DAY, 100 * DAY]


# --- histories -----------------------------------------------------------------------------------------

amounts = st.one_of(
    st.sampled_from([0, 1, 500, MOST - 1, MOST]), st.integers(0, 10_000), st.integers(0, MOST)
)

steps = st.one_of(
    st.sampled_from(EDGES), st.sampled_from(EDGES).map(lambda edge: -edge), st.integers(-5 * DAY, 5 * DAY)
)


@st.composite
def small_histories(draw: st.DrawFn) -> list[Taken]:
    """Few events, each drawn by itself: edges of windows, ties, ids and merchants that come again."""
    times = {"a": START, "b": START}
    taken: list[Taken] = []
    for user, step, amount, merchant, id_hash, units in draw(
        st.lists(
            st.tuples(
                st.sampled_from("aab"),
                steps,
                amounts,
                st.sampled_from([None, "m1", "m2", "m3"]),
                st.integers(0, 60),
                st.sampled_from([100, 1]),
            ),
            max_size=45,
        )
    ):
        time = max(0, times[user] + step)
        times[user] = max(times[user], time)
        taken.append((user, Event(f"t{id_hash}", time, amount, merchant, units)))
    return taken


def long_history(seed: int, phases: Sequence[tuple[int, int]], users: int = 1) -> list[Taken]:
    """Many events: for each phase ``(events, mean gap)``; late ones, ties and repeated ids among them."""
    rng = random.Random(seed)
    merchants = rng.choice([3, 40, 400])
    clock = dict.fromkeys(range(users), START)
    taken: list[Taken] = []
    for count, gap in phases:
        for _ in range(count):
            user = rng.randrange(users)
            clock[user] += rng.randrange(2 * gap + 1) if rng.random() > 0.05 else 0
            time, kind = clock[user], rng.random()
            if kind < 0.05:
                time -= rng.randrange(2 * DAY)
            elif kind < 0.08:
                time -= rng.choice(EDGES)
            id_hash = f"t{len(taken)}"
            if rng.random() < 0.03 and taken:
                id_hash = rng.choice(taken[-200:])[1].transaction_id
            amount = rng.choice([rng.randrange(10_000), rng.randrange(MOST + 1), MOST, 0, 500])
            merchant = rng.choice([None, f"m{rng.randrange(merchants)}", f"m{rng.randrange(merchants)}"])
            taken.append(
                (f"user-{user}", Event(id_hash, max(0, time), amount, merchant, rng.choice([100, 1])))
            )
    return taken


def split(taken: Sequence[Taken], seed: int, most: int) -> list[Sequence[Taken]]:
    """Cut into batches of random sizes up to ``most``."""
    rng = random.Random(seed)
    batches, begin = [], 0
    while begin < len(taken):
        end = begin + rng.randint(1, most)
        batches.append(taken[begin:end])
        begin = end
    return batches


def check_against_oracle(
    taken: Sequence[Taken], lateness: int, batches: Sequence[Sequence[Taken]]
) -> tuple[Engine, set[str]]:
    # A workspace that long histories outgrow, so that residents come, stay and go.
    cache = HistoryCache(1 << 18) if len(batches) % 2 else None
    engine, users = Engine(lateness, cache=cache), {}
    seen: set[str] = set()
    place = 0
    for batch in batches:
        outcomes, features = engine.take(batch)
        for (user, event), outcome, row in zip(batch, outcomes, features, strict=True):
            expected, wanted = users.setdefault(user, User(lateness)).take(event)
            assert outcome == expected, f"event {place}"
            if wanted is None:
                assert (row == -99.0).all(), f"event {place} wrote features"
            else:
                assert disagreements(row, wanted) == {}, f"event {place}"
            seen.add(outcome)
            place += 1
    assert place == len(taken)
    check_no_orphans(engine)
    return engine, seen


def check_no_orphans(engine: Engine) -> None:
    """Every record in the store is one that its user's head names, and the other way round."""
    wanted: set[bytes] = set()
    for key in engine.memory:
        user, kind, _ = user_of_key(key)
        if kind != "H":
            continue
        wanted.add(key)
        first, end = (int(header(engine, user)[at]) for at in (H_FIRST_CHUNK, H_NEXT_CHUNK))
        wanted |= {layout.chunk_key(user, number) for number in range(first, end)}
        if end > first:
            segments = range(first // SEGMENT, (end - 1) // SEGMENT + 1)
            wanted |= {layout.live_key(user), *(layout.segment_key(user, number) for number in segments)}
    assert set(engine.memory) == wanted


def parts(engine: Engine, user: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], list[int]]:
    """Return the header, the head's events and the lost live bits of a stored head."""
    hdr, head, pending = (
        new_header(),
        np.zeros((4, HEAD), np.int64),
        np.zeros(CHUNK + 1, np.int64),
    )
    words = np.frombuffer(engine.memory[layout.head_key(user)], np.int64)
    assert layout.unpack_head(words, 0, len(words), hdr, head, pending) == OK
    return hdr, head[:, : hdr[H_HEAD]], pending[: hdr[H_PENDING]].tolist()


def header(engine: Engine, user: bytes) -> npt.NDArray[np.int64]:
    return parts(engine, user)[0]


def content(engine: Engine, user: bytes) -> tuple[list[int], list[list[int]], list[bool]]:
    """Return what a user's records say: header (chunk numbers apart), kept events, which are live."""
    hdr, head, pending = parts(engine, user)
    first, end = int(hdr[H_FIRST_CHUNK]), int(hdr[H_NEXT_CHUNK])
    numbers = range(first, end)
    chunks = [unpacked.unpack_chunk(engine.memory[layout.chunk_key(user, number)], b"") for number in numbers]
    live: list[bool] = []
    if chunks:
        start, bitmaps = unpacked.unpack_live(engine.memory[layout.live_key(user)], b"")
        for number in numbers:
            bits = int(bitmaps[number - start])
            live += [bool(bits >> at & 1) and number * CHUNK + at not in pending for at in range(CHUNK)]
    live += [bool(int(hdr[H_LIVE]) >> at & 1) for at in range(head.shape[1])]
    return hdr[:H_FIRST_CHUNK].tolist(), np.concatenate([*chunks, head], axis=1).tolist(), live


#: By name: seed, phases, largest batch. Gaps are chosen so that 30 days hold more than a segment's 1,024.
LONG = {
    "one batch an event": (1, [(1_250, 20 * 60_000)], 1),
    "small batches": (2, [(1_300, 25 * 60_000)], 40),
    "large batches": (3, [(1_350, 30 * 60_000)], 700),
    "chunks come and go": (4, [(200, HOUR), (2, 40 * DAY), (150, HOUR), (1, 200 * DAY), (60, 2 * HOUR)], 17),
    "segments come and go": (5, [(1_200, 10 * 60_000), (2, 50 * DAY), (100, HOUR)], 90),
    "a window that slides": (6, [(900, 3 * HOUR)], 60),
}

SPEC = FeatureSpec({"channel": ("web",), "transaction_type": ("purchase",)})
