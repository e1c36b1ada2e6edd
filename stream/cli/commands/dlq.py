"""``riskstream dlq``: read the dead letters, and send them again once their cause is gone."""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import click

from stream.cli.options import EVENT_TIME, parse_duration
from stream.events.models import DeadLetterHeader
from stream.kafka.dead_letters import (
    ADDED_HEADERS,
    DeadLetter,
    find_letter,
    read_letters,
    replayable,
    replayer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stream.settings import Settings

__all__ = ["dlq", "list_letters", "replay", "show"]


_SHOWN_BYTES: Final = 16


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
        click.option("--field", help="Only records rejected for this field; $ is the whole record."),
        click.option(
            "--since",
            type=_Since(),
            help="Only records rejected since this time: RFC 3339, or 3d, 12h, 30m ago.",
        ),
        click.option("--partition", type=click.IntRange(min=0), help="Only this partition."),
    ):
        command = option(command)
    return command


@click.group()
def dlq() -> None:
    """Read dead letters, and replay them once their cause is fixed.

    A dead letter's name is its position in the dead-letter topic, PARTITION:OFFSET. Reading commits nothing
    and disturbs no other reader.
    """


@dlq.command("list")
@_filters
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object per line.")
@click.option("--summary", is_flag=True, help="Print only the counts by field.")
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
        print(f"{counts.total():>9,} in total")
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
@click.option("--raw", is_flag=True, help="Print only the original bytes.")
def show(*, position: tuple[int, int], raw: bool) -> None:
    """Show one dead letter: the worker's headers, its own headers, and its original bytes."""
    settings = _ready_settings()
    letter = find_letter(settings, *position)
    if raw:
        sys.stdout.buffer.write(letter.value or b"")
        sys.stdout.buffer.flush()
        return
    for name in ADDED_HEADERS:
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
@click.option("--all", "every", is_flag=True, help="Replay every dead letter.")
@click.option("--dry-run", is_flag=True, help="Print the records without sending them.")
def replay(
    *,
    positions: tuple[tuple[int, int], ...],
    field: str | None,
    since: int | None,
    partition: int | None,
    every: bool,
    dry_run: bool,
) -> None:
    """Replay dead letters: send their original key, bytes and headers to their original partition.

    Choose them by POSITIONS, by filters, or with --all. Each gets the header riskstream.replayed-from.
    Nothing is counted twice: the worker recognises a transaction that it has already taken as a duplicate by
    its id. A record that is still invalid becomes a dead letter again.
    """
    filters = (field, since, partition)
    if positions and (every or filters != (None, None, None)):
        raise click.UsageError("POSITIONS exclude filters and --all")
    if not positions and not every and filters == (None, None, None):
        raise click.UsageError("choose the dead letters: POSITIONS, --field, --since, --partition, or --all")
    settings = _ready_settings()
    letters: Iterator[DeadLetter] = (
        (find_letter(settings, *position) for position in positions)
        if positions
        else _chosen(settings, *filters)
    )
    skipped: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    with replayer(settings, dry_run=dry_run) as send:
        for letter in replayable(letters, settings, skipped):
            topic, source_partition, offset = letter.source or ("", 0, 0)
            if dry_run:
                print(f"would send {letter.position} to {topic} {source_partition}, original offset {offset}")
            send(letter)
            sent[topic] += 1
    for topic, count in sent.items() or [(settings.topics.transactions, 0)]:
        print(f"{'would send' if dry_run else 'sent'} {count:,} to {topic}")
    for why, count in skipped.items():
        print(f"skipped {count:,}: {why}", file=sys.stderr)


def _ready_settings() -> Settings:
    from stream.kafka.admin import require_topics
    from stream.settings import load_settings

    settings = load_settings()
    require_topics(settings)
    return settings


def _chosen(
    settings: Settings, field: str | None, since: int | None, partition: int | None
) -> Iterator[DeadLetter]:
    """Yield the dead letters that pass the filters, oldest first in each partition."""
    for letter in read_letters(settings, None if partition is None else [partition]):
        if (field is None or letter.field == field) and (since is None or letter.refused_ms >= since):
            yield letter


def _printable(text: str) -> str:
    """Return a producer's text without control characters of a terminal."""
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
    """Return a value as lines: its text, or its bytes in hexadecimal with their printable characters."""
    try:
        return [_printable(line) for line in value.decode().splitlines()]
    except UnicodeDecodeError:
        pieces = [value[at : at + _SHOWN_BYTES] for at in range(0, len(value), _SHOWN_BYTES)]
        return [
            f"{_SHOWN_BYTES * at:08x}  {piece.hex(' '):<{3 * _SHOWN_BYTES}} "
            + "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)  # noqa: PLR2004 - ASCII
            for at, piece in enumerate(pieces)
        ]
