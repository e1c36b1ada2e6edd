"""Pending transactions: they wait for responses, and are complete when every requested response is there.

The record of a pending transaction opens a join, and the last requested response completes it. So does an
*already applied* response of an entity whose real response this worker never received: the real one precedes
the record, so the transaction was decided then and the join is dropped. Joins therefore need no stored state;
but the partition must be consumed again from before the oldest pending transaction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from stream.pipeline.entity_join.messages import PendingTransaction

if TYPE_CHECKING:
    from stream.pipeline.entity_join.messages import EntityResponse

__all__ = ["PendingJoin", "PendingTransactions"]

#: Epoch and marker offset of a partition on a broker without fencing: every pending transaction is accepted.
_NOT_OWNED: Final = (-1, 2**62)


@dataclass(slots=True)
class PendingJoin:
    """A pending transaction and its responses so far, by the entity's code; ``offset`` is its record's."""

    transaction: PendingTransaction
    offset: int
    responses: dict[int, EntityResponse] = field(default_factory=dict)


class PendingTransactions:
    """The transactions of a worker's partitions that lack responses."""

    def __init__(self) -> None:
        #: By partition, in the order of their offsets.
        self._joins: dict[int, dict[int, PendingJoin]] = {}
        #: By partition, the epoch of this owner and the offset of its ownership marker.
        self._owned: dict[int, tuple[int, int]] = {}
        #: What the micro-batch has changed: dictionary, key, and the former value or None.
        self._changes: list[tuple[dict[int, Any], int, Any]] = []

    def __len__(self) -> int:
        return sum(map(len, self._joins.values()))

    def forget(self) -> None:
        """Drop every pending transaction: partitions are consumed again from before them."""
        self._joins.clear()
        self._changes.clear()

    def begin(self) -> None:
        """Begin a micro-batch: :meth:`roll_back` returns to this moment."""
        self._changes.clear()

    def roll_back(self) -> None:
        """Undo what the micro-batch has changed."""
        for members, key, former in reversed(self._changes):
            if former is None:
                del members[key]
            else:
                members[key] = former
        self._changes.clear()
        for partition, joins in self._joins.items():
            self._joins[partition] = dict(sorted(joins.items(), key=lambda item: item[1].offset))

    def own(self, partition: int, epoch: int, marker_offset: int) -> None:
        """Accept no pending transaction of a former owner behind the ownership marker.

        A former owner that was paused or cut off may still have written one and have been fenced before it
        sent the requests. The transaction was consumed again since, and nobody would respond to this record.
        """
        self._owned[partition] = (epoch, marker_offset)

    def epoch(self, partition: int) -> int:
        """Return the epoch under which a partition's transactions become pending."""
        return self._owned.get(partition, _NOT_OWNED)[0]

    def receive(
        self, partition: int, offset: int, message: PendingTransaction | EntityResponse
    ) -> PendingJoin | None:
        """Take in a record of the responses' topic; returns the join that it completes."""
        joins = self._joins.setdefault(partition, {})
        if isinstance(message, PendingTransaction):
            epoch, marker_offset = self._owned.get(partition, _NOT_OWNED)
            # The same transaction again, before it was decided, has nothing new.
            if (offset < marker_offset or message.epoch == epoch) and message.pending_id not in joins:
                joins[message.pending_id] = PendingJoin(message, offset)
                self._changes.append((joins, message.pending_id, None))
            return None
        join = joins.get(message.pending_id)
        if join is None:
            return None  # decided
        if message.features is None:
            if message.entity not in join.responses:
                self._remove(joins, join)
            return None
        self._changes.append((join.responses, message.entity, join.responses.get(message.entity)))
        join.responses[message.entity] = message
        requested = join.transaction.requested
        if sum(1 << code for code in join.responses) & requested != requested:
            return None
        self._remove(joins, join)
        return join

    def discard(self, partition: int, pending_id: int) -> PendingJoin | None:
        """Give up a pending transaction and return it; None if it is not pending."""
        return self._joins.get(partition, {}).pop(pending_id, None)

    def _remove(self, joins: dict[int, PendingJoin], join: PendingJoin) -> None:
        pending_id = join.transaction.pending_id
        self._changes.append((joins, pending_id, join))
        del joins[pending_id]

    def oldest(self, partition: int) -> int | None:
        """Return the offset of a partition's oldest pending transaction, None if there is none."""
        first = next(iter(self._joins.get(partition, {}).values()), None)
        return None if first is None else first.offset
