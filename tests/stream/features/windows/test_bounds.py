"""Bounds of what is stored: a history that reaches one goes on, and drops its oldest events."""

from __future__ import annotations

import numpy as np
import pytest

from stream.features.windows import records as layout
from stream.features.windows.arrays import (
    CHUNK,
    H_FIRST_CHUNK,
    H_NEXT_CHUNK,
    HEAD,
)
from stream.features.windows.cache import HistoryCache
from support.histories import DAY, HOUR, Engine, Event, Taken, User, disagreements
from support.window_histories import START, check_no_orphans, header, parts, split

MINUTE = 60_000


def busy(count: int, gap: int = MINUTE) -> list[Taken]:
    return [("u", Event(f"t{at}", START + at * gap, at * 7 % 1_000, f"m{at % 23}")) for at in range(count)]


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("most", [1, 40, 500])
def test_the_oldest_chunks_go_and_later_decisions_say_so(most: int, cached: bool) -> None:
    engine = Engine(cache=HistoryCache(1 << 22) if cached else None, max_chunks=5)
    oracle = User()
    flagged = []
    for batch in split(busy(900), most, most):
        result, features = engine.decide(batch, engine.next_offset)
        assert result.errors == {}
        engine.memory.write(result.writes)
        engine.next_offset += len(batch)
        flagged += result.truncated.tolist()
        if most == 1:
            # Chunk numbers are positions in the log while nothing has expired.
            wanted = oracle.take(batch[0][1])[1]
            assert wanted is not None
            assert disagreements(features[0], wanted) == {}
            oracle.dropped = CHUNK * int(header(engine, b"u")[H_FIRST_CHUNK])
    hdr = header(engine, b"u")
    assert hdr[H_NEXT_CHUNK] - hdr[H_FIRST_CHUNK] == 5
    check_no_orphans(engine)
    # Two chunks are sealed at the 64th event and one at every 32nd from then on.
    assert flagged == [at >= 6 * CHUNK for at in range(900)]


def test_a_truncated_history_is_whole_again_once_windows_no_longer_reach_what_is_missing() -> None:
    engine = Engine(max_chunks=4)
    engine.take(busy(500))
    later = [("u", Event(f"l{at}", START + 50 * DAY + at * HOUR, 3, "m")) for at in range(100)]
    result, features = engine.decide(later, engine.next_offset)
    assert not result.truncated.any()
    oracle = User()
    for _, event in busy(500):
        oracle.take(event)
    for (_, event), row in zip(later, features, strict=True):
        assert disagreements(row, oracle.take(event)[1] or {}) == {}


@pytest.mark.parametrize("start", [2**27 - 3, 2**32 - 3, 2**40 + 7])
@pytest.mark.parametrize("most", [1, 60])
def test_numbers_of_chunks_may_exceed_what_a_key_holds(start: int, most: int) -> None:
    engine, oracle = Engine(), User()
    first = Event("first", START, 5, "m1")
    engine.take([("u", first)])
    oracle.take(first)
    hdr, head, pending = parts(engine, b"u")
    hdr[H_FIRST_CHUNK] = hdr[H_NEXT_CHUNK] = start
    whole = np.zeros((4, HEAD), np.int64)
    whole[:, :1] = head
    words = np.zeros(layout.MAX_HEAD_WORDS, np.int64)
    size = layout.pack_head(hdr, whole, np.array(pending, np.int64), words)
    engine.memory.write([(layout.head_key(b"u"), words[:size].tobytes())])
    for batch in split(busy(700, 3 * HOUR)[1:], 1, most):
        _, features = engine.take(batch)
        for (_, event), row in zip(batch, features, strict=True):
            assert disagreements(row, oracle.take(event)[1] or {}) == {}
    check_no_orphans(engine)
    assert header(engine, b"u")[H_FIRST_CHUNK] > start
