"""What is counted between the stages of a model with profiles: the kind of a record, and what came of it."""

from __future__ import annotations

from typing import Final

#: What a record is, and what came of it.
HopEvent = tuple[str, str]

#: A transaction waits for answers; or it was decided, although it had been opened for another model.
CASE_OPENED: Final = ("case", "opened")

CASE_OF_OTHER_MODEL: Final = ("case", "other_model")

#: What came of a question to an entity; ``unusable_state`` also where a user's own log cannot be used.
ANSWERED: Final = ("question", "answered")

REPEATED: Final = ("question", "repeated")
LATE: Final = ("question", "late")
UNUSABLE: Final = ("question", "unusable_state")

#: Where a label went.
LABEL_NOTED: Final = ("label", "noted")

LABEL_WAITING: Final = ("label", "waiting")
LABEL_EXPIRED: Final = ("label", "expired")

#: What came of telling a label to an entity.
NOTE_SENT: Final = ("note", "sent")

NOTE_LEARNT: Final = ("note", "learnt")
NOTE_REPEATED: Final = ("note", "repeated")
NOTE_UNKNOWN: Final = ("note", "unknown")
NOTE_EXPIRED: Final = ("note", "expired")

HOP_EVENTS: Final[tuple[HopEvent, ...]] = (
    CASE_OPENED, CASE_OF_OTHER_MODEL,
    ANSWERED, REPEATED, LATE, UNUSABLE,
    LABEL_NOTED, LABEL_WAITING, LABEL_EXPIRED,
    NOTE_SENT, NOTE_LEARNT, NOTE_REPEATED, NOTE_UNKNOWN, NOTE_EXPIRED,
)  # fmt: skip
