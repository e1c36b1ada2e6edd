"""Dead letters: read them, and replay them once their cause is fixed."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kafka import KafkaProducer
from kafka.errors import KafkaError

from stream.errors import BrokerError, DataError
from stream.events.card_numbers import MASKED
from stream.events.fields import parse_event_time
from stream.events.models import DeadLetterHeader
from stream.kafka.clients import client_config
from stream.kafka.reader import TopicReader

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator, Sequence

    from stream.settings import Settings

__all__ = [
    "ADDED_HEADERS",
    "REPLAYED_FROM",
    "DeadLetter",
    "find_letter",
    "read_letters",
    "replayable",
    "replayer",
]

#: Header of a replayed record: its original position, TOPIC:PARTITION:OFFSET.
REPLAYED_FROM: Final = "riskstream.replayed-from"

ADDED_HEADERS: Final = tuple(header.value for header in DeadLetterHeader)
_CUT: Final = re.compile(r"; cut to \d+ of \d+ bytes").search

#: Replayed records in flight at once; a broker limits the size of each.
_MAX_PENDING: Final = 500


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter: its position, the original record, and the worker's headers.

    Attributes
    ----------
    headers:
        The record's own headers.
    added:
        The worker's headers: topic, partition, offset, field, reason, time.
    """

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    added: dict[str, str]

    @property
    def position(self) -> str:
        """``PARTITION:OFFSET`` in the dead-letter topic."""
        return f"{self.partition}:{self.offset}"

    @property
    def source(self) -> tuple[str, int, int] | None:
        """Topic, partition and offset of the original record; None if no worker wrote the dead letter."""
        try:
            return (
                self.added[DeadLetterHeader.TOPIC],
                int(self.added[DeadLetterHeader.PARTITION]),
                int(self.added[DeadLetterHeader.OFFSET]),
            )
        except (KeyError, ValueError):
            return None

    @property
    def field(self) -> str:
        """The offending field; ``$`` is the whole record."""
        return self.added.get(DeadLetterHeader.FIELD, "")

    @property
    def reason(self) -> str:
        """Why the worker rejected the record."""
        return self.added.get(DeadLetterHeader.REASON, "")

    @property
    def refused_ms(self) -> int:
        """When the worker rejected the record, in ms since 1970; 0 if unknown."""
        try:
            return parse_event_time(self.added[DeadLetterHeader.TIMESTAMP])
        except (KeyError, ValueError):
            return 0

    def to_json(self) -> dict[str, Any]:
        """Return everything but the value as JSON values."""
        topic, partition, offset = self.source or (None, None, None)
        return {
            "position": self.position,
            "source_topic": topic,
            "source_partition": partition,
            "source_offset": offset,
            "refused_at": self.added.get(DeadLetterHeader.TIMESTAMP),
            "field": self.field,
            "reason": self.reason,
            "exception": self.added.get(DeadLetterHeader.EXCEPTION),
            "key": None if self.key is None else self.key.decode(errors="backslashreplace"),
            "value_bytes": None if self.value is None else len(self.value),
        }


def read_letters(
    settings: Settings, partitions: Sequence[int] | None = None, start: int | None = None
) -> Iterator[DeadLetter]:
    """Yield the dead letters that partitions hold now, all of them by default, from ``start`` on.

    Raises
    ------
    BrokerError
        The broker cannot be reached.
    DataError
        There is no such partition.
    """
    total = settings.topics.partitions
    for partition in partitions or ():
        if partition >= total:
            raise DataError(
                f"{settings.topics.dead_letters} has no partition {partition}, only 0 to {total - 1}"
            )
    with TopicReader(settings, settings.topics.dead_letters) as reader:
        for record in reader.read_to_end(range(total) if partitions is None else partitions, start):
            yield _letter(record)


def find_letter(settings: Settings, partition: int, offset: int) -> DeadLetter:
    """Return the dead letter at a position.

    Raises
    ------
    DataError
        There is no dead letter at that position.
    """
    if partition < settings.topics.partitions:
        for letter in read_letters(settings, [partition], offset):
            if letter.offset == offset:
                return letter
            break
    raise DataError(
        f"{settings.topics.dead_letters} has no dead letter at {partition}:{offset}; "
        "'riskstream dlq list' lists the existing ones"
    )


def replayable(
    letters: Iterator[DeadLetter], settings: Settings, skipped: Counter[str]
) -> Iterator[DeadLetter]:
    """Yield the dead letters that can be replayed, one per source record; count the others by reason."""
    topics, partitions = (settings.topics.transactions, settings.topics.labels), settings.topics.partitions
    seen: set[tuple[str, int, int]] = set()
    for letter in letters:
        source = letter.source
        if source is None:
            skipped["not written by a worker"] += 1
        elif source[0] not in topics or source[1] >= partitions:
            skipped[f"the source is not {' or '.join(topics)} with its {partitions} partitions"] += 1
        elif _CUT(letter.reason):
            skipped["truncated because it is too large; the source topic has the whole record"] += 1
        elif letter.reason.endswith(MASKED):
            skipped["card numbers are masked; the source topic has the whole record"] += 1
        elif source in seen:
            skipped["delivered twice, sent once"] += 1
        else:
            seen.add(source)
            yield letter


@contextmanager
def replayer(settings: Settings, *, dry_run: bool) -> Iterator[Callable[[DeadLetter], None]]:
    """Return a function that replays a dead letter; the broker has acknowledged all when the block ends.

    Raises
    ------
    BrokerError
        The broker cannot be reached or refuses a record.
    """
    if dry_run:
        yield lambda _: None
        return
    pending: list[Any] = []
    seconds = settings.kafka.request_timeout_seconds

    def flush() -> None:
        for future in pending:
            future.get(seconds)
        pending.clear()

    def send(letter: DeadLetter) -> None:
        assert letter.source is not None
        topic, partition, offset = letter.source
        own = [pair for pair in letter.headers if pair[0] != REPLAYED_FROM]
        mark = (REPLAYED_FROM, f"{topic}:{partition}:{offset}".encode())
        pending.append(
            producer.send(
                topic, key=letter.key, value=letter.value, headers=[*own, mark], partition=partition
            )
        )
        if len(pending) >= _MAX_PENDING:
            flush()

    try:
        producer = KafkaProducer(**client_config(settings.kafka), acks="all", max_request_size=4_000_000)
        try:
            yield send
            flush()
        finally:
            producer.close(timeout=seconds)
    except KafkaError as error:
        raise BrokerError(
            f"dead letters cannot be replayed: {error}; earlier ones may have been sent: replay "
            "all of them again, workers recognise transactions they have already applied"
        ) from error


def _letter(record: Any) -> DeadLetter:
    """Split a record's headers: the worker's headers come last, in a fixed order."""
    headers = tuple((name, value) for name, value in record.headers)
    added = headers[-len(ADDED_HEADERS) :]
    if tuple(name for name, _ in added) != ADDED_HEADERS:
        return DeadLetter(record.partition, record.offset, record.key, record.value, headers, {})
    said = {name: (value or b"").decode(errors="backslashreplace") for name, value in added}
    return DeadLetter(
        record.partition, record.offset, record.key, record.value, headers[: -len(ADDED_HEADERS)], said
    )
