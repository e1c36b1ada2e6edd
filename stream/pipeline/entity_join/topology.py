"""The pipeline of a model with entity profiles: the same decisions, in stages that each keep their own state.

====================  ============  ==========================================================================
records of            keyed by      stage
====================  ============  ==========================================================================
transactions          user          :class:`.UserStage` adds them to the user's history and log. It decides a
                                    transaction at once if the transaction names no profiled entity. Otherwise
                                    it sends a pending transaction and one request to each entity.
labels                user          :class:`.UserStage` forwards them as label updates to their transaction's
                                    entities. A label without a known transaction waits in the log.
requests, updates     entity        :class:`.EntityStage` reads the profile from the entity's log, sends the
                                    response and adds the transaction or the label to the log.
pending, responses    (partition)   :class:`.JoinStage` joins them and decides each complete transaction.
====================  ============  ==========================================================================

All topics have the same number of partitions, and a worker owns the same partitions of each. The messages are
in :mod:`.messages`; docs/explanation/guarantees.md explains why the stages neither lose nor double-count a
transaction. No I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stream.features.profiles.cache import EntityLogs
from stream.pipeline.effects import BatchEffects
from stream.pipeline.entity_join.entities import EntityStage
from stream.pipeline.entity_join.messages import EntityJoinTopics
from stream.pipeline.entity_join.pending import PendingTransactions
from stream.pipeline.entity_join.plan import USER_WIDTH, JoinPlan
from stream.pipeline.entity_join.responses import JoinStage
from stream.pipeline.entity_join.users import UserStage
from stream.pipeline.transactions import TransactionPipeline
from stream.state.format import is_of_entity

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stream.events.decode import TransactionRow
    from stream.pipeline.effects import Batch, PipelineConfig
    from stream.pipeline.entity_join.pending import PendingJoin
    from stream.scoring.bundle import Bundle
    from stream.state.store import StateReader

__all__ = ["EntityJoinPipeline", "EntityJoinTopics"]


class EntityJoinPipeline(TransactionPipeline):
    """Decides batches with a model that has entity profiles."""

    def __init__(self, bundle: Bundle, config: PipelineConfig, topics: EntityJoinTopics) -> None:
        super().__init__(bundle, config)
        plan = self._plan = JoinPlan(bundle.spec, config.lateness_ms)
        self._topics = topics
        self._user_logs = EntityLogs(config.cache_bytes, USER_WIDTH)
        self._entity_logs = EntityLogs(config.cache_bytes)
        self._pending = PendingTransactions()
        self._users = UserStage(
            plan,
            topics,
            self._spec_hash,
            self._user_logs,
            self._pending,
            config.max_record_bytes,
            config.times,
            config.card_numbers,
        )
        self._entities = EntityStage(plan, topics, self._spec_hash, self._entity_logs)
        self._join = JoinStage(
            plan,
            topics,
            bundle.spec,
            self._builder,
            self._pending,
            self._decode_again,
            config.max_record_bytes,
        )

    def _decode_again(self, raw: bytes | None, max_bytes: int) -> tuple[TransactionRow, int]:
        """Return the row of a transaction that was pending, see ``decode``."""
        return self.decode(raw, max_bytes)

    @property
    def consumed_topics(self) -> tuple[str, ...]:
        """The topics that the stages consume: transactions, labels, requests, responses."""
        return self._topics.names

    @property
    def backlog(self) -> int:
        """How many transactions are pending: they lack a response."""
        return len(self._pending)

    def horizon_ms(self, entity: str) -> int:
        """Return how far a feature may reach behind the newest transaction of an entity of this kind."""
        return max(super().horizon_ms(entity), self._plan.horizon_ms(entity))

    def drop_state(self, partition: int, prefixes: Iterable[bytes]) -> None:
        """Drop what memory holds of users and entities whose records are being deleted."""
        for prefix in prefixes:
            logs = self._entity_logs if is_of_entity(prefix) else self._user_logs
            logs.drop(partition, prefix)

    def forget(self) -> None:
        """Drop everything cached between batches; the next batch reads it again."""
        super().forget()
        self.on_rebalanced()

    def roll_back(self) -> None:
        """Undo what the last call of :meth:`process_all` changed in memory: it raised an exception."""
        super().roll_back()
        self._user_logs.forget()
        self._entity_logs.forget()
        self._pending.roll_back()

    def reject_internal_error(self, batch: Batch, error: Exception, now_ms: int) -> BatchEffects:
        """Return the effects of a record that raises an unforeseen exception; no transaction stays pending.

        A request gets a response without features. A response becomes the dead letter of its transaction.
        """
        if batch.topic == self._topics.responses:
            return self._join.reject_internal_error(batch, error, now_ms)
        effects = super().reject_internal_error(batch, error, now_ms)
        if batch.topic == self._topics.requests:
            self._entities.respond_without_features(batch, effects)
        return effects

    def on_rebalanced(self) -> None:
        """Drop logs and pending transactions: consumption resumes before the oldest pending one."""
        self._user_logs.forget()
        self._entity_logs.forget()
        self._pending.forget()

    def on_partition_owned(self, partition: int, epoch: int, marker_offset: int) -> None:
        """Become the owner of a partition, see :meth:`.PendingTransactions.own`."""
        self._pending.own(partition, epoch, marker_offset)

    def process_all(
        self, batches: Sequence[Batch], readers: Sequence[StateReader], now_ms: int
    ) -> list[BatchEffects]:
        """Return the effects of each batch, of any of the consumed topics."""
        self._pending.begin()
        topics = self._topics
        effects: list[BatchEffects] = [BatchEffects() for _ in batches]
        transactions: list[int] = []
        complete: list[tuple[int, list[PendingJoin]]] = []
        for index, batch in enumerate(batches):
            if batch.topic == topics.requests:
                self._entities.respond(batch, readers[index], effects[index], now_ms)
            elif batch.topic == topics.responses:
                complete.append((index, self._join.collect(batch, effects[index], now_ms)))
            elif batch.topic != topics.labels:
                transactions.append(index)
        parts = [self._decode(batches[index], now_ms) for index in transactions]
        joined = [
            self._join.reopen(batches[index], joins, effects[index], now_ms) for index, joins in complete
        ]
        matrix = self._vectors(
            parts, [readers[index] for index in transactions], sum(len(part.decoded) for part in joined)
        )
        for index, part in zip(transactions, parts, strict=True):
            effects[index] = part.effects
            self._users.apply(part, readers[index], matrix)
        start = parts[-1].rows.stop if parts else 0
        for (_, joins), part in zip(complete, joined, strict=True):
            part.rows = slice(start, start + len(part.decoded))
            part.outcome = np.zeros(len(part.decoded), np.uint8)  # SCORED
            start = part.rows.stop
            self._join.assemble(part, joins, matrix)
        self._conclude([*parts, *joined], matrix)
        # After the transactions: a label may belong to a transaction of this micro-batch.
        for index, batch in enumerate(batches):
            if batch.topic == topics.labels:
                self._users.apply_labels(batch, readers[index], effects[index], now_ms)
        _labels_last(batches, effects, transactions, topics.labels)
        for effect in effects:
            # A user's records together, so that one record batch holds all or none of them.
            effect.writes.sort(key=lambda write: write[0][:-6])
        return effects


def _labels_last(
    batches: Sequence[Batch], effects: Sequence[BatchEffects], transactions: Sequence[int], labels: str
) -> None:
    """Move the label stage's requests and writes after the transaction stage's of the same partition.

    The two were decided in that order. An entity that receives a label update before the request about the
    transaction cannot assign the label; and of two writes of a user's log the last one must win.
    """
    by_partition = {batches[index].partition: effects[index] for index in transactions}
    for batch, late in zip(batches, effects, strict=True):
        first = by_partition.get(batch.partition)
        if batch.topic != labels or first is None:
            continue
        for target, messages in late.requests.items():
            first.requests.setdefault(target, []).extend(messages)
        first.writes += late.writes
        late.requests, late.writes = {}, []
