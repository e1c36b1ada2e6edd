"""A worker's log: a line for each event of interest, for people or for machines.

Card numbers are masked, see :mod:`stream.events.card_numbers`.

A line never contains more of a transaction than its position and name: topic, partition, offset and id. The
content of a record, and why it was rejected, is in the topics, where access can be restricted.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import orjson

from stream.events.card_numbers import mask
from stream.events.fields import format_event_time

if TYPE_CHECKING:
    from stream.settings import Settings

__all__ = [
    "CONTEXT",
    "ConsoleFormatter",
    "JsonFormatter",
    "LineBudget",
    "Sparingly",
    "configure_logging",
    "context_of",
]


#: Context fields of a line, in this order; a caller passes them to a logger as ``extra``.
CONTEXT: Final = (
    "transaction_id",
    "alert_id",
    "risk_level",
    "field",
    "topic",
    "partition",
    "offset",
    "partitions",
    "records",
    "trace_id",
    "suppressed",
)

#: Faust, mode and aiokafka log each step of a rebalance; their warnings are enough.
_LIBRARIES: Final = ("faust", "mode", "aiokafka", "kafka", "asyncio", "opentelemetry", "urllib3")

#: Faust's services log under the module that defines the class.
_FAUST_SERVICES: Final = "stream.runtime.faust_adapter"

#: Most messages of libraries that are remembered; forgetting a message is harmless.
_MAX_REMEMBERED: Final = 1000


def context_of(record: logging.LogRecord) -> dict[str, object]:
    """Return a record's context fields."""
    said = record.__dict__
    return {name: said[name] for name in CONTEXT if name in said}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, and the context fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a value without a JSON form becomes its text."""
        line: dict[str, object] = {
            "time": format_event_time(int(record.created * 1000)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        } | context_of(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return mask(orjson.dumps(line, default=str)).decode()


class ConsoleFormatter(logging.Formatter):
    """A line for people, the context behind it as ``name=value``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """Return the line without a stack trace."""
        said = "".join(f" {name}={_word(value)}" for name, value in context_of(record).items())
        return mask((super().formatMessage(record) + said).encode(errors="replace")).decode()

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the library's name
        """Return a stack trace."""
        return mask(super().formatException(ei).encode(errors="replace")).decode()


def _word(value: object) -> str:
    """Return a value as one word: an id is a producer's text and must not look like another line."""
    text = str(value)
    return text if text.isprintable() and not set(' "=') & set(text) else json.dumps(text)


class LineBudget:
    """The number of lines that a kind of event may have: a burst, then a rate.

    Parameters
    ----------
    burst
        Lines that may come at once.
    per_second
        Lines added to the budget each second.
    """

    def __init__(self, burst: int = 10, per_second: float = 1.0) -> None:
        self._burst = float(burst)
        self._per_second = per_second
        self._left = float(burst)
        self._at = 0.0
        #: Events without a line since the last line.
        self.suppressed = 0

    def take(self, events: int, now: float) -> int:
        """Return how many of so many events get a line; ``now`` is a monotonic time in seconds."""
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now
        lines = min(events, int(self._left))
        self._left -= lines
        self.suppressed += events - lines
        return lines

    def take_suppressed(self) -> int:
        """Return how many events had no line, and begin to count anew."""
        suppressed, self.suppressed = self.suppressed, 0
        return suppressed


class Sparingly(logging.Filter):
    """Lets a library repeat a message only once in a while: that a broker is away is news once.

    It also drops stack traces, except when debugging: the worker logs the error that ends it in one line.
    """

    _SECONDS: Final = 30.0

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the line is news."""
        if record.name.startswith("stream.") and not record.name.startswith(_FAUST_SERVICES):
            return True
        if record.exc_info and not logging.getLogger().isEnabledFor(logging.DEBUG):
            record.exc_info = record.exc_text = None
        key = (record.name, str(record.msg))
        now = time.monotonic()
        if now - self._said.get(key, -self._SECONDS) < self._SECONDS:
            return False
        if len(self._said) > _MAX_REMEMBERED:  # messages with figures in them
            self._said.clear()
        self._said[key] = now
        return True


def configure_logging(settings: Settings) -> None:
    """Configure this process's log to standard error from the settings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else ConsoleFormatter())
    handler.addFilter(Sparingly())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    logging.captureWarnings(capture=True)
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING if settings.log_level != "debug" else logging.DEBUG)
    logging.getLogger(_FAUST_SERVICES).setLevel(logging.WARNING)
    threading.excepthook = _tell_of_thread


def _tell_of_thread(failure: threading.ExceptHookArgs) -> None:
    """Log in one line the error that ended a library's thread, such as a fetch that a stop interrupts."""
    logging.getLogger("stream.runtime.worker").warning("a thread failed: %r", failure.exc_value)
