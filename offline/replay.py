"""Replay: a file's transactions sent to the stream, as fast as can be or paced.

Records carry the time of sending as Kafka's timestamp, not the event time: the broker deletes by that
timestamp, and a replayed year-old record would be gone at once. The event time is in the value.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import orjson
from kafka import KafkaProducer
from kafka.errors import KafkaError

from stream.errors import BrokerError, ConfigError
from stream.events.fields import format_event_time
from stream.kafka.clients import client_config
from stream.kafka.partitioner import partition_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from offline.data.table import Labels, TransactionTable
    from stream.settings import Settings, TopicSettings

__all__ = ["Pacing", "Record", "ReplayReport", "count_labels", "label_record", "replay", "table_records"]


#: Sleeps shorter than this cost more than they pace.
_SHORTEST_SLEEP_SECONDS: Final = 0.002

#: A stop is noticed at least this often while waiting.
_LONGEST_SLEEP_SECONDS: Final = 0.2

#: Records between two reports of progress.
_PROGRESS_EVERY: Final = 500

#: Longest time to fill a batch; it bounds the latency that pacing adds.
_LINGER_MS: Final = 5

_BATCH_BYTES: Final = 262_144


class Record(NamedTuple):
    """A record to send, and the event time at which it is due."""

    topic: str
    key: bytes
    value: bytes
    event_time_ms: int


@dataclass(frozen=True, slots=True)
class Pacing:
    """When each record is due: open loop, so a slow broker does not slow the schedule.

    Attributes
    ----------
    rate:
        Records a second.
    speed:
        Event time that passes in a second of real time: 60 sends an hour's events in a minute.

    With neither, every record is due at once.
    """

    rate: float | None = None
    speed: float | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and self.speed is not None:
            raise ConfigError("rate and speed exclude each other")
        for name, value in (("rate", self.rate), ("speed", self.speed)):
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name}: must be above 0, not {value}")

    def due_seconds(self, index: int, event_time_ms: int, first_time_ms: int) -> float:
        """Return when record ``index`` (from 0) is due, in seconds after the first."""
        if self.rate is not None:
            return index / self.rate
        if self.speed is not None:
            return max(0.0, (event_time_ms - first_time_ms) / 1000.0 / self.speed)
        return 0.0


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """The result of a replay; all in-sync replicas have acknowledged its records.

    Attributes
    ----------
    records:
        Acknowledged records by topic.
    bytes:
        Bytes of keys and values.
    late_seconds:
        The longest delay of a record after its due time: above some milliseconds, the schedule was faster
        than this machine or the broker.
    stopped:
        Whether it was stopped before the end.
    started_at:
        When the schedule began, once connected: seconds since the epoch.
    """

    records: dict[str, int]
    bytes: int
    seconds: float
    late_seconds: float
    stopped: bool
    started_at: float = 0.0

    @property
    def rate(self) -> float:
        """Records a second."""
        return sum(self.records.values()) / self.seconds if self.seconds > 0 else 0.0


def table_records(
    table: TransactionTable, topics: TopicSettings, *, labels: bool = False
) -> Iterator[Record]:
    """Yield a table's transactions in order, and with ``labels`` its labels when they become known.

    The clock is the highest event time so far: a label is sent before the first transaction with an event
    time at or after the label's time. Labels that are not known by the last event are not sent
    (:func:`count_labels` counts those that are). Invalid rows have no record.
    """
    times = table.event_time_ms[table.valid].tolist()
    known = _labels_in_order(table)
    label_times = known.time_ms.tolist() if labels else []
    index = 0
    clock = -1
    for event_time_ms, (key, value) in zip(times, table.to_records(), strict=True):
        clock = max(clock, event_time_ms)
        while index < len(label_times) and label_times[index] <= clock:
            yield label_record(table, known, index, topics.labels)
            index += 1
        yield Record(topics.transactions, key, value, event_time_ms)


def count_labels(table: TransactionTable) -> int:
    """Return how many labels :func:`table_records` sends."""
    if not table.valid.any():
        return 0
    end = table.event_time_ms[table.valid].max()
    return int((_labels_in_order(table).time_ms <= end).sum())


def _labels_in_order(table: TransactionTable) -> Labels:
    """Return the labels of valid rows, including corrected ones, in the order in which they become known.

    Empty if the file does not have the labels' times.
    """
    labels = table.labels()
    known = table.valid[labels.row] & (table.label_time_ms is not None)
    order = np.flatnonzero(known)
    order = order[np.argsort(labels.time_ms[order], kind="stable")]
    return labels.only(order)


def label_record(table: TransactionTable, labels: Labels, index: int, topic: str) -> Record:
    """Return a table's label as a record, due when it becomes known."""
    row, label_time_ms = int(labels.row[index]), int(labels.time_ms[index])
    value = orjson.dumps(
        {
            "transaction_id": table.transaction_id[row],
            "user_id": table.user_id[row],
            "is_fraud": bool(labels.is_fraud[index] == 1),
            "event_time": format_event_time(int(table.event_time_ms[row])),
            "label_time": format_event_time(label_time_ms),
        }
    )
    return Record(topic, str(table.user_id[row]).encode(), value, label_time_ms)


