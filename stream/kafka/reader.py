"""A reader of topics outside any consumer group: it commits nothing and disturbs no other reader."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Self

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from stream.errors import BrokerError
from stream.kafka.clients import client_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from stream.settings import Settings

__all__ = ["TopicReader"]

#: Longest wait of one poll: a reader that should stop notices it at least this often.
_POLL_MS: Final = 250

#: Wait of the last poll, behind the end that the broker reported.
_LAST_POLL_MS: Final = 50


class TopicReader:
    """Reads records of topics that it assigns itself; a context manager.

    Parameters
    ----------
    options
        Further options of :class:`kafka.KafkaConsumer`.

    Raises
    ------
    BrokerError
        In any method, if the broker cannot be reached or refuses; the error names the topics.
    """

    def __init__(self, settings: Settings, *topics: str, **options: Any) -> None:
        self._settings = settings
        self._topics = topics
        self._options = options
        self._consumer: Any = None

    def __enter__(self) -> Self:
        try:
            self._consumer = KafkaConsumer(
                **client_config(self._settings.kafka),
                group_id=None,
                enable_auto_commit=False,
                **{
                    "auto_offset_reset": "earliest",
                    "isolation_level": self._settings.kafka.isolation_level,
                    **self._options,
                },
            )
        except KafkaError as error:
            raise self._failed(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.close()
        if isinstance(error, KafkaError):
            raise self._failed(error) from error

    def _failed(self, error: KafkaError) -> BrokerError:
        names = ", ".join(self._topics)
        return BrokerError(f"{names} cannot be read from {self._settings.kafka.bootstrap_servers}: {error}")

    def partitions(self) -> list[TopicPartition]:
        """Return the partitions of the topics, as the broker has them."""
        return [
            TopicPartition(topic, number)
            for topic in self._topics
            for number in sorted(self._consumer.partitions_for_topic(topic) or ())
        ]

    def bounds(self) -> dict[int, tuple[int, int]]:
        """Return the first offset and the end of each partition of the first topic, by partition."""
        own = [partition for partition in self.partitions() if partition.topic == self._topics[0]]
        starts, ends = self._consumer.beginning_offsets(own), self._consumer.end_offsets(own)
        return {partition.partition: (starts[partition], ends[partition]) for partition in own}

    def read_to_end(self, partitions: Sequence[int], start: int | None = None) -> Iterator[Any]:
        """Yield the records that partitions of the first topic hold now, partition after partition.

        Parameters
        ----------
        start
            Offset to begin at; a partition that no longer has it yields nothing. None: the beginning.
        """
        began_ms = time.time_ns() // 1_000_000
        for number in partitions:
            partition = TopicPartition(self._topics[0], number)
            self._consumer.assign([partition])
            first = self._consumer.beginning_offsets([partition])[partition]
            end = self._consumer.end_offsets([partition])[partition]
            if start is not None and start < first:
                continue
            self._consumer.seek(partition, first if start is None else start)
            yield from self._up_to(partition, end, began_ms)

    def _up_to(self, partition: TopicPartition, end: int, began_ms: int) -> Iterator[Any]:
        """Yield the records before ``end``, and later ones that were produced before ``began_ms``.

        The embedded broker may report an end before records that it has acknowledged.
        """
        while True:
            behind = self._consumer.position(partition) >= end
            batches = self._consumer.poll(timeout_ms=_LAST_POLL_MS if behind else _POLL_MS)
            for record in batches.get(partition, ()):
                if record.offset >= end and record.timestamp >= began_ms:
                    return
                yield record
            if behind and not batches:
                return

    def follow(
        self, *, from_beginning: bool, stop: Callable[[], bool], poll_ms: int = _POLL_MS
    ) -> Iterator[Mapping[TopicPartition, Sequence[Any]]]:
        """Yield the records of each poll, by partition, until ``stop`` returns True; a poll may be empty."""
        consumer, partitions = self._consumer, self.partitions()
        consumer.assign(partitions)
        if from_beginning:
            consumer.seek_to_beginning(*partitions)
        else:
            consumer.seek_to_end(*partitions)
            for partition in partitions:
                consumer.position(partition)  # resolved now: records from here on are read
        while not stop():
            yield consumer.poll(timeout_ms=poll_ms)

    def last_records(self, timeout_seconds: float, count: int = 1) -> list[Any]:
        """Return the last ``count`` records of each partition, or fewer, as far as they arrive in time."""
        consumer, partitions = self._consumer, self.partitions()
        starts, ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
        missing = {partition: count for partition in partitions if ends[partition] > starts[partition]}
        consumer.assign(list(missing))
        for partition in missing:
            consumer.seek(partition, max(starts[partition], ends[partition] - count))
        last: dict[TopicPartition, deque[Any]] = {}
        deadline = time.monotonic() + timeout_seconds
        while missing and time.monotonic() < deadline:
            for partition, records in consumer.poll(timeout_ms=_POLL_MS).items():
                last.setdefault(partition, deque(maxlen=count)).extend(records)
            for partition, back in list(missing.items()):
                if consumer.position(partition) < ends[partition]:
                    continue
                if len(last.get(partition, ())) >= count or ends[partition] - back <= starts[partition]:
                    del missing[partition]
                    continue
                # The end of the log holds other things too: markers, and records of aborted transactions.
                last.pop(partition, None)
                missing[partition] = 2 * back
                consumer.seek(partition, max(starts[partition], ends[partition] - 2 * back))
        return [record for records in last.values() for record in records]
