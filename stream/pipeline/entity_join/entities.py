"""The stage at the entity's partition: responses from entity logs, and what the logs take in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stream.errors import InvalidRecordError
from stream.features.profiles.online import E_CASE, E_IDENT, E_SIZE
from stream.pipeline import counters
from stream.pipeline.entity_join.messages import EntityRequest, EntityResponse, LabelUpdate, decode_request
from stream.state.format import entity_prefix

if TYPE_CHECKING:
    import numpy.typing as npt

    from stream.features.profiles.cache import EntityLogs
    from stream.features.profiles.log import EntityLog
    from stream.pipeline.effects import Batch, BatchEffects
    from stream.pipeline.entity_join.messages import EntityJoinTopics
    from stream.pipeline.entity_join.plan import JoinPlan
    from stream.state.store import StateReader

__all__ = ["EntityStage"]


class EntityStage:
    """Responds to requests from the entities' logs, and adds transactions and labels to them."""

    def __init__(self, plan: JoinPlan, topics: EntityJoinTopics, spec_hash: str, logs: EntityLogs) -> None:
        self._plan = plan
        self._topics = topics
        self._spec_hash = spec_hash
        self._logs = logs

    def respond(self, batch: Batch, reader: StateReader, effects: BatchEffects, now_ms: int) -> None:
        """Respond to requests and apply label updates, in the order of their offsets."""
        messages: list[tuple[bytes, EntityRequest | LabelUpdate]] = []
        for record in batch.records:
            try:
                message = decode_request(record.value)
            except InvalidRecordError as error:
                effects.reject_invalid(batch, record, error, now_ms)
                continue
            messages.append((entity_prefix(message.entity, message.name), message))
        logs = self._logs.of(batch.partition, dict.fromkeys(prefix for prefix, _ in messages), reader)
        changed: dict[bytes, int] = {}
        for prefix, message in messages:
            log = logs[prefix]
            if isinstance(message, LabelUpdate):
                if self._apply_label(log, message, effects):
                    changed[prefix] = message.entity
                continue
            features, applied = self._read(log, message, effects)
            if applied:
                changed[prefix] = message.entity
            self._send_response(message, features, effects)
        for prefix, code in changed.items():
            effects.writes += logs[prefix].writes(self._plan.horizons[code])
            counters.count_dropped(effects.join_counts, logs[prefix].dropped)
        self._logs.keep(batch.partition, logs.values())

    def respond_without_features(self, batch: Batch, effects: BatchEffects) -> None:
        """Respond to a batch's requests as if the entities were unknown."""
        for record in batch.records:
            try:
                message = decode_request(record.value)
            except InvalidRecordError:
                continue
            if isinstance(message, EntityRequest):
                self._send_response(message, self._plan.unknown(message.entity), effects)

    def _send_response(
        self, request: EntityRequest, features: npt.NDArray[np.float64] | None, effects: BatchEffects
    ) -> None:
        """Send features to the partition that asked; None if the log has applied the request already."""
        response = EntityResponse(request.entity, request.pending_id, self._spec_hash, features)
        target = (self._topics.responses, request.partition)
        effects.outputs.setdefault(target, []).append(response.encode())

    def _read(
        self, log: EntityLog, request: EntityRequest, effects: BatchEffects
    ) -> tuple[npt.NDArray[np.float64] | None, bool]:
        """Return an entity's features of a transaction, None if the log has applied the request already.

        And whether the log took the transaction in: it does not if the transaction is late for the entity or
        the log cannot be used.
        """
        plan = self._plan
        features = plan.unknown(request.entity)
        if request.entity not in plan.requested:
            return features, False
        if log.error is not None:
            effects.join_counts[counters.REQUEST_UNUSABLE] += 1
            return features, False
        if log.find(E_CASE, request.pending_id) >= 0:
            effects.join_counts[counters.REQUEST_ALREADY_APPLIED] += 1
            return None, False
        if plan.is_late(log, request):
            effects.join_counts[counters.REQUEST_LATE] += 1
            return features, False
        plan.read_profile(log, request, features)
        bits = int(np.float64(request.to_usual).view(np.int64))
        log.add(
            (request.time_ms, request.amount_minor, request.user, request.id_hash, bits, request.pending_id)
        )
        effects.join_counts[counters.REQUEST_ANSWERED] += 1
        return features, True

    def _apply_label(self, log: EntityLog, update: LabelUpdate, effects: BatchEffects) -> bool:
        """Add a label to a log; returns whether that changed it."""
        profiles = self._plan.requested.get(update.entity, [])
        if not profiles or log.error is not None:
            effects.join_counts[counters.UPDATE_UNKNOWN] += 1
            return False
        row = log.find(E_IDENT, update.id_hash)
        if row < 0:
            effects.join_counts[counters.UPDATE_UNKNOWN] += 1
            return False
        time_ms, amount, _, _, to_usual, _ = log.events.array[:E_SIZE, row].tolist()
        plan = self._plan
        # Whether a transaction that old is still in the log depends on the batches.
        expired = time_ms <= log.newest - plan.horizons[update.entity].events_ms
        if expired or update.when_ms > time_ms + plan.label_horizon_ms.get(update.entity, 0):
            effects.join_counts[counters.UPDATE_EXPIRED] += 1
            return False
        number = log.total - (log.events.end - row)
        label = (
            update.when_ms, update.is_fraud, update.offset, time_ms, amount, to_usual, update.id_hash, number,
        )  # fmt: skip
        applied = log.label(label)
        effects.join_counts[counters.UPDATE_APPLIED if applied else counters.UPDATE_ALREADY_APPLIED] += 1
        return applied
