"""Compile everything before the first transaction, so that none of them waits for a compiler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson

from stream.features.entity_log import CHUNK as LOG_CHUNK
from stream.features.history import MemoryRecords
from stream.features.kernel import CHUNK, HEAD
from stream.outputs import Message
from stream.pipeline import Batch, Record
from stream.profiled import ProfiledPipeline

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stream.pipeline import Pipeline, Sends

__all__ = ["warm_up"]

_DAY_MS: Final = 86_400_000
_MINUTE_MS: Final = 60_000
_START_MS: Final = 1_700_000_000_000
#: More than a resident may keep loaded.
_LONG: Final = 48 * CHUNK


def warm_up(pipeline: Pipeline) -> None:
    """Send made-up transactions of one user through every path of the pipeline, into memory."""
    memory = MemoryRecords()
    offset = 0

    def send(times_ms: Iterable[int]) -> None:
        nonlocal offset
        records = []
        for time_ms in times_ms:
            records.append(Record(offset, time_ms, b"warm-up", _value(offset, time_ms)))
            offset += 1
        plan = pipeline.process(Batch("warm-up", 0, 1, records), memory, _START_MS + 100 * _DAY_MS)
        memory.write(plan.writes)

    # From a user's first event to sealed chunks that are forgotten again; then one that is late. Singly and
    # in pairs, since an array of one row has another layout for the compiler.
    for number in range(0, 2 * HEAD, 3):
        times_ms = [_START_MS + (number + later) * _DAY_MS // 2 for later in range(3)]
        send(times_ms[:1])
        send(times_ms[1:])
    send([_START_MS])
    # A long history, of which some is unloaded when the next event comes.
    newest_ms = _START_MS + HEAD * _DAY_MS
    send(newest_ms + number * _MINUTE_MS for number in range(1, _LONG + 1))
    newest_ms += _LONG * _MINUTE_MS
    send([newest_ms + _MINUTE_MS])
    # As after a rebalance: it is read anew. An event out of order opens all of it.
    pipeline.forget()
    send([newest_ms])
    pipeline.forget()
    if isinstance(pipeline, ProfiledPipeline):
        _warm_up_stages(pipeline)


def _warm_up_stages(pipeline: ProfiledPipeline) -> None:
    """Send made-up transactions and labels through all stages, until chunks are sealed, and read those."""
    topics, memory = pipeline.topics, MemoryRecords()
    now_ms = _START_MS + 100 * _DAY_MS
    offsets: dict[tuple[str, int], int] = {}

    def send(to: Sends) -> None:
        while to:
            following: Sends = {}
            for (topic, partition), messages in to.items():
                first = offsets.get((topic, partition), 0)
                offsets[topic, partition] = first + len(messages)
                records = [
                    Record(first + number, now_ms, message.key, message.value)
                    for number, message in enumerate(messages)
                ]
                plan = pipeline.process(Batch(topic, partition, 1, records), memory, now_ms)
                memory.write(plan.writes)
                for sends in (plan.sends, plan.asks):
                    for place, more in sends.items():
                        following.setdefault(place, []).extend(more)
            to = following

    for number in range(LOG_CHUNK + 2):
        time_ms = _START_MS + number * _DAY_MS
        send({(topics.transactions, 0): [Message(b"warm-up", _value(number, time_ms))]})
        send({(topics.labels, 0): [Message(b"warm-up", _label(number, time_ms))]})
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
