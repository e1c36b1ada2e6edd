"""Topics read from their start, a part more with every call."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kafka import KafkaConsumer, TopicPartition

from stream.kafka.clients import client_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stream.settings import Settings


#: A source record's partition and offset.
Position = tuple[int, int]

#: What is not committed was never there.
ISOLATION = "read_committed"


class Found(NamedTuple):
    """A record read back."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class Reader:
    """Reads a topic from its start, a part more with every call."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self.topic = topic
        self._consumer = KafkaConsumer(
            **client_config(settings.kafka),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level=ISOLATION,
            fetch_max_wait_ms=50,
        )
        self._consumer.assign([TopicPartition(topic, at) for at in range(settings.topics.partitions)])

    def close(self) -> None:
        self._consumer.close()

    def some(self) -> Iterator[Found]:
        """Yield what one poll brings."""
        for batch in self._consumer.poll(timeout_ms=50, max_records=5_000).values():
            for record in batch:
                headers = tuple((name, value) for name, value in record.headers)
                yield Found(record.partition, record.offset, record.key, record.value, headers)

    def ends(self) -> dict[int, int]:
        """Return where each partition ends at this moment."""
        ends = self._consumer.end_offsets(list(self._consumer.assignment()))
        return {partition.partition: end for partition, end in ends.items()}

    def rest(self) -> Iterator[Found]:
        """Yield everything up to the end at this moment."""
        ends = self._consumer.end_offsets(list(self._consumer.assignment()))
        while any(self._consumer.position(partition) < end for partition, end in ends.items()):
            yield from self.some()
