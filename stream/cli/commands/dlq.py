"""``riskstream dlq``: read the dead letters, and send them again once their cause is gone."""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from stream.cli.options import EVENT_TIME, parse_duration
from stream.errors import BrokerError, DataError
from stream.events.fields import parse_event_time
from stream.events.models import DeadLetterHeader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from stream.settings import Settings


#: On a record that was sent again: the place in the source topic that it was first at.
REPLAYED_FROM: Final = "riskstream.replayed-from"

_POLL_MS: Final = 250

#: A last look behind the end that the broker told.
_LAST_POLL_MS: Final = 50

_ADDED: Final = tuple(header.value for header in DeadLetterHeader)
_CUT: Final = re.compile(r"; cut to \d+ of \d+ bytes").search
_SHOWN_BYTES: Final = 16

#: Replayed records under way at once; each is at most as large as a broker takes.
_MAX_PENDING: Final = 500


@dataclass(frozen=True, slots=True)
class _Letter:
    """A dead letter: where it lies, what came in, and what was said of it."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    #: The record's own, without those that the worker added.
    headers: tuple[tuple[str, bytes | None], ...]
    added: dict[str, str]

    @property
    def position(self) -> str:
        return f"{self.partition}:{self.offset}"

    @property
    def source(self) -> tuple[str, int, int] | None:
        """Topic, partition and offset that it came from; None where somebody else wrote it."""
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
        return self.added.get(DeadLetterHeader.FIELD, "")

    @property
    def reason(self) -> str:
        return self.added.get(DeadLetterHeader.REASON, "")

    @property
    def refused_ms(self) -> int:
        """When it was refused, 0 where that is not said."""
        try:
            return parse_event_time(self.added[DeadLetterHeader.TIMESTAMP])
        except (KeyError, ValueError):
            return 0

    def to_json(self) -> dict[str, Any]:
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


class _Position(click.ParamType):
    """``PARTITION:OFFSET`` in the dead-letter topic."""

    name = "partition:offset"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        match = re.fullmatch(r"(\d{1,9}):(\d{1,18})", str(value), re.ASCII)
        if match is None:
            self.fail(f"{value!r} is not PARTITION:OFFSET, such as 2:17", param, ctx)
        return int(match[1]), int(match[2])


class _Since(click.ParamType):
    """A time (RFC 3339), or how long ago it was (3d, 12h, 30m)."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return time.time_ns() // 1_000_000 - parse_duration(str(value))
        except ValueError:
            return int(EVENT_TIME.convert(value, param, ctx))


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that choose dead letters."""
    for option in (
        click.option("--field", help="Only those refused for this field; $ is the record as a whole."),
        click.option(
            "--since", type=_Since(), help="Only those refused since: RFC 3339, or 3d, 12h, 30m ago."
        ),
        click.option("--partition", type=click.IntRange(min=0), help="Only those of this partition."),
    ):
        command = option(command)
    return command


@click.group()
def dlq() -> None:
    """Read the dead letters, and send them again once their cause is gone.

    Dead letters are named by their place in the dead-letter topic, PARTITION:OFFSET. Reading commits
    nothing and disturbs no other reader.
    """


@dlq.command("list")
@_filters
@click.option("--json", "as_json", is_flag=True, help="A JSON object for each, one a line.")
@click.option("--summary", is_flag=True, help="Only how many there are by field.")
def list_letters(
    *, field: str | None, since: int | None, partition: int | None, as_json: bool, summary: bool
) -> None:
    """Show where each dead letter lies, where it came from, and why it was refused."""
    letters = _chosen(_ready_settings(), field, since, partition)
    if summary:
        counts = Counter(letter.field for letter in letters)
        if as_json:
            print(json.dumps(dict(counts.most_common())))
            return
        for name, count in counts.most_common():
            print(f"{count:>9,} {_printable(name)}")
        print(f"{counts.total():>9,} in all")
        return
    for letter in letters:
        if as_json:
            print(json.dumps(letter.to_json()))
        else:
            topic, source_partition, offset = letter.source or ("?", "?", "?")
            print(
                f"{letter.position:<12} from {topic} {source_partition}:{offset} "
                f"at {letter.added.get(DeadLetterHeader.TIMESTAMP, '?')} "
                f"key {_text(letter.key)} {_printable(letter.field)}: {_printable(letter.reason)}"
            )


@dlq.command()
@click.argument("position", type=_Position())
@click.option("--raw", is_flag=True, help="Only the original bytes, as they are.")
def show(*, position: tuple[int, int], raw: bool) -> None:
    """Show one dead letter: what was said of it, its own headers, and its original bytes."""
    settings = _ready_settings()
    letter = _one(settings, *position)
    if raw:
        sys.stdout.buffer.write(letter.value or b"")
        sys.stdout.buffer.flush()
        return
    for name in _ADDED:
        print(f"{name:<30} {_printable(letter.added.get(name, ''))}")
    print(f"{'key':<30} {_text(letter.key)}")
    for name, value in letter.headers:
        print(f"{'header ' + _printable(name):<30} {_text(value)}")
    size = "none" if letter.value is None else f"{len(letter.value):,} bytes"
    print(f"{'value':<30} {size}")
    for line in _body(letter.value or b""):
        print(f"  {line}")


@dlq.command()
@_filters
@click.argument("positions", nargs=-1, type=_Position())
@click.option("--all", "every", is_flag=True, help="Every dead letter that there is.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
def replay(
    *,
    positions: tuple[tuple[int, int], ...],
    field: str | None,
    since: int | None,
    partition: int | None,
    every: bool,
    dry_run: bool,
) -> None:
    """Send dead letters again: key, bytes and headers as they came, to the partition they came from.

    Choose them by POSITIONS, by filters, or with --all. Each gets the header riskstream.replayed-from.
    Nothing is counted twice: a transaction that was taken meanwhile, by an earlier replay too, is
    recognised as a duplicate by its id. What is still not valid becomes a dead letter again.
    """
    filters = (field, since, partition)
    if positions and (every or filters != (None, None, None)):
        raise click.UsageError("POSITIONS go with neither filters nor --all")
    if not positions and not every and filters == (None, None, None):
        raise click.UsageError("say which: POSITIONS, --field, --since, --partition, or --all")
    settings = _ready_settings()
    letters: Iterator[_Letter] = (
        (_one(settings, *position) for position in positions) if positions else _chosen(settings, *filters)
    )
    skipped: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    with _sender(settings, dry_run=dry_run) as send:
        for letter in _sendable(letters, settings, skipped):
            topic, source_partition, offset = letter.source or ("", 0, 0)
            if dry_run:
                print(f"would send {letter.position} to {topic} {source_partition}, first at offset {offset}")
            send(letter)
            sent[topic] += 1
    for topic, count in sent.items() or [(settings.topics.transactions, 0)]:
        print(f"{'would send' if dry_run else 'sent'} {count:,} to {topic}")
    for why, count in skipped.items():
        print(f"left {count:,}: {why}", file=sys.stderr)


def _sendable(letters: Iterator[_Letter], settings: Settings, skipped: Counter[str]) -> Iterator[_Letter]:
    """Yield the letters that can be sent again, one for each source record; count the others by why."""
    topics, partitions = (settings.topics.transactions, settings.topics.labels), settings.topics.partitions
    seen: set[tuple[str, int, int]] = set()
    for letter in letters:
        source = letter.source
        if source is None:
            skipped["not written by a worker"] += 1
        elif source[0] not in topics or source[1] >= partitions:
            skipped[f"not from {' or '.join(topics)} with its {partitions} partitions"] += 1
        elif _CUT(letter.reason):
            skipped["cut, since too large; the whole is at the source"] += 1
        elif source in seen:
            skipped["delivered twice, sent once"] += 1
        else:
            seen.add(source)
            yield letter


@contextmanager
def _sender(settings: Settings, *, dry_run: bool) -> Iterator[Callable[[_Letter], None]]:
    """Give a function that sends a letter again; everything is acknowledged when the block ends."""
    from kafka import KafkaProducer
    from kafka.errors import KafkaError

    from stream.kafka.clients import client_config

    if dry_run:
        yield lambda _: None
        return
    pending: list[Any] = []
    seconds = settings.kafka.request_timeout_seconds

    def settle() -> None:
        for future in pending:
            future.get(seconds)
        pending.clear()

    def send(letter: _Letter) -> None:
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
            settle()

    try:
        producer = KafkaProducer(**client_config(settings.kafka), acks="all", max_request_size=4_000_000)
        try:
            yield send
            settle()
        finally:
            producer.close(timeout=seconds)
    except KafkaError as error:
        raise BrokerError(
            f"dead letters cannot be sent again: {error}; those before it were: "
            "send all of them again, what was taken meanwhile is recognised"
        ) from error


def _ready_settings() -> Settings:
    from stream.kafka.admin import require_topics
    from stream.settings import load_settings

    settings = load_settings()
    require_topics(settings)
    return settings


def _chosen(
    settings: Settings, field: str | None, since: int | None, partition: int | None
) -> Iterator[_Letter]:
    """Yield the dead letters that the filters leave, oldest first in each partition."""
    total = settings.topics.partitions
    if partition is not None and partition >= total:
        raise DataError(f"{settings.topics.dead_letters} has no partition {partition}, only 0 to {total - 1}")
    for letter in _read(settings, range(total) if partition is None else [partition]):
        if (field is None or letter.field == field) and (since is None or letter.refused_ms >= since):
            yield letter


def _one(settings: Settings, partition: int, offset: int) -> _Letter:
    """Return the dead letter at a place.

    Raises
    ------
    DataError
        There is none.
    """
    if partition < settings.topics.partitions:
        for letter in _read(settings, [partition], offset):
            if letter.offset == offset:
                return letter
            break
    raise DataError(
        f"{settings.topics.dead_letters} has no dead letter at {partition}:{offset}; "
        "'riskstream dlq list' shows those there are"
    )


def _read(settings: Settings, partitions: Sequence[int], start: int | None = None) -> Iterator[_Letter]:
    """Yield what lies in partitions of the dead-letter topic at this moment, from ``start`` on."""
    from kafka import KafkaConsumer, TopicPartition
    from kafka.errors import KafkaError

    from stream.kafka.clients import client_config

    began_ms = time.time_ns() // 1_000_000
    try:
        consumer = KafkaConsumer(
            **client_config(settings.kafka),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )
        try:
            for number in partitions:
                place = TopicPartition(settings.topics.dead_letters, number)
                consumer.assign([place])
                first, end = consumer.beginning_offsets([place])[place], consumer.end_offsets([place])[place]
                if start is not None and start < first:
                    continue
                consumer.seek(place, first if start is None else start)
                yield from _up_to_now(consumer, place, end, began_ms)
        finally:
            consumer.close()
    except KafkaError as error:
        raise BrokerError(
            f"dead letters cannot be read from {settings.kafka.bootstrap_servers}: {error}"
        ) from error


def _up_to_now(consumer: Any, place: Any, end: int, began_ms: int) -> Iterator[_Letter]:
    """Yield what lies before ``end``, and what came before this was asked.

    The embedded broker's end offset may lie behind the last acknowledged record.
    """
    while True:
        behind = consumer.position(place) >= end
        batches = consumer.poll(timeout_ms=_LAST_POLL_MS if behind else _POLL_MS)
        for record in batches.get(place, ()):
            if record.offset >= end and record.timestamp >= began_ms:
                return
            yield _letter(record)
        if behind and not batches:
            return


def _letter(record: Any) -> _Letter:
    """Take a record apart: the worker's headers are its last ones, in their order."""
    headers = tuple((name, value) for name, value in record.headers)
    added = headers[-len(_ADDED) :]
    if tuple(name for name, _ in added) != _ADDED:
        return _Letter(record.partition, record.offset, record.key, record.value, headers, {})
    said = {name: (value or b"").decode(errors="backslashreplace") for name, value in added}
    return _Letter(record.partition, record.offset, record.key, record.value, headers[: -len(_ADDED)], said)


def _printable(text: str) -> str:
    """Return a producer's text without what would move the cursor of a terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _text(value: bytes | None) -> str:
    """Return bytes as text where they are, else in hexadecimal."""
    if value is None:
        return "(none)"
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return f"0x{value.hex()}"
    return _printable(text) if text else "(empty)"


def _body(value: bytes) -> list[str]:
    """Return a value as lines: its text, or its bytes in hexadecimal with what can be read of them."""
    try:
        return [_printable(line) for line in value.decode().splitlines()]
    except UnicodeDecodeError:
        pieces = [value[at : at + _SHOWN_BYTES] for at in range(0, len(value), _SHOWN_BYTES)]
        return [
            f"{_SHOWN_BYTES * at:08x}  {piece.hex(' '):<{3 * _SHOWN_BYTES}} "
            + "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)  # noqa: PLR2004 - ASCII
            for at, piece in enumerate(pieces)
        ]
