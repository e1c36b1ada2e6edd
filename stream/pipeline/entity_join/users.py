"""The stage at the user's partition: user logs, requests to entities, and labels on their way."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from stream.errors import InvalidRecordError
from stream.events.decode import decode_label
from stream.features.profiles.log import MAX_WAITING, Waiting
from stream.features.profiles.online import E_IDENT, E_USER
from stream.features.refunds import is_refund
from stream.features.windows.arrays import SCORED
from stream.pipeline import counters
from stream.pipeline.entity_join.messages import (
    CODES,
    EntityRequest,
    LabelUpdate,
    PendingTransaction,
    partition_of,
    pending_id_of,
)
from stream.pipeline.entity_join.plan import ROUTES, USER_WIDTH, JoinPlan, entities_of
from stream.state.hashing import hash_id

if TYPE_CHECKING:
    import numpy.typing as npt

    from stream.events.card_numbers import CardNumbers
    from stream.events.decode import TransactionRow
    from stream.events.models import Label
    from stream.events.records import ConsumerRecord
    from stream.features.profiles.cache import EntityLogs
    from stream.features.profiles.log import EntityLog
    from stream.pipeline.effects import Batch, BatchEffects, PartitionBatch
    from stream.pipeline.entity_join.messages import EntityJoinTopics
    from stream.pipeline.entity_join.pending import PendingTransactions
    from stream.pipeline.times import EventTimeLimits
    from stream.state.store import StateReader

__all__ = ["UserStage"]

#: The outcome of a transaction that the join stage decides.
_PENDING: Final = 7


class UserStage:
    """Adds transactions to their users' logs, sends requests to entities, and routes labels.

    Transactions and labels share the cache of user logs, so both belong to one stage.
    """

    def __init__(
        self,
        plan: JoinPlan,
        topics: EntityJoinTopics,
        spec_hash: str,
        logs: EntityLogs,
        pending: PendingTransactions,
        max_record_bytes: int,
        times: EventTimeLimits,
        card_numbers: CardNumbers,
    ) -> None:
        self._plan = plan
        self._topics = topics
        self._spec_hash = spec_hash
        self._logs = logs
        self._pending = pending
        self._max_record_bytes = max_record_bytes
        self._times = times
        self._card_numbers = card_numbers

    def apply(self, part: PartitionBatch, reader: StateReader, matrix: npt.NDArray[np.float64]) -> None:
        """Add applied transactions to their users' logs, and request the profiles kept elsewhere."""
        plan, batch, effects = self._plan, part.batch, part.effects
        if not plan.keeps_users and not plan.requested:
            return
        applied = [
            index
            for index, code in enumerate(part.outcome.tolist())
            if code == SCORED and not self._is_refund(part.decoded[index].row)
        ]
        logs: dict[bytes, EntityLog] = {}
        if plan.keeps_users:
            users = dict.fromkeys(part.decoded[index].row.user_id.encode() for index in applied)
            logs = self._logs.of(batch.partition, users, reader)
        for index in applied:
            _, row = part.decoded[index]
            vector = matrix[part.rows.start + index]
            names = entities_of(row)
            id_hash = hash_id(f"{row.user_id}\0{row.transaction_id}")
            to_usual = math.nan
            waiting: list[Waiting] = []
            if plan.keeps_users:
                log = logs[row.user_id.encode()]
                if log.error is None:
                    to_usual = self._read_own(log, row, names["user"], vector)
                    routes = [names[entity] for entity in ROUTES]
                    log.add((row.event_time, row.amount_minor, names["user"], id_hash, *routes))
                    waiting = [label for label in log.waiting if label.id_hash == id_hash]
                else:
                    effects.join_counts[counters.REQUEST_UNUSABLE] += 1
            self._request(part, index, vector, names, (id_hash, to_usual))
            if waiting:
                log.waiting = [label for label in log.waiting if label.id_hash != id_hash]
                for label in waiting:
                    self._announce(effects, log, log.events.end - 1, label)
        for log in logs.values():
            if log.error is None:
                effects.writes += log.writes(plan.user_horizon)
                counters.count_dropped(effects.join_counts, log.dropped)
        self._logs.keep(batch.partition, logs.values())

    def _is_refund(self, row: TransactionRow) -> bool:
        return is_refund(row.amount_minor, row.transaction_type, self._plan.refund_types)

    def apply_labels(self, batch: Batch, reader: StateReader, effects: BatchEffects, now_ms: int) -> None:
        """Forward labels to the entities of their transactions; a label without a transaction waits."""
        labels = self._decode_labels(batch, effects, now_ms)
        if not self._plan.labelled:
            return
        logs = self._logs.of(
            batch.partition, dict.fromkeys(label.user_id.encode() for _, label in labels), reader
        )
        changed: dict[bytes, EntityLog] = {}
        for record, label in labels:
            log = logs[label.user_id.encode()]
            if log.error is not None:
                error = InvalidRecordError("user_id", str(log.error))
                effects.reject_invalid(batch, record, error, now_ms)
                continue
            id_hash = hash_id(f"{label.user_id}\0{label.transaction_id}")
            waiting = Waiting(id_hash, int(label.is_fraud), label.label_time, record.offset)
            row = log.find(E_IDENT, id_hash)
            if row >= 0:
                self._announce(effects, log, row, waiting)
            elif label.event_time <= log.newest - self._plan.user_horizon.events_ms:
                effects.join_counts[counters.LABEL_EXPIRED] += 1
            elif waiting not in log.waiting:
                log.waiting.append(waiting)
                if len(log.waiting) > MAX_WAITING:
                    log.waiting.pop(0)
                    effects.join_counts[counters.LABEL_EXPIRED] += 1
                effects.join_counts[counters.LABEL_WAITING] += 1
                changed[log.prefix] = log
        for log in changed.values():
            effects.writes += log.writes(self._plan.user_horizon)
            counters.count_dropped(effects.join_counts, log.dropped)
        self._logs.keep(batch.partition, logs.values())

    def _read_own(
        self, log: EntityLog, row: TransactionRow, user: int, vector: npt.NDArray[np.float64]
    ) -> float:
        """Write the profiles of the user's own log; returns the amount relative to the usual one."""
        plan = self._plan
        plan.read_own_profiles(log, row, user, vector)
        if plan.usual_column is not None:
            return float(vector[plan.usual_column])
        if plan.usual is None:
            return math.nan
        usual = np.full(1, np.nan)
        log.read_profile(plan.usual, row.event_time, row.amount_minor, row.minor_units, user, usual)
        return float(usual[0])

    def _request(
        self,
        part: PartitionBatch,
        index: int,
        vector: npt.NDArray[np.float64],
        names: dict[str, int],
        known: tuple[int, float],
    ) -> None:
        """Make a transaction pending and send a request to each of its entities, all at once.

        A transaction without profiled entities is decided here.
        """
        record, row = part.decoded[index]
        id_hash, to_usual = known
        batch, effects, topics = part.batch, part.effects, self._topics
        requested = self._plan.named(names)
        if not requested:
            return
        pending_id = pending_id_of(batch.source, record.offset)
        bits = sum(1 << code for code in requested)
        epoch = self._pending.epoch(batch.partition)
        pending = PendingTransaction(pending_id, record, self._spec_hash, bits, vector, epoch)
        effects.outputs.setdefault((topics.responses, batch.partition), []).append(pending.encode())
        for code, name in requested.items():
            request = EntityRequest(
                code, name, pending_id, batch.partition, row.event_time, row.amount_minor, row.minor_units,
                names["user"], id_hash, to_usual,
            )  # fmt: skip
            self._send_to_entity(effects, name, request)
        part.outcome[index] = _PENDING
        effects.join_counts[counters.TRANSACTION_PENDING] += 1

    def _send_to_entity(self, effects: BatchEffects, name: int, message: EntityRequest | LabelUpdate) -> None:
        target = (self._topics.requests, partition_of(name, self._topics.partitions))
        effects.requests.setdefault(target, []).append(message.encode())

    def _decode_labels(
        self, batch: Batch, effects: BatchEffects, now_ms: int
    ) -> list[tuple[ConsumerRecord, Label]]:
        """Return the valid labels; the others become dead letters."""
        labels: list[tuple[ConsumerRecord, Label]] = []
        for record in batch.records:
            try:
                label, unknown = decode_label(record.value, max_bytes=self._max_record_bytes)
                if record.key != label.user_id.encode():
                    raise InvalidRecordError(
                        "key", "must be the user_id, so that a label meets its user's transactions"
                    )
                for field in ("event_time", "label_time"):
                    if (when := getattr(label, field)) < self._times.min_ms:
                        raise self._times.error(field, when, now_ms)
                clean, replaced = self._card_numbers.label(label, record)
            except InvalidRecordError as error:
                effects.reject_invalid(batch, record, error, now_ms)
                continue
            effects.unknown_fields += unknown
            effects.card_numbers["replaced"] += replaced is not record
            labels.append((replaced, clean))
        return labels

    def _announce(self, effects: BatchEffects, log: EntityLog, row: int, label: Waiting) -> None:
        """Send a label update to each entity that the transaction names and the model has labels of."""
        user, _, *names = log.events.array[E_USER:USER_WIDTH, row].tolist()
        routes = {"user": user, **dict(zip(ROUTES, names, strict=True))}
        for entity in self._plan.labelled:
            name = routes[entity]
            if name:
                update = LabelUpdate(
                    CODES[entity], name, label.id_hash, label.is_fraud, label.when_ms, label.offset
                )
                self._send_to_entity(effects, name, update)
                effects.join_counts[counters.UPDATE_SENT] += 1
        effects.join_counts[counters.LABEL_ANNOUNCED] += 1
