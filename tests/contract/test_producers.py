"""Producers with transactions, and topics whose retention is shorter than a worker's pause."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import confluent_kafka
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from support.streams import Stream, Worker, until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from stream.kafka.local.base import Broker

pytestmark = pytest.mark.kafka

START_MS = 1_750_000_000_000


def value_of(name: str) -> bytes:
    return json.dumps(
        {
            "transaction_id": name,
            "user_id": "user-1",
            "event_time": START_MS,
            "amount": "12.50",
            "currency": "EUR",
            "channel": "web",
            "transaction_type": "purchase",
        }
    ).encode()


class Producer:
    """librdkafka's producer, with or without transactions."""

    def __init__(self, stream: Stream, name: str = "") -> None:
        self.topic = stream.settings.topics.transactions
        options: dict[str, Any] = {
            "bootstrap.servers": stream.settings.kafka.bootstrap_servers,
            "linger.ms": 1,
        }
        if name:
            options["transactional.id"] = f"{stream.settings.app_id}-{name}"
        self.client = confluent_kafka.Producer(options)
        if name:
            self.client.init_transactions()

    def send(self, names: Iterable[str]) -> None:
        """Send transactions of one user, and wait until the broker has written them."""
        for name in names:
            self.client.produce(self.topic, key=b"user-1", value=value_of(name))
        assert self.client.flush(30) == 0


def names(kind: str, count: int = 5) -> list[str]:
    return [f"{kind}-{at}" for at in range(count)]


def decided(stream: Stream) -> list[str]:
    return [found.json["transaction_id"] for found in stream.read("decisions")]


class Offsets:
    """The group's commits and the ends of the source, as anybody sees them."""

    def __init__(self, stream: Stream) -> None:
        self.consumer = confluent_kafka.Consumer(
            {
                "bootstrap.servers": stream.settings.kafka.bootstrap_servers,
                "group.id": stream.settings.app_id,
                "enable.auto.commit": False,
            }
        )
        topics = stream.settings.topics
        self.partitions = [TopicPartition(topics.transactions, at) for at in range(topics.partitions)]

    def bounds(self) -> list[tuple[int, int]]:
        return [self.consumer.get_watermark_offsets(partition, timeout=30) for partition in self.partitions]

    def all_committed(self) -> bool:
        """Whether the group has committed everything up to the end of each partition that has anything."""
        committed = self.consumer.committed(self.partitions, timeout=30)
        return all(
            end in {0, partition.offset} for partition, (_, end) in zip(committed, self.bounds(), strict=True)
        )


@pytest.fixture
def offsets() -> Iterator[Any]:
    made: list[Offsets] = []

    def make(stream: Stream) -> Offsets:
        made.append(Offsets(stream))
        return made[-1]

    yield make
    for each in made:
        each.consumer.close()


def follow(stream: Stream, worker: Worker, wanted: Iterable[str]) -> None:
    """Return once exactly the wanted transactions are decided, each once."""
    expected = sorted(wanted)

    def done() -> bool:
        assert worker.process.poll() is None, worker.log
        return len(decided(stream)) >= len(expected)

    until(done, f"not decided: {expected}")
    assert sorted(decided(stream)) == expected


def test_only_what_is_committed_is_decided_and_markers_are_no_lag(
    kafka_broker: Broker, bundle_folder: Path, tmp_path: Path, offsets: Any
) -> None:
    # A second: the watchdog ends a worker after two without progress while anything seems to wait.
    stream = Stream(kafka_broker, tmp_path, bundle_folder, watchdog={"stall_seconds": 1})
    seen = offsets(stream)
    try:
        worker = stream.start()
        plain, careful, other = Producer(stream), Producer(stream, "a"), Producer(stream, "b")
        careful.client.begin_transaction()
        careful.send(names("committed"))
        careful.client.commit_transaction()
        careful.client.begin_transaction()
        careful.send(names("aborted"))
        careful.client.abort_transaction()
        plain.send(names("plain"))
        follow(stream, worker, names("committed") + names("plain"))
        until(seen.all_committed, "the group has not committed the marker at the end")
        until(lambda: worker.metric("riskstream_lag_records") == 0, "there is lag")

        other.client.begin_transaction()
        other.send(names("open"))
        plain.send(names("behind"))
        until(
            lambda: worker.metric("riskstream_open_transaction_records") == 10,
            "records behind the open transaction are not reported",
        )
        until(lambda: worker.metric("riskstream_lag_records") == 0, "there is lag")
        assert len(decided(stream)) == 10
        other.client.commit_transaction()
        everything = [*names("committed"), *names("plain"), *names("open"), *names("behind")]
        follow(stream, worker, everything)
        until(
            lambda: worker.metric("riskstream_open_transaction_records") == 0, "the transaction is still open"
        )

        # Nothing but a marker follows; and a marker is all that a restarted worker finds.
        careful.client.begin_transaction()
        careful.send(names("aborted again"))
        careful.client.abort_transaction()
        until(seen.all_committed, "the group has not committed what lies behind an aborted transaction")
        assert worker.stop() == 0
        careful.client.begin_transaction()
        careful.send(names("aborted while nobody looked"))
        careful.client.abort_transaction()
        worker = stream.start()
        until(seen.all_committed, "a restarted worker does not pass an aborted transaction")
        plain.send(names("last"))
        follow(stream, worker, [*everything, *names("last")])
        until(lambda: worker.metric("riskstream_lag_records") == 0, "there is lag")
        assert worker.metric("riskstream_expired_records_total") == 0
        assert worker.process.poll() is None, worker.log
    finally:
        stream.close()


def test_whoever_wants_it_reads_what_is_not_committed(
    kafka_broker: Broker, bundle_folder: Path, tmp_path: Path
) -> None:
    stream = Stream(kafka_broker, tmp_path, bundle_folder, kafka={"isolation_level": "read_uncommitted"})
    try:
        producer = Producer(stream, "a")
        producer.client.begin_transaction()
        producer.send(names("aborted"))
        producer.client.abort_transaction()
        producer.client.begin_transaction()
        producer.send(names("open"))
        follow(stream, stream.start(), names("aborted") + names("open"))
        producer.client.abort_transaction()
    finally:
        stream.close()


def test_what_retention_deletes_unread_is_counted_and_nothing_waits(
    kafka_broker: Broker, bundle_folder: Path, tmp_path: Path, offsets: Any
) -> None:
    stream = Stream(kafka_broker, tmp_path, bundle_folder, watchdog={"stall_seconds": 1})
    seen = offsets(stream)
    try:
        worker, producer = stream.start(), Producer(stream)
        producer.send(names("read"))
        follow(stream, worker, names("read"))
        assert worker.stop() == 0
        producer.send(names("unread", 7))
        admin = AdminClient({"bootstrap.servers": stream.settings.kafka.bootstrap_servers})
        ends = [
            TopicPartition(partition.topic, partition.partition, end)
            for partition, (_, end) in zip(seen.partitions, seen.bounds(), strict=True)
        ]
        for future in admin.delete_records(ends).values():
            future.result(30)
        worker = stream.start()
        until(seen.all_committed, "the group's commit stays behind the log")
        assert worker.metric("riskstream_expired_records_total") == 7
        assert "deleted the offsets 5 to 11 before they were read" in worker.log
        producer.send(names("new"))
        follow(stream, worker, names("read") + names("new"))
        until(lambda: worker.metric("riskstream_lag_records") == 0, "there is lag")
    finally:
        stream.close()
