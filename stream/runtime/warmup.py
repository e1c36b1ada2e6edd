"""Compile everything before the first transaction, so that none of them waits for a compiler."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from stream.features.history import MemoryRecords
from stream.features.kernel import HEAD
from stream.pipeline import Batch, Record

if TYPE_CHECKING:
    from stream.pipeline import Pipeline

__all__ = ["warm_up"]


def warm_up(pipeline: Pipeline) -> None:
    """Send made-up transactions of one user through every path of the pipeline, into memory."""
    memory = MemoryRecords()
    day_ms = 86_400_000
    start_ms = 1_700_000_000_000
    for number in range(2 * HEAD + 2):
        late = number == 2 * HEAD + 1
        time_ms = start_ms + (0 if late else number * day_ms // 2)
        value = orjson.dumps(
            {
                "transaction_id": f"warm-up-{number}",
                "user_id": "warm-up",
                "event_time": time_ms,
                "amount": 1,
                "currency": "EUR",
                "channel": "warm-up",
                "transaction_type": "warm-up",
                "merchant_id": f"warm-up-{number % 3}",
            }
        )
        record = Record(number, time_ms, b"warm-up", value)
        plan = pipeline.process(Batch("warm-up", 0, 1, [record]), memory, start_ms + 100 * day_ms)
        memory.write(plan.writes)
