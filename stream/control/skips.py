"""Requests to skip a record: each is a control message, kept for good, which says who asked and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from stream.errors import DataError
from stream.events.fields import format_event_time, parse_event_time
from stream.events.records import ProducerRecord

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Skip", "offsets_by_partition", "parse_position", "parse_skip"]

_KIND: Final = "skip"
_VERSION: Final = 1
_MAX_WHY: Final = 1_000


class Skip(NamedTuple):
    """A request to skip the record at a position.

    Attributes
    ----------
    why, by
        The reason, and who asked.
    at_ms
        When, in ms since 1970.
    """

    topic: str
    partition: int
    offset: int
    why: str
    by: str
    at_ms: int

    @property
    def position(self) -> str:
        """``TOPIC:PARTITION:OFFSET``."""
        return f"{self.topic}:{self.partition}:{self.offset}"

    def encode(self) -> ProducerRecord:
        """Return the control message; its key is its own, so compaction keeps it."""
        value = {
            "kind": _KIND,
            "version": _VERSION,
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "why": self.why[:_MAX_WHY],
            "by": self.by,
            "at": format_event_time(self.at_ms),
        }
        return ProducerRecord(f"{_KIND}:{self.position}".encode(), orjson.dumps(value))


def parse_position(text: str) -> tuple[str, int, int]:
    """Return topic, partition and offset of ``TOPIC:PARTITION:OFFSET``.

    Raises
    ------
    DataError
        The text has another form.

    Examples
    --------
    >>> parse_position("transactions:3:1204")
    ('transactions', 3, 1204)
    """
    topic, *numbers = text.rsplit(":", 2)
    if not topic or len(numbers) != 2 or not all(part.isascii() and part.isdigit() for part in numbers):  # noqa: PLR2004
        raise DataError(f"{text!r} is not TOPIC:PARTITION:OFFSET, such as transactions:3:1204")
    return topic, int(numbers[0]), int(numbers[1])


def parse_skip(key: bytes | None, value: bytes | None) -> Skip | None:
    """Return the request in a control message, None if the message is of another kind or withdrawn.

    Raises
    ------
    DataError
        The message is a request that this version cannot read.
    """
    if key is None or value is None or not key.startswith(f"{_KIND}:".encode()):
        return None
    try:
        found: dict[str, Any] = orjson.loads(value)
        if found["version"] != _VERSION:
            raise DataError(f"has version {found['version']}, not {_VERSION}: upgrade RiskStream")
        if type(found["partition"]) is not int or type(found["offset"]) is not int:
            raise DataError("partition and offset must be whole numbers")
        return Skip(
            str(found["topic"]),
            found["partition"],
            found["offset"],
            str(found["why"]),
            str(found["by"]),
            parse_event_time(found["at"]),
        )
    except (KeyError, TypeError, ValueError, DataError) as error:
        raise DataError(f"the control message {key.decode(errors='backslashreplace')} {error}") from error


def offsets_by_partition(skips: Iterable[Skip]) -> dict[tuple[str, int], frozenset[int]]:
    """Return the offsets to skip by topic and partition."""
    found: dict[tuple[str, int], frozenset[int]] = {}
    for skip in skips:
        key = skip.topic, skip.partition
        found[key] = found.get(key, frozenset()) | {skip.offset}
    return found
