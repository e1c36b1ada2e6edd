"""Compile everything before the first transaction, so that none of them waits for a compiler.

``python -m stream.runtime.warmup BUNDLE`` compiles for a bundle and ends, for the build of an image.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson

from stream.events.decode import decode_row
from stream.events.fields import MS_PER_DAY
from stream.events.records import ProducerRecord
from stream.features.profiles.log import CHUNK as LOG_CHUNK
from stream.features.windows.arrays import CHUNK, HEAD
from stream.pipeline.in_memory import InMemoryTopology
from stream.state.store import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stream.pipeline.transactions import TransactionPipeline

__all__ = ["warm_up"]


_MINUTE_MS: Final = 60_000
_START_MS: Final = 1_700_000_000_000
_NOW_MS: Final = _START_MS + 100 * MS_PER_DAY

#: More events than the cache keeps loaded of one user.
_LONG: Final = 48 * CHUNK


def warm_up(pipeline: TransactionPipeline) -> None:
    """Send made-up transactions of one user through every path of the pipeline, in memory."""
    decode, pipeline.decode = pipeline.decode, decode_row  # they have RiskStream's names
    try:
        _warm_up(pipeline)
    finally:
        pipeline.decode = decode


def _warm_up(pipeline: TransactionPipeline) -> None:
    loop = InMemoryTopology(pipeline, MemoryStore(), _NOW_MS)
    numbers = itertools.count()

    def send(times_ms: Iterable[int]) -> None:
        messages = [ProducerRecord(b"warm-up", _value(next(numbers), time_ms)) for time_ms in times_ms]
        next(loop.send({("warm-up", 0): messages}))  # what other stages make of it comes below

    # From a user's first event to sealed chunks that expire; then a late event. In batches of one and of two,
    # since an array of one row has another layout for the compiler.
    for number in range(0, 2 * HEAD, 3):
        times_ms = [_START_MS + (number + later) * MS_PER_DAY // 2 for later in range(3)]
        send(times_ms[:1])
        send(times_ms[1:])
    send([_START_MS])
    # A long history, of which some is unloaded when the next event comes.
    newest_ms = _START_MS + HEAD * MS_PER_DAY
    send(newest_ms + number * _MINUTE_MS for number in range(1, _LONG + 1))
    newest_ms += _LONG * _MINUTE_MS
    send([newest_ms + _MINUTE_MS])
    # As after a rebalance: it is read anew. An event out of order opens all of it.
    pipeline.forget()
    send([newest_ms])
    pipeline.forget()
    if len(pipeline.consumed_topics) > 1:
        _warm_up_stages(pipeline)


def _warm_up_stages(pipeline: TransactionPipeline) -> None:
    """Send made-up transactions and labels through all stages, until chunks are sealed, and read those."""
    loop = InMemoryTopology(pipeline, MemoryStore(), _NOW_MS)
    transactions, labels, *_ = pipeline.consumed_topics
    for number in range(LOG_CHUNK + 2):
        time_ms = _START_MS + number * MS_PER_DAY
        for topic, value in ((transactions, _value), (labels, _label)):
            for _ in loop.send({(topic, 0): [ProducerRecord(b"warm-up", value(number, time_ms))]}):
                pass
        if number == LOG_CHUNK:
            pipeline.forget()
    pipeline.forget()


def _label(number: int, time_ms: int) -> bytes:
    return orjson.dumps(
        {
            "transaction_id": f"warm-up-{number}",
            "user_id": "warm-up",
            "is_fraud": number % 2 == 0,
            "event_time": time_ms,
            "label_time": time_ms,
        }
    )


def _value(number: int, time_ms: int) -> bytes:
    return orjson.dumps(
        {
            "transaction_id": f"warm-up-{number}",
            "user_id": "warm-up",
            "event_time": time_ms,
            "amount": 1,
            "currency": "EUR",
            "channel": "warm-up",
            "transaction_type": "warm-up",
            "merchant_id": f"warm-up-{number % 3}",
            "card_id": "warm-up",
            "device_id": "warm-up",
            "ip": "127.0.0.1",
        }
    )


if __name__ == "__main__":
    from stream.pipeline.effects import PipelineConfig
    from stream.pipeline.transactions import TransactionPipeline
    from stream.scoring.bundle import Bundle

    warm_up(TransactionPipeline(Bundle.load(Path(sys.argv[1])), PipelineConfig()))
