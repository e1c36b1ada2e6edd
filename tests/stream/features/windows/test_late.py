"""Events a few minutes late take another path than those in order, and give what the oracle gives."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.features.windows.arrays import NEAR_MS, RECENT
from stream.features.windows.cache import HistoryCache
from stream.state.format import user_of_key
from support.histories import DAY, HOUR, Engine, Event, Taken, User, disagreements
from support.window_histories import LATENESS, MOST, REPEATABLE, START, check_no_orphans, split

MINUTE = 60_000


def jittered(seed: int, count: int, gap: int, merchants: int, far: float) -> list[Taken]:
    """A busy user: many events late by milliseconds or minutes, some ahead, ties, amounts that rise."""
    rng = random.Random(seed)
    clock = START
    taken: list[Taken] = []
    for number in range(count):
        clock += rng.choice([0, rng.randrange(2 * gap + 1)])
        time, kind = clock, rng.random()
        if kind < 0.4:
            time -= rng.choice(
                [0, 1, 20, rng.randrange(MINUTE), rng.randrange(NEAR_MS), NEAR_MS, NEAR_MS + 1]
            )
        elif kind < 0.43:
            time += rng.randrange(NEAR_MS)
        elif kind < 0.43 + far:
            time -= rng.choice([HOUR, DAY, rng.randrange(40 * DAY)])
        id_hash = (
            f"t{rng.randrange(max(0, number - 40), number) if number and rng.random() < 0.03 else number}"
        )
        amount = rng.choice([number, rng.randrange(1_000), MOST - rng.randrange(3), 0])
        merchant = rng.choice([None, *(f"m{at}" for at in range(merchants))])
        taken.append(("user", Event(id_hash, time, amount, merchant)))
    return taken


def check(taken: list[Taken], lateness: int, seed: int, most: int, cache: HistoryCache | None) -> None:
    engine, oracle = Engine(lateness, cache=cache), User(lateness)
    for batch in split(taken, seed, most):
        outcomes, features = engine.take(batch)
        for (_, event), outcome, row in zip(batch, outcomes, features, strict=True):
            expected, wanted = oracle.take(event)
            assert outcome == expected
            if wanted is not None:
                assert disagreements(row, wanted) == {}, event
    check_no_orphans(engine)


@settings(REPEATABLE, max_examples=40)
@given(
    st.integers(0, 10**9),
    st.integers(70, 420),
    st.sampled_from([3, 200, 5_000, MINUTE, 5 * MINUTE, HOUR]),
    st.sampled_from([1, 3, 60]),
    st.sampled_from([0.0, 0.02]),
    st.sampled_from(LATENESS),
    st.sampled_from([1, 10, 200]),
    st.booleans(),
)
def test_features_of_jittered_histories_are_those_of_the_oracle(
    seed: int, count: int, gap: int, merchants: int, far: float, lateness: int, most: int, large: bool
) -> None:
    taken = jittered(seed, count, gap, merchants, far)
    check(taken, lateness, seed, most, HistoryCache(1 << (22 if large else 16)))


@pytest.mark.parametrize("gap", [200, 20_000, 20 * MINUTE])
def test_features_of_long_jittered_histories_are_those_of_the_oracle(gap: int) -> None:
    check(jittered(gap, 1_500, gap, 40, 0.004), 3 * DAY, 1, 60, HistoryCache(1 << 22))


def test_more_recent_events_than_there_is_room_for() -> None:
    """A burst within the minutes that are remembered, then events late by less and more than its length."""
    rng = random.Random(5)
    taken = [("u", Event(f"a{at}", START + at * HOUR, at, f"m{at % 9}")) for at in range(70)]
    start = START + 80 * HOUR
    for at in range(6 * RECENT):
        time = start + at * 1_000 - rng.choice([0, 0, 500, 20_000, at * 1_000])
        taken.append(("u", Event(f"b{at}", time, rng.randrange(99), f"m{rng.randrange(9)}")))
    check(taken, 3 * DAY, 3, 10, HistoryCache(1 << 22))


def test_an_event_a_few_minutes_late_does_not_read_the_whole_history() -> None:
    engine = Engine(cache=HistoryCache(1 << 22))
    gap = 20 * MINUTE
    engine.take([("u", Event(f"a{at}", START + at * gap, 5, f"m{at % 50}")) for at in range(2_000)])
    chunks = len(engine.memory.numbers("u", "C"))
    start = START + 2_000 * gap
    reads: dict[bool, int] = {}
    for late in (False, True):
        engine.cache = HistoryCache(1 << 22)  # as after a restart
        engine.memory.read_keys.clear()
        for at in range(60):
            time = start + at * 1_000 - (20_000 if late and at >= 30 and at % 2 else 0)
            engine.take([("u", Event(f"{late}{at}", time, 5, f"m{at % 50}"))])
        start += 60_000
        reads[late] = sum(user_of_key(key)[1] == "C" for key in engine.memory.read_keys)
    assert reads[True] <= reads[False] + 4 < chunks / 4
