"""micro_batch."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stream.events.records import Record
    from stream.pipeline.effects import Batch, Plan


#: Rounds of at most so many records are decided on the event loop: a thread's handover costs more than
#: they do.
_INLINE_RECORDS: Final = 64


@dataclass(frozen=True, slots=True)
class Fetched:
    """A fetched batch of one partition, as it waits for its turn.

    Attributes
    ----------
    still_ours
        Says whether the partition is assigned as it was when the batch was fetched.
    done
        Called once all effects of the batch are safe, with the last offset that need not be taken again.
    """

    topic: str
    partition: int
    records: Sequence[Record]
    still_ours: Callable[[], bool]
    done: Callable[[int], None]


@dataclass(slots=True)
class _Round:
    """One round on its way through the order of effects."""

    number: int
    fetched: list[Fetched]
    batches: list[Batch]
    plans: list[Plan]
    #: State records by partition, of all topics together.
    writes: dict[int, list[tuple[bytes, bytes | None]]]
    records: int
    #: When it was taken and when it was decided, in ns since 1970.
    taken_ns: int
    decided_ns: int
    #: Set once the changelog, and once everything, is safe; the next round's wait for them.
    logged: asyncio.Event = field(default_factory=asyncio.Event)
    finished: asyncio.Event = field(default_factory=asyncio.Event)
