"""Counters of the entity join: the kind of a record, and its outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections import Counter

__all__ = ["JOIN_EVENTS", "JoinEvent", "count_dropped"]

#: Kind and outcome.
JoinEvent = tuple[str, str]

#: A transaction waits for responses; or the worker decided it although another model had left it pending.
TRANSACTION_PENDING: Final = ("transaction", "pending")
TRANSACTION_OF_OTHER_MODEL: Final = ("transaction", "other_model")

#: Outcome of a request to an entity; ``unusable_state`` counts unusable logs of users too.
REQUEST_ANSWERED: Final = ("request", "answered")
REQUEST_ALREADY_APPLIED: Final = ("request", "already_applied")
REQUEST_LATE: Final = ("request", "late")
REQUEST_UNUSABLE: Final = ("request", "unusable_state")

#: Outcome of a label.
LABEL_ANNOUNCED: Final = ("label", "announced")
LABEL_WAITING: Final = ("label", "waiting")
LABEL_EXPIRED: Final = ("label", "expired")

#: Outcome of a label update to an entity.
UPDATE_SENT: Final = ("label_update", "sent")
UPDATE_APPLIED: Final = ("label_update", "applied")
UPDATE_ALREADY_APPLIED: Final = ("label_update", "already_applied")
UPDATE_UNKNOWN: Final = ("label_update", "unknown")
UPDATE_EXPIRED: Final = ("label_update", "expired")

#: A log dropped a chunk for which it has no room, although a later transaction could have seen it.
LOG_TRUNCATED: Final = ("log", "truncated")

JOIN_EVENTS: Final[tuple[JoinEvent, ...]] = (
    TRANSACTION_PENDING, TRANSACTION_OF_OTHER_MODEL,
    REQUEST_ANSWERED, REQUEST_ALREADY_APPLIED, REQUEST_LATE, REQUEST_UNUSABLE,
    LABEL_ANNOUNCED, LABEL_WAITING, LABEL_EXPIRED,
    UPDATE_SENT, UPDATE_APPLIED, UPDATE_ALREADY_APPLIED, UPDATE_UNKNOWN, UPDATE_EXPIRED,
    LOG_TRUNCATED,
)  # fmt: skip


def count_dropped(counts: Counter[JoinEvent], chunks: int) -> None:
    """Count the chunks that a log has dropped; most drop none."""
    if chunks:
        counts[LOG_TRUNCATED] += chunks
