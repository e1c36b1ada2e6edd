"""Records to and from a topic, without a worker."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from stream.kafka.clients import client_config
from support.helpers import PATIENCE_SECONDS

if TYPE_CHECKING:
    from stream.settings import Settings

ConsumerRecord = tuple[int, bytes | None, bytes | None, list[tuple[str, bytes]]]


def produce(settings: Settings, topic: str, records: list[tuple[bytes | None, bytes | None]]) -> list[int]:
    producer = KafkaProducer(**client_config(settings.kafka), acks="all")
    try:
        sent = [
            producer.send(topic, key=key, value=value, headers=[("n", str(at).encode()), ("empty", b"")])
            for at, (key, value) in enumerate(records)
        ]
        return [future.get(timeout=PATIENCE_SECONDS).partition for future in sent]
    finally:
        producer.close()


def consume(settings: Settings, topic: str, count: int) -> list[ConsumerRecord]:
    consumer = KafkaConsumer(
        **client_config(settings.kafka), enable_auto_commit=False, auto_offset_reset="earliest"
    )
    try:
        consumer.assign([TopicPartition(topic, at) for at in sorted(consumer.partitions_for_topic(topic))])
        found: list[ConsumerRecord] = []
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(found) < count and time.monotonic() < deadline:
            for batch in consumer.poll(timeout_ms=200).values():
                found += [(record.partition, record.key, record.value, record.headers) for record in batch]
        return found
    finally:
        consumer.close()
