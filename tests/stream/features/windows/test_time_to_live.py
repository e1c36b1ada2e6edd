"""A time to live: a history begins anew with the first event after so long without one."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.features.windows.cache import HistoryCache
from stream.features.windows.events import HistoryConfig
from support.histories import DAY, HOUR, Engine, Event, Taken, User, disagreements
from support.window_histories import REPEATABLE, START, check_no_orphans, split

TTL = 40 * DAY


def with_pauses(seed: int, count: int) -> list[Taken]:
    rng = random.Random(seed)
    clock = START
    taken: list[Taken] = []
    for number in range(count):
        clock += rng.choice([rng.randrange(HOUR)] * 40 + [TTL - 1, TTL, TTL + 1, 100 * DAY])
        time = clock - (rng.randrange(2 * DAY) if rng.random() < 0.1 else 0)
        id_hash = f"t{rng.randrange(number) if number and rng.random() < 0.02 else number}"
        taken.append(("u", Event(id_hash, time, rng.randrange(1_000), f"m{rng.randrange(9)}")))
    return taken


@settings(REPEATABLE, max_examples=30)
@given(st.integers(0, 10**9), st.integers(1, 300), st.sampled_from([1, 20, 300]), st.booleans())
def test_features_are_those_of_the_oracle(seed: int, count: int, most: int, cached: bool) -> None:
    engine = Engine(cache=HistoryCache(1 << 22) if cached else None, ttl=TTL)
    oracle = User(ttl=TTL)
    for batch in split(with_pauses(seed, count), seed, most):
        for _, event in batch[:1]:  # a preview changes nothing
            engine.decide([("u", event)], 2**62, learn=False)
        outcomes, features = engine.take(batch)
        for (_, event), outcome, row in zip(batch, outcomes, features, strict=True):
            expected, wanted = oracle.take(event)
            assert outcome == expected
            if wanted is not None:
                assert disagreements(row, wanted) == {}
    check_no_orphans(engine)


def test_a_preview_after_the_time_to_live_is_that_of_a_first_event() -> None:
    engine = Engine(ttl=TTL)
    engine.take([("u", Event(f"t{at}", START + at * HOUR, 5, "m")) for at in range(200)])
    late = Event("x", START + 199 * HOUR, 9, "m")
    first = Event("y", START + 199 * HOUR + TTL + 1, 9, "m")
    _, features = engine.decide([("u", first), ("u", late)], 2**62, learn=False)
    assert disagreements(features[0], User().take(first)[1] or {}) == {}
    oracle = User()
    for at in range(200):
        oracle.take(Event(f"t{at}", START + at * HOUR, 5, "m"))
    assert disagreements(features[1], oracle.take(late)[1] or {}) == {}


def test_a_time_to_live_within_the_horizon_is_refused() -> None:
    with pytest.raises(ValueError, match="time to live"):
        HistoryConfig(3 * DAY, 33 * DAY - 1)
    assert HistoryConfig(3 * DAY, 33 * DAY).horizon_ms == 33 * DAY
