"""The cost of events out of order: part 4 of ``python -m benchmarks.windows``."""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.windows_users import CONFIG, MONTH_MS, START_MS, Users
from stream.features.windows.arrays import OUT_SIZE, SCORED
from stream.features.windows.cache import HistoryCache
from stream.features.windows.history import advance
from stream.state.store import MemoryStore

if TYPE_CHECKING:
    from stream.features.windows.events import HistoryEvents

__all__ = ["order_cost", "print_order"]

#: Events of the user within 30 days.
_LENGTHS: Final = (20_000, 200_000)

#: Share of the events that are late, and by how much.
_CASES: Final = ((0.0, 0), (0.05, 20), (0.5, 20), (0.05, 60_000), (0.5, 60_000))

_BATCH: Final = 500
_MERCHANTS: Final = 200
_CACHE_BYTES: Final = 256 << 20

#: What is promised, at the first of the lengths.
_TARGET: Final = 3.0


def _late(events: HistoryEvents, share: float, late_ms: int, random: np.random.Generator) -> HistoryEvents:
    """Return the events, a share of them so much earlier than the newest event before them."""
    times = events.time_ms.copy()
    newest = int(times[0])
    for index in range(1, len(times)):
        if random.random() < share:
            times[index] = newest - late_ms
        newest = max(newest, int(times[index]))
    return dataclasses.replace(events, time_ms=times)


def _measure(length: int, share: float, late_ms: int, state: dict[bytes, bytes], users: Users) -> float:
    """Return the seconds that an event takes."""
    memory, cache = MemoryStore(state), HistoryCache(_CACHE_BYTES)
    random = np.random.default_rng(length)
    users = dataclasses.replace(
        users, clock_ms=users.clock_ms.copy(), random=np.random.default_rng(length + 1)
    )
    features = np.empty((_BATCH, OUT_SIZE))
    seconds, rounds = 0.0, 8
    for number in range(rounds + 1):
        events = _late(users.events(np.zeros(_BATCH, np.int64)), share, late_ms, random)
        begun = time.perf_counter()
        result = advance(events, CONFIG, memory, features, cache=cache)
        if number:  # the first batch unpacks the history
            seconds += time.perf_counter() - begun
        if result.errors or (result.outcome != SCORED).any():
            msg = f"a made-up event was not scored: {result.errors}"
            raise RuntimeError(msg)
        memory.write(result.writes)
    return seconds / (rounds * _BATCH)


def order_cost(rounds: int, *, quick: bool) -> list[dict[str, Any]]:
    """Measure the engine with its cache and a store in memory, in batches of one busy user."""
    rows = []
    for length in _LENGTHS[:1] if quick else _LENGTHS:
        users = Users(
            [b"busy"], np.array([START_MS]), MONTH_MS // length, _MERCHANTS, np.random.default_rng(length)
        )
        memory, cache = MemoryStore(), HistoryCache(_CACHE_BYTES)
        features = np.empty((_BATCH, OUT_SIZE))
        for _ in range(length * 11 // 10 // _BATCH):
            events = users.events(np.zeros(_BATCH, np.int64))
            memory.write(advance(events, CONFIG, memory, features, cache=cache).writes)
        found: dict[tuple[float, int], list[float]] = {case: [] for case in _CASES}
        for number in range(rounds + 1):
            for case in _CASES:
                seconds = _measure(length, *case, memory, users)
                if number:
                    found[case].append(seconds)
        ordered = found[_CASES[0]]
        rows += [
            {
                "events_in_30_days": length,
                "late_share": share,
                "late_ms": late_ms,
                "us_per_event": round(1e6 * statistics.median(found[share, late_ms]), 2),
                "ratio": round(
                    statistics.median(
                        late / plain for late, plain in zip(found[share, late_ms], ordered, strict=True)
                    ),
                    2,
                ),
            }
            for share, late_ms in _CASES
        ]
    return rows


def print_order(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    print("\n4. Events out of order: microseconds of the engine per event, ratio to events in order\n")
    print(f"{'events/30 d':>12}{'late share':>12}{'late by':>10}{'us/event':>10}{'ratio':>8}{'target':>10}")
    for row in rows:
        verdict = ""
        if row["late_share"] and row["events_in_30_days"] == _LENGTHS[0]:
            verdict = "met" if row["ratio"] <= _TARGET else "MISSED"
        print(
            f"{row['events_in_30_days']:>12,}{row['late_share']:>12.0%}{row['late_ms'] / 1000:>8.2f} s"
            f"{row['us_per_event']:>10}{row['ratio']:>8}{verdict:>10}"
        )
