"""Faust apps without a broker: their consumers with made-up fetches, and their tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import faust
from aiokafka.structs import ConsumerRecord
from faust.types import TP

from stream.runtime.faust_adapter.app import PassThroughSchema, StreamApp
from stream.runtime.faust_adapter.consumer import BatchTransport
from stream.runtime.faust_adapter.store import HistoryTable, RocksDBStore

if TYPE_CHECKING:
    from pathlib import Path

TOPIC = "transactions"

TPS = [TP(TOPIC, 0), TP(TOPIC, 1)]


def make_app(folder: Path, kind: type[faust.App] = faust.App, **changes: Any) -> Any:
    options = {
        "broker": "kafka://127.0.0.1:1",
        "store": "rocksdb://",
        "datadir": str(folder),
        "autodiscover": False,
        "web_enabled": False,
        "topic_disable_leader": True,
        "topic_allow_declare": False,
        "stream_wait_empty": True,
        "table_standby_replicas": 0,
    } | changes
    return kind("seams", **options)


def record(partition: int, offset: int) -> ConsumerRecord:
    key, value = f"k{offset}".encode(), f"v{offset}".encode()
    return ConsumerRecord(TOPIC, partition, offset, 1_000 + offset, 0, key, value, None, 2, 2, ())


FETCHED = {TPS[0]: [record(0, at) for at in range(5)], TPS[1]: [record(1, at) for at in range(3)]}


def make_consumer(
    app: Any,
    transport: type,
    fetched: dict[TP, list[ConsumerRecord]],
    buffered: list[dict[TP, list[ConsumerRecord]]] | None = None,
) -> Any:
    """Return the app's consumer of the given transport, whose next fetch gives these records.

    ``buffered`` is what the client has beyond them, a poll's worth each.
    """
    app.transport = transport(app.conf.broker_consumer, app)

    class Fetching(app.transport.Consumer):  # type: ignore[misc, name-defined]
        async def _wait_next_records(self, timeout: float) -> Any:  # noqa: ARG002, ASYNC109
            return fetched, set(fetched)

        async def _getmany(self, active_partitions: Any, timeout: float) -> Any:  # noqa: ARG002, ASYNC109
            return buffered.pop(0) if buffered else {}

        def highwater(self, tp: TP) -> int:  # noqa: ARG002
            return 100

    app.transport.Consumer = Fetching
    consumer = app.consumer
    if transport is BatchTransport:  # as after a seek to where the fetch begins
        consumer._next = {tp: batch[0].offset for tp, batch in fetched.items()}
    consumer.flow_active = True
    app.flow_control.resume()
    consumer.scheduler = (
        app.transport.SchedulingStrategy()
        if hasattr(app.transport, "SchedulingStrategy")
        else consumer.scheduler
    )
    return consumer


async def messages(consumer: Any) -> list[tuple[TP, Any]]:
    return [pair async for pair in consumer.getmany(timeout=1.0)]


async def batches(consumer: Any) -> list[tuple[TP, list[Any]]]:
    """Return what a fetch hands on of the source, by partition."""
    return [item for _, message in await messages(consumer) for item in message.value.items()]


async def begun_stream(app: Any, consumer: Any) -> tuple[Any, Any]:
    """Return an acking stream over the topic and its channel, with the fetched messages in it."""
    topic = app.topic(TOPIC, schema=PassThroughSchema(allow_empty=True))
    app.topics._acking_topics.add(TOPIC)
    stream = app.stream(topic)
    for _, message in await messages(consumer):
        message.incref()
        await stream.channel.put(app.create_event(message.key, message.value, message.headers, message))
    return stream, topic


# --- 2. the store --------------------------------------------------------------------------------------


def upstream_store(folder: Path) -> Any:
    app = make_app(folder)
    table = app.Table("history", key_type=bytes, value_type=bytes, partitions=2)
    folder.joinpath(app.conf.tabledir).mkdir(parents=True, exist_ok=True)
    return table.data


def our_store(folder: Path) -> RocksDBStore:
    app = make_app(folder, StreamApp, Table=HistoryTable)
    table = app.Table("history", key_type=bytes, value_type=bytes, partitions=2)
    app.conf.tabledir.mkdir(parents=True, exist_ok=True)
    assert isinstance(table.data, RocksDBStore)
    return table.data


def restored(numbers: range, value: bytes | None = b"v") -> list[ConsumerRecord]:
    topic = "seams-history-changelog"
    return [ConsumerRecord(topic, 1, at, 0, 0, b"k%d" % at, value, None, 2, 1, ()) for at in numbers]
