"""The unit of work: fetched batches that wait, and a micro-batch on its way through the commit protocol."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stream.events.records import ConsumerRecord
    from stream.pipeline.effects import Batch, BatchEffects

__all__ = ["INLINE_RECORDS", "Fetched", "MicroBatch"]

#: The event loop itself decides and stores up to this many records: a thread's handover costs more.
INLINE_RECORDS: Final = 64


@dataclass(frozen=True, slots=True)
class Fetched:
    """A fetched batch of one partition that waits for the next micro-batch.

    Attributes
    ----------
    incarnation
        What the partition's offsets belong to; empty on a broker without topic ids.
    still_ours
        Returns whether the partition is assigned as it was when the batch was fetched.
    done
        Called once all effects of the batch are durable, with the last offset that need not be consumed
        again.
    size
        Bytes of the records' keys and values.
    """

    topic: str
    partition: int
    records: Sequence[ConsumerRecord]
    incarnation: str
    still_ours: Callable[[], bool]
    done: Callable[[int], None]
    size: int = field(init=False)

    def __post_init__(self) -> None:
        size = sum(len(record.key or b"") + len(record.value or b"") for record in self.records)
        object.__setattr__(self, "size", size)


@dataclass(slots=True)
class MicroBatch:
    """A decided micro-batch whose effects are being carried out.

    Attributes
    ----------
    decided:
        The batches and their effects; after an unforeseen exception a partition's batch is in parts.
    writes:
        State records by partition, of all topics together.
    taken_ns, decided_ns:
        When its records left the queue and when they were decided, in ns since 1970.
    logged, finished:
        Set once the changelog, and once everything, is durable; the next micro-batch waits for both.
    """

    number: int
    fetched: list[Fetched]
    decided: list[tuple[Batch, BatchEffects]]
    writes: dict[int, list[tuple[bytes, bytes | None]]]
    records: int
    taken_ns: int
    decided_ns: int
    logged: asyncio.Event = field(default_factory=asyncio.Event)
    finished: asyncio.Event = field(default_factory=asyncio.Event)
