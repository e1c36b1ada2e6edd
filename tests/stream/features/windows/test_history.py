"""Replays, probes and splits: how a stream is cut into batches leaves no trace."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.features.windows import records as layout
from stream.features.windows.arrays import (
    DUPLICATE,
    H_FIRST_CHUNK,
    H_NEXT_CHUNK,
    REPLAYED,
)
from support.histories import DAY, HOUR, Engine, Taken
from support.window_histories import (
    LONG,
    REPEATABLE,
    check_no_orphans,
    content,
    header,
    long_history,
    small_histories,
    split,
)

# --- replays, and events that are not to be learnt -----------------------------------------------------


@settings(REPEATABLE, max_examples=30)
@given(small_histories(), st.integers(0, 9), st.sampled_from([1, 7, 50]))
def test_a_replayed_batch_changes_nothing(taken: list[Taken], seed: int, most: int) -> None:
    engine = Engine()
    for batch in split(taken, seed, most):
        offset = engine.next_offset
        first, _ = engine.take(batch)
        stored = dict(engine.memory)
        again, features = engine.decide(batch, offset)
        assert again.writes == []
        assert (features == -99.0).all()
        for before, code in zip(first, again.outcome.tolist(), strict=True):
            # A duplicate leaves nothing in the state by which its record could be recognised.
            assert code == REPLAYED or (before == "duplicate" and code == DUPLICATE)
        assert engine.memory == stored


def test_a_replayed_batch_of_a_long_history_changes_nothing() -> None:
    taken = long_history(11, [(1_200, 20 * 60_000), (1, 80 * DAY), (80, HOUR)])
    engine = Engine()
    for batch in split(taken, 11, 200):
        offset = engine.next_offset
        outcomes, _ = engine.take(batch)
        again, _ = engine.decide(batch, offset)
        assert again.writes == []
        assert {
            code for code, was in zip(again.outcome.tolist(), outcomes, strict=True) if was != "duplicate"
        } == {REPLAYED}


def test_a_replay_that_reaches_further_takes_the_rest() -> None:
    """After a crash a fetch begins at the last commit and may hold more than the batch that was cut off."""
    taken = long_history(12, [(400, HOUR)], users=3)
    whole, crashed = Engine(), Engine()
    for batch in split(taken, 1, 60):
        whole.take(batch)
    for begin in range(0, len(taken), 50):
        crashed.take(taken[begin : begin + 50])
        crashed.next_offset -= 20 if begin else 0
        crashed.take(taken[crashed.next_offset : begin + 50])
    for user in ("user-0", "user-1", "user-2"):
        assert content(crashed, user.encode()) == content(whole, user.encode())


def test_offsets_of_another_source_are_not_compared() -> None:
    taken = long_history(13, [(60, HOUR)])
    engine = Engine()
    engine.take(taken[:40])
    engine.source, engine.next_offset = 78, 0
    result, _ = engine.decide(taken[40:], 0)
    assert result.other_source.sum() == 1
    assert REPLAYED not in result.outcome
    outcomes, _ = engine.take(taken[40:])
    assert "scored" in outcomes
    assert engine.decide(taken[40:], 0)[0].other_source.sum() == 0


@settings(REPEATABLE, max_examples=30)
@given(small_histories(), small_histories())
def test_what_is_not_learnt_leaves_no_trace(taken: list[Taken], probe: list[Taken]) -> None:
    engine = Engine()
    if taken:
        engine.take(taken)
    stored = dict(engine.memory)
    result, features = engine.decide(probe, engine.next_offset, learn=False)
    assert result.writes == []
    assert engine.memory == stored
    for place, item in enumerate(probe):
        alone, row = engine.decide([item], engine.next_offset + place, learn=False)
        assert alone.outcome[0] == result.outcome[place]
        np.testing.assert_array_equal(row[0], features[place])


def test_what_is_not_learnt_leaves_no_trace_in_a_long_history() -> None:
    taken = long_history(14, [(1_150, 20 * 60_000)])
    engine = Engine()
    for batch in split(taken, 14, 300):
        stored = dict(engine.memory)
        result, probed = engine.decide(batch[:5], engine.next_offset, learn=False)
        assert result.writes == []
        assert engine.memory == stored
        _, features = engine.take(batch)
        np.testing.assert_array_equal(probed[0], features[0])


# --- (b) how a stream is cut into batches leaves no trace ----------------------------------------------


@REPEATABLE
@given(small_histories(), st.integers(0, 9))
def test_splits_give_the_same_state(taken: list[Taken], seed: int) -> None:
    engines = []
    for most in (1, 4, 100):
        engine = Engine()
        for batch in split(taken, seed, most):
            engine.take(batch)
        engines.append(engine)
    for engine in engines[1:]:
        for user in {user for user, _ in taken}:
            assert content(engine, user.encode()) == content(engines[0], user.encode())
            if not engine.memory.numbers(user, "C") and not engines[0].memory.numbers(user, "C"):
                fixed = [H_FIRST_CHUNK, H_NEXT_CHUNK]
                if (header(engine, user.encode())[fixed] == header(engines[0], user.encode())[fixed]).all():
                    key = layout.head_key(user.encode())
                    assert engine.memory[key] == engines[0].memory[key]


@settings(REPEATABLE, max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([HOUR, 6 * HOUR, 2 * DAY]), st.integers(20, 31))
def test_splits_give_the_same_bytes_to_users_without_chunks(seed: int, gap: int, count: int) -> None:
    taken = long_history(seed, [(count, gap)])
    stored = []
    for most in (1, 5, 100):
        engine = Engine()
        for batch in split(taken, seed, most):
            engine.take(batch)
        stored.append(engine.memory)
    assert stored[0] == stored[1] == stored[2]


@pytest.mark.parametrize("name", ["small batches", "chunks come and go", "a window that slides"])
def test_splits_of_long_histories_give_the_same_state(name: str) -> None:
    seed, phases, _ = LONG[name]
    taken = long_history(seed, phases)
    contents = []
    for most in (1, 33, 500):
        engine = Engine()
        for batch in split(taken, seed, most):
            engine.take(batch)
        check_no_orphans(engine)
        contents.append(content(engine, b"user-0"))
    assert contents[0] == contents[1] == contents[2]