def replay(
    records: Iterable[Record],
    settings: Settings,
    *,
    pacing: Pacing | None = None,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> ReplayReport:
    """Send records in order and wait until every record is acknowledged.

    1. Each record goes to the partition of its key by ``topics.partitioner``; ``any`` is murmur2 here.
    2. It is sent once it is due, and never before; late records are sent at once.
    3. At the end, or once ``stop`` is true, the sent records are flushed and counted.

    ``progress`` is called with the number of records sent since its last call.

    Raises
    ------
    BrokerError
        The broker cannot be reached, or did not acknowledge a record.
    """
    pacing = pacing or Pacing()
    failures: list[Exception] = []
    sent: dict[str, int] = {}
    total_bytes = 0
    late = 0.0
    stopped = False
    try:
        producer = KafkaProducer(
            **client_config(settings.kafka),
            acks="all",
            linger_ms=_LINGER_MS,
            batch_size=_BATCH_BYTES,
            request_timeout_ms=int(settings.kafka.request_timeout_seconds * 1000),
        )
    except KafkaError as error:
        raise BrokerError(
            f"cannot create a producer for {settings.kafka.bootstrap_servers}: {error}"
        ) from error
    try:
        start = time.monotonic()
        started_at = time.time()
        first_ms: int | None = None
        pending = 0
        for index, record in enumerate(records):
            if first_ms is None:
                first_ms = record.event_time_ms
            late = max(late, _wait(start + pacing.due_seconds(index, record.event_time_ms, first_ms), stop))
            if failures or (stop is not None and stop()):
                stopped = not failures
                break
            partition = None  # the client's own choice: murmur2
            if settings.topics.partitioner == "crc32":
                partition = partition_of(record.key, settings.topics.partitions, "crc32")
            producer.send(record.topic, key=record.key, value=record.value, partition=partition).add_errback(
                failures.append
            )
            sent[record.topic] = sent.get(record.topic, 0) + 1
            total_bytes += len(record.key) + len(record.value)
            pending += 1
            if progress is not None and pending == _PROGRESS_EVERY:
                progress(pending)
                pending = 0
        producer.flush()
        seconds = time.monotonic() - start
        if progress is not None and pending:
            progress(pending)
    except KafkaError as error:
        raise BrokerError(f"sending to {settings.kafka.bootstrap_servers} failed: {error}") from error
    finally:
        producer.close(timeout=settings.kafka.request_timeout_seconds)
    if failures:
        raise BrokerError(
            f"{len(failures)} records were not acknowledged by {settings.kafka.bootstrap_servers}; "
            f"the first: {failures[0]}"
        )
    return ReplayReport(
        records=sent,
        bytes=total_bytes,
        seconds=seconds,
        late_seconds=late if pacing.rate or pacing.speed else 0.0,
        stopped=stopped,
        started_at=started_at,
    )


def _wait(due: float, stop: Callable[[], bool] | None) -> float:
    """Sleep until ``due`` (monotonic seconds) and return how many seconds past it is."""
    while True:
        ahead = due - time.monotonic()
        if ahead < _SHORTEST_SLEEP_SECONDS or (stop is not None and stop()):
            return max(0.0, -ahead)
        time.sleep(min(ahead, _LONGEST_SLEEP_SECONDS))
