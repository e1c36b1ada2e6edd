"""The stage at the transaction's partition: pending transactions and their responses become vectors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from stream.errors import InvalidRecordError
from stream.events.models import Outcome
from stream.pipeline import counters
from stream.pipeline.columns import columns_of, events_of
from stream.pipeline.effects import Batch, BatchEffects, DecodedRecord, PartitionBatch
from stream.pipeline.entity_join.messages import PendingTransaction, decode_join_record

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    from stream.events.decode import TransactionRow
    from stream.features.spec import FeatureSpec
    from stream.features.vector import VectorBuilder
    from stream.pipeline.entity_join.messages import EntityJoinTopics
    from stream.pipeline.entity_join.pending import PendingJoin, PendingTransactions
    from stream.pipeline.entity_join.plan import JoinPlan

__all__ = ["JoinStage"]


class JoinStage:
    """Joins pending transactions with the responses of their entities."""

    def __init__(
        self,
        plan: JoinPlan,
        topics: EntityJoinTopics,
        spec: FeatureSpec,
        builder: VectorBuilder,
        pending: PendingTransactions,
        decode: Callable[[bytes | None, int], tuple[TransactionRow, int]],
        max_record_bytes: int,
    ) -> None:
        self._plan = plan
        self._topics = topics
        self._spec = spec
        self._spec_hash = spec.hash
        self._builder = builder
        self._pending = pending
        self._decode = decode
        self._max_record_bytes = max_record_bytes

    def collect(self, batch: Batch, effects: BatchEffects, now_ms: int) -> list[PendingJoin]:
        """Take in pending transactions and responses; returns the transactions that are complete now."""
        complete: list[PendingJoin] = []
        for record in batch.records:
            try:
                message = decode_join_record(record)
            except InvalidRecordError as error:
                effects.reject_invalid(batch, record, error, now_ms)
                continue
            if message is None:
                continue
            join = self._pending.receive(batch.partition, record.offset, message)
            if join is not None:
                complete.append(join)
        if batch.records:
            effects.resume_offset = self._resume_offset(batch)
        return complete

    def _resume_offset(self, batch: Batch) -> int:
        oldest = self._pending.oldest(batch.partition)
        return batch.records[-1].offset + 1 if oldest is None else oldest

    def reject_internal_error(self, batch: Batch, error: Exception, now_ms: int) -> BatchEffects:
        """Give up the transaction of a record that raises an unforeseen exception, as a dead letter."""
        effects = BatchEffects()
        [record] = batch.records
        rejected, source = record, batch
        try:
            message = decode_join_record(record)
        except InvalidRecordError:
            message = None
        pending = message if isinstance(message, PendingTransaction) else None
        if message is not None and (join := self._pending.discard(batch.partition, message.pending_id)):
            pending = join.transaction
        if pending is not None:
            rejected, source = pending.record, replace(batch, topic=self._topics.transactions)
            effects.outcomes[Outcome.REJECTED] = 1
        effects.reject_internal_error(source, rejected, error, now_ms)
        effects.resume_offset = self._resume_offset(batch)
        return effects

    def reopen(
        self, batch: Batch, joins: list[PendingJoin], effects: BatchEffects, now_ms: int
    ) -> PartitionBatch:
        """Return complete transactions as if they had just been consumed."""
        source = Batch(self._topics.transactions, batch.partition, 0, ())
        records = [join.transaction.record for join in joins]
        decoded = [
            DecodedRecord(record, self._decode(record.value, self._max_record_bytes)[0]) for record in records
        ]
        return PartitionBatch(source, decoded, effects, now_ms)

    def assemble(
        self, part: PartitionBatch, joins: list[PendingJoin], matrix: npt.NDArray[np.float64]
    ) -> None:
        """Write the vectors of complete transactions."""
        for row, join in enumerate(joins, part.rows.start):
            pending = join.transaction
            if pending.spec_hash != self._spec_hash or len(pending.features) != matrix.shape[1]:
                self._translate(part, row, join, matrix)
                continue
            vector = matrix[row]
            vector[:] = pending.features
            for code, response in join.responses.items():
                if response.spec_hash != self._spec_hash:
                    part.effects.join_counts[counters.TRANSACTION_OF_OTHER_MODEL] += 1
                    continue
                assert response.features is not None  # such a transaction is dropped
                self._plan.put(code, response.features, vector)

    def _translate(
        self, part: PartitionBatch, row: int, join: PendingJoin, matrix: npt.NDArray[np.float64]
    ) -> None:
        """Write the vector of a transaction that another model left pending: its history, no profiles."""
        part.effects.join_counts[counters.TRANSACTION_OF_OTHER_MODEL] += 1
        alone = PartitionBatch(part.batch, [part.decoded[row - part.rows.start]], BatchEffects(), part.now_ms)
        history, _ = events_of([alone], alone.decoded, self._spec.refund_types)
        vector = matrix[row : row + 1]
        self._builder.history(vector)[:] = self._builder.history(join.transaction.features[None, :])
        self._builder.fill(columns_of([alone.decoded[0].row], history, self._spec), vector)
