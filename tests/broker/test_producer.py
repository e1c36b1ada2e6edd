"""Delivery: whole lists to real brokers, once each, and nothing from a former owner."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaConsumer, TopicPartition

from stream.errors import BrokerError, FencedError, TopicMismatchError
from stream.events.records import ProducerRecord
from stream.kafka import admin
from stream.kafka.clients import aiokafka_config, client_config
from stream.kafka.fencing import OWNER_KEY, PartitionFencing
from stream.kafka.producer import BatchProducer
from stream.kafka.topics import changelog_topic
from stream.monitoring.watchdog import log_ends
from support.helpers import settings_for

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from stream.kafka.local.base import Broker
    from stream.settings import Settings


def connected(
    settings: Settings,
    work: Callable[[BatchProducer, BatchProducer], Awaitable[Any]],
    timeout_seconds: float = 10.0,
) -> Any:
    """Run ``work`` with two connected producers of the same deployment."""

    async def run() -> Any:
        pair = [BatchProducer(aiokafka_config(settings.kafka), 10.0, timeout_seconds) for _ in range(2)]
        try:
            for producer in pair:
                await producer.start([settings.topics.alerts, changelog_topic(settings)])
            return await work(*pair)
        finally:
            for producer in pair:
                await producer.stop()

    return asyncio.run(run())


def values(settings: Settings, topic: str, partition: int) -> list[tuple[bytes | None, bytes | None]]:
    reader = KafkaConsumer(**client_config(settings.kafka), auto_offset_reset="earliest")
    try:
        tp = TopicPartition(topic, partition)
        reader.assign([tp])
        end = reader.end_offsets([tp])[tp]
        found: list[Any] = []
        while reader.position(tp) < end or reader.poll(timeout_ms=100):
            for batch in reader.poll(timeout_ms=100).values():
                found += batch
        return [(record.key, record.value) for record in found]
    finally:
        reader.close()


class Store:
    """What the owner needs of the local state."""

    def __init__(self, reached: int | None) -> None:
        self.held = reached
        self.written: list[tuple[int, list[tuple[bytes, bytes | None]], int]] = []

    def reached(self, _partition: int) -> int | None:
        return self.held

    def write(self, partition: int, writes: Sequence[tuple[bytes, bytes | None]], offset: int) -> None:
        self.written.append((partition, list(writes), offset))


def test_lists_arrive_whole_and_in_order(broker: Broker) -> None:
    settings = settings_for(broker)
    admin.create_topics(settings)
    topic = settings.topics.alerts
    # Three record batches for one partition, one for another, none for a third.
    large = [ProducerRecord(b"k%d" % at, bytes([at]) * 300_000, (("h", b"v"),)) for at in range(8)]
    small = [ProducerRecord(None, b"x"), ProducerRecord(b"k", None)]

    async def work(producer: BatchProducer, _: BatchProducer) -> None:
        first = await producer.deliver([(topic, 0, large), (topic, 1, small), (topic, 2, [])])
        assert first == {(topic, 0): 7, (topic, 1): 1}
        assert await producer.deliver([(topic, 0, small)]) == {(topic, 0): 9}
        assert await producer.deliver([]) == {}

    connected(settings, work)
    assert values(settings, topic, 0) == [(one.key, one.value) for one in [*large, *small]]


def test_a_topic_that_is_not_there_is_one_readable_error(broker: Broker) -> None:
    settings = settings_for(broker)
    admin.create_topics(settings)

    async def work(producer: BatchProducer, _: BatchProducer) -> None:
        with pytest.raises(BrokerError, match="records were not delivered"):
            await producer.deliver([("no-such-topic", 0, [ProducerRecord(b"k", b"v")])])

    connected(settings, work, timeout_seconds=1.0)


def test_a_former_owner_is_refused(kafka_broker: Broker) -> None:
    settings = settings_for(kafka_broker)
    admin.create_topics(settings)
    topic = changelog_topic(settings)

    async def work(old: BatchProducer, new: BatchProducer) -> None:
        stores = Store(None), Store(None)
        await PartitionFencing(settings, old, lambda: stores[0]).take([0, 1])
        await old.deliver(
            [(topic, 0, [ProducerRecord(b"a", b"1")]), (topic, 1, [ProducerRecord(b"b", b"1")])]
        )
        await PartitionFencing(settings, new, lambda: stores[1]).take([0])
        with pytest.raises(FencedError, match="another worker has taken"):
            await old.deliver([(topic, 0, [ProducerRecord(b"a", b"stale")])])
        await old.deliver([(topic, 1, [ProducerRecord(b"b", b"2")])])  # still its own
        await new.deliver([(topic, 0, [ProducerRecord(b"a", b"2")])])
        # Back again: the epoch rises once more, and the first one writes.
        await PartitionFencing(settings, old, lambda: stores[0]).take([0])
        await old.deliver([(topic, 0, [ProducerRecord(b"a", b"3")])])
        with pytest.raises(FencedError):
            await new.deliver([(topic, 0, [ProducerRecord(b"a", b"stale")])])

    connected(settings, work)
    kept = [(key, value) for key, value in values(settings, topic, 0) if key != OWNER_KEY]
    assert kept == [(b"a", b"1"), (b"a", b"2"), (b"a", b"3")]
    assert [value for key, value in values(settings, topic, 1) if key == b"b"] == [b"1", b"2"]


def test_the_owner_record_is_stored_where_nothing_else_is_missing(kafka_broker: Broker) -> None:
    settings = settings_for(kafka_broker)
    admin.create_topics(settings)
    topic = changelog_topic(settings)

    async def work(producer: BatchProducer, _: BatchProducer) -> None:
        fresh = Store(None)
        await PartitionFencing(settings, producer, lambda: fresh).take([0])
        assert fresh.written == []  # it must restore from the beginning
        last = (await producer.deliver([(topic, 0, [ProducerRecord(b"a", b"1")])]))[topic, 0]
        up_to_date, behind, ahead = Store(last), Store(last), Store(last + 100)
        await PartitionFencing(settings, producer, lambda: up_to_date).take([0])
        [(partition, [(key, _value)], offset)] = up_to_date.written
        assert (partition, key, offset) == (0, OWNER_KEY, last + 1)
        await PartitionFencing(settings, producer, lambda: behind).take([0])
        assert behind.written == []
        with pytest.raises(TopicMismatchError, match="the broker has lost records"):
            await PartitionFencing(settings, producer, lambda: ahead).take([0])

    connected(settings, work)


def test_ends_are_those_of_the_log(kafka_broker: Broker) -> None:
    settings = settings_for(kafka_broker)
    admin.create_topics(settings)
    topic = settings.topics.alerts

    async def work(producer: BatchProducer, _: BatchProducer) -> None:
        # Also that both leaders are there: a topic just made has none for a moment.
        await producer.deliver(
            [(topic, 0, [ProducerRecord(b"a", b"1")]), (topic, 1, [ProducerRecord(b"a", b"1")] * 3)]
        )
        assert await log_ends(producer.client, topic, [0, 1]) == {0: 1, 1: 3}
        assert await log_ends(producer.client, topic, [0, 1], earliest=True) == {0: 0, 1: 0}

    connected(settings, work)
