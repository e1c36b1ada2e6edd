"""A broker for measurements: filled at full speed, measured from outside, emptied between rounds."""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import confluent_kafka
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.workload import PARTITIONS
from stream.errors import BrokerError
from stream.kafka.local.apache import KafkaBroker
from stream.kafka.local.embedded import EmbeddedBroker
from stream.settings import KafkaSettings, MetricsSettings, Settings, TopicSettings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from stream.kafka.local.base import Broker

__all__ = ["BROKER_SETTINGS", "Cluster", "running"]

#: Beside the product's own development settings, and shown with the figures. A broker's own thread pools
#: are left alone; segments are small enough for deletion to give space back between rounds.
BROKER_SETTINGS: Final = {"log.segment.bytes": str(256 << 20), "log.segment.delete.delay.ms": "1000"}
_TIMEOUT_SECONDS: Final = 120.0

#: What a record to send consists of: partition, key, value, headers.
Sent = tuple[int, bytes, "bytes | None", "list[tuple[str, bytes]] | None"]


class Cluster:
    """A running broker.

    Parameters
    ----------
    core
        Of the workers that use it, where they are one at a time; None: they share all cores.
    """

    def __init__(self, broker: Broker, core: int | None = None) -> None:
        self.broker = broker
        self._core = core
        self.address = broker.bootstrap_servers
        self._admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
        self._watcher = confluent_kafka.Consumer(
            {"bootstrap.servers": self.address, "group.id": "watcher", "log_level": 0}
        )

    def settings(self, folder: Path, bundle: Path, source: str, **kafka: Any) -> Settings:
        """Return settings of a worker that has nothing in common with another but its source."""
        unique = uuid.uuid4().hex[:8]
        own = {
            name: f"{name}-{unique}" for name in ("alerts", "decisions", "labels", "dead_letters", "control")
        }
        return Settings(
            _env_file=None,  # type: ignore[call-arg]
            app_id=f"bench-{unique}",
            state_dir=folder / unique,
            bundle=bundle,
            core=self._core,
            kafka=KafkaSettings(bootstrap_servers=self.address, **kafka),
            topics=TopicSettings(transactions=source, partitions=PARTITIONS, **own),
            metrics=MetricsSettings(port=0),
        )

    def create(self, topic: str, *, compacted: bool = False) -> None:
        """Create a topic with the partitions of the workload."""
        config = {"cleanup.policy": "compact" if compacted else "delete"}
        made = self._admin.create_topics([NewTopic(topic, PARTITIONS, 1, config=config)])
        made[topic].result(_TIMEOUT_SECONDS)

    def delete(self, topics: Iterable[str]) -> None:
        """Delete the topics that are there."""
        there = self._admin.list_topics(timeout=_TIMEOUT_SECONDS).topics
        wanted = [topic for topic in topics if topic in there]
        if wanted:
            for done in self._admin.delete_topics(wanted).values():
                done.result(_TIMEOUT_SECONDS)

    def delete_like(self, part: str) -> None:
        """Delete every topic whose name contains ``part``."""
        there = self._admin.list_topics(timeout=_TIMEOUT_SECONDS).topics
        self.delete([name for name in there if part in name])

    def fill(self, topic: str, records: Iterable[Sent]) -> int:
        """Produce records and wait until the broker has them; returns how many."""
        failed: list[Any] = []

        def report(error: Any, _: Any) -> None:
            if error is not None:
                failed.append(error)

        producer = confluent_kafka.Producer(
            {
                "bootstrap.servers": self.address,
                "log_level": 0,
                "acks": "all",
                "linger.ms": 50,
                "batch.size": 900_000,
                "queue.buffering.max.messages": 1_000_000,
                "on_delivery": report,
            }
        )
        count = 0
        for partition, key, value, headers in records:
            while True:
                try:
                    producer.produce(topic, value, key, partition=partition, headers=headers)
                    break
                except BufferError:
                    producer.poll(0.1)
            count += 1
            if count % 5000 == 0:
                producer.poll(0)
        if producer.flush(_TIMEOUT_SECONDS) or failed:
            raise BrokerError(f"{topic} could not be filled: {failed[:1] or 'timed out'}")
        return count

    def ends(self, topic: str) -> list[int]:
        """Return the end offset of each partition; zeros where the topic is not there yet."""
        found = []
        for partition in range(PARTITIONS):
            try:
                _, end = self._watcher.get_watermark_offsets(TopicPartition(topic, partition), timeout=30)
            except confluent_kafka.KafkaException:
                # A topic that was asked for too early stays unknown until its metadata are asked for anew.
                self._watcher.list_topics(topic, timeout=_TIMEOUT_SECONDS)
                end = 0
            found.append(end)
        return found


@contextmanager
def running(kind: str, folder: Path, core: int | None = None) -> Iterator[Cluster]:
    """Run a broker of the kind; Apache Kafka keeps its topics in ``folder``."""
    broker: Broker = (
        EmbeddedBroker() if kind == "embedded" else KafkaBroker(data_dir=folder, extra_config=BROKER_SETTINGS)
    )
    with broker:
        yield Cluster(broker, core)


def with_headers(
    records: Iterable[tuple[int, bytes, bytes]], headers: Mapping[str, bytes] | None = None
) -> Iterator[Sent]:
    """Return records as :meth:`Cluster.fill` takes them, each with the same headers."""
    own = None if headers is None else list(headers.items())
    for partition, key, value in records:
        yield partition, key, value, own
