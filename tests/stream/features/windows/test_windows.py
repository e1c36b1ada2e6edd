"""Windows are exact: the engine and a slow plain-Python oracle agree to the bit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.features.windows import records as layout
from stream.features.windows.arrays import (
    CHUNK,
    HEAD,
    SEGMENT,
)
from support.histories import DAY, HOUR, Engine, Event, Taken, User, disagreements
from support.window_histories import (
    LATENESS,
    LONG,
    REPEATABLE,
    START,
    check_against_oracle,
    check_no_orphans,
    long_history,
    parts,
    small_histories,
    split,
)

# --- (a) the engine against the oracle -----------------------------------------------------------------


@REPEATABLE
@given(small_histories(), st.sampled_from(LATENESS), st.integers(0, 9), st.sampled_from([1, 5, 50]))
def test_features_are_those_of_the_oracle(taken: list[Taken], lateness: int, seed: int, most: int) -> None:
    check_against_oracle(taken, lateness, split(taken, seed, most))


@settings(REPEATABLE, max_examples=25)
@given(
    st.integers(0, 10**9),
    st.lists(
        st.tuples(st.integers(1, 90), st.sampled_from([1_000, HOUR, 10 * HOUR, 3 * DAY])),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(LATENESS),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 10, 200]),
)
def test_features_of_middling_histories_are_those_of_the_oracle(
    seed: int, phases: list[tuple[int, int]], lateness: int, users: int, most: int
) -> None:
    taken = long_history(seed, phases, users)
    check_against_oracle(taken, lateness, split(taken, seed, most))


@pytest.mark.parametrize("name", LONG)
def test_features_of_long_histories_are_those_of_the_oracle(name: str) -> None:
    seed, phases, most = LONG[name]
    taken = long_history(seed, phases)
    engine, seen = check_against_oracle(taken, 3 * DAY, split(taken, seed, most))
    assert seen == {"scored", "late", "duplicate"}
    most_kept = max(
        sum(1 for _, event in taken[:at] if event.time > taken[at][1].time - 30 * DAY)
        for at in range(len(taken))
    )
    if "slides" in name:
        assert engine.memory.numbers("user-0", "C")[0] > 2, "no chunk was forgotten"
    elif "chunks" not in name:
        assert most_kept > CHUNK * SEGMENT, "the history does not fill a segment"


def test_a_user_goes_from_chunks_back_to_none() -> None:
    engine = Engine()
    kinds: list[tuple[int, int, int]] = []
    oracle = User(engine.lateness)
    for count, step in ((1_100, 10 * 60_000), (1, 100 * DAY), (63, HOUR), (65, HOUR), (1, 300 * DAY)):
        time = (oracle.applied[-1].time if oracle.applied else START) + step
        taken = [
            ("u", Event(f"{len(oracle.applied) + at}", time + at * step, at, f"m{at % 5}"))
            for at in range(count)
        ]
        for batch in split(taken, count, 150):
            _, features = engine.take(batch)
            for (_, event), row in zip(batch, features, strict=True):
                assert disagreements(row, oracle.take(event)[1] or {}) == {}
        kinds.append((*(len(engine.memory.numbers("u", kind)) for kind in "CSL"),))
        check_no_orphans(engine)
    assert kinds == [(34, 2, 1), (0, 0, 0), (2, 1, 1), (4, 1, 1), (0, 0, 0)]
    assert list(engine.memory) == [layout.head_key(b"u")]


@pytest.mark.parametrize("batch", [1, 7, 500])
def test_heads_are_short_once_there_are_chunks(batch: int) -> None:
    """What is written with every event: up to 63 events while there is nothing else, up to 31 beside chunks."""
    engine = Engine()
    taken = [("u", Event(str(at), START + at * HOUR, at)) for at in range(300)]
    longest = {False: 0, True: 0}
    for begin in range(0, len(taken), batch):
        engine.take(taken[begin : begin + batch])
        held = parts(engine, b"u")[1].shape[1]
        chunks = bool(engine.memory.numbers("u", "C"))
        longest[chunks] = max(longest[chunks], held)
    assert longest[True] == (31 if batch == 1 else longest[True]) < CHUNK
    assert longest[False] < HEAD
    assert longest[False] == (63 if batch == 1 else longest[False])


def test_forgotten_within_one_batch_leaves_no_record() -> None:
    """A batch that seals more than a segment and outlives it, as a file replayed at full speed does."""
    engine = Engine(lateness=0)
    engine.take([("u", Event(f"a{at}", START + at, 1)) for at in range(5 * CHUNK)])
    assert engine.memory.numbers("u", "S") == [0]
    engine.take([("u", Event(f"b{at}", START + at * DAY // 20, 1)) for at in range(60 * CHUNK)])
    assert engine.memory.numbers("u", "C")[0] > SEGMENT
    check_no_orphans(engine)


def test_a_copy_with_a_time_far_ahead_is_a_duplicate_while_the_original_is_remembered() -> None:
    """Remembered is what lies within the horizon of the newest event before the copy, not of the copy."""
    engine = Engine()
    engine.take([("user", Event(f"t{at}", at * HOUR, 5, "m")) for at in range(100)])
    copy = Event("t3", 36 * DAY, 5, "m")
    assert engine.take([("user", copy)])[0] == ["duplicate"]
