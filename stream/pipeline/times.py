"""Event times against the clock: which are accepted, and whether the clock itself is wrong."""

from __future__ import annotations

from typing import Final, NamedTuple

from stream.errors import ClockError, InvalidRecordError
from stream.events.fields import MAX_TIME_MS, format_event_time

__all__ = ["DEFAULT_LIMITS", "MIN_EVENT_TIME_MS", "ClockGuard", "EventTimeLimits"]

#: 2000-01-01T00:00:00Z. Epoch seconds of any day since 1970, read as milliseconds, lie before.
MIN_EVENT_TIME_MS: Final = 946_684_800_000

#: Rejections that the clock guard needs to see, and the number of records after which it halves its counts.
_FEWEST: Final = 20
_WINDOW: Final = 2_000


class EventTimeLimits(NamedTuple):
    """The accepted event times.

    Attributes
    ----------
    min_ms
        The earliest, in ms since 1970.
    max_future_ms
        How far an event time may lie ahead of the clock.
    """

    min_ms: int = MIN_EVENT_TIME_MS
    max_future_ms: int = 300_000

    def error(self, field: str, time_ms: int, now_ms: int) -> InvalidRecordError:
        """Return the error of a time outside the limits."""
        if time_ms < self.min_ms:
            reason = f"is {format_event_time(time_ms)}, before {format_event_time(self.min_ms)}"
            if self.min_ms <= time_ms * 1000 <= min(now_ms + self.max_future_ms, MAX_TIME_MS):
                reason += (
                    f"; as epoch seconds it is {format_event_time(time_ms * 1000)}: send epoch milliseconds "
                    "or an RFC 3339 text"
                )
            return InvalidRecordError(field, reason)
        return InvalidRecordError(
            field,
            f"is {(time_ms - now_ms) // 1000} s ahead of the clock, more than the "
            f"{self.max_future_ms // 1000} s allowed",
        )

    def check(self, field: str, time_ms: int, now_ms: int) -> None:
        """Return if a time is within the limits.

        Raises
        ------
        InvalidRecordError
            It is not.
        """
        if not self.min_ms <= time_ms <= now_ms + self.max_future_ms:
            raise self.error(field, time_ms, now_ms)


DEFAULT_LIMITS: Final = EventTimeLimits()


class ClockGuard:
    """Notices that this machine's clock is behind: most records come from the future, as Kafka agrees.

    A record's Kafka timestamp is the clock of its producer or of the broker. If event times and timestamps
    are both ahead of this machine's clock for most of the records, the clock is wrong, and to reject the
    records would reject everybody's transactions.
    """

    def __init__(self) -> None:
        self._records = 0
        self._ahead = 0

    def see(self, records: int, ahead: int, now_ms: int) -> None:
        """Count records, and those of them that event time and timestamp place in the future.

        Raises
        ------
        ClockError
            Most of the last records are in the future.
        """
        self._records += records
        self._ahead += ahead
        if self._ahead >= _FEWEST and 2 * self._ahead > self._records:
            raise ClockError(
                f"this machine's clock shows {format_event_time(now_ms)}, and {self._ahead} of the last "
                f"{self._records} transactions are in its future, as are their Kafka timestamps: the clock "
                "is behind; set it, start the worker again, and replay the dead letters of event_time"
            )
        if self._records > _WINDOW:
            self._records //= 2
            self._ahead //= 2
