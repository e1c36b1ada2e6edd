"""The pipeline: one batch of records in, everything that must happen out. No I/O, no clock, no Kafka.

:meth:`Pipeline.process` decides a whole batch in memory: it decodes and validates, brings the users'
histories forward, scores, explains what deserves an alert, and encodes alerts, decisions and dead
letters. What it returns is a plan; the runtime carries it out in the order that the guarantees need.
Given the same records, state, bundle and time, the plan is the same to the byte.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import orjson

from stream.errors import InvalidRecordError, RiskStreamError
from stream.events import (
    MAX_RECORD_BYTES,
    DeadLetterHeader,
    Outcome,
    RiskLevel,
    Transaction,
    decode_transaction,
    format_event_time,
)
from stream.features import kernel
from stream.features.history import FAILED, HistoryConfig, HistoryEvents, RecordReader, advance
from stream.features.identity import identities
from stream.features.vector import MISSING, Columns, VectorBuilder
from stream.scoring.policy import Policy, Verdict, alert_id
from stream.scoring.predictor import Predictor
from stream.scoring.reasons import Explainer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from stream.scoring.bundle import Bundle

__all__ = ["Batch", "Message", "Pipeline", "PipelineConfig", "Plan", "Record"]

_OUTCOMES: Final = {
    kernel.SCORED: Outcome.SCORED,
    kernel.LATE: Outcome.LATE,
    kernel.DUPLICATE: Outcome.DUPLICATE,
}

Headers = tuple[tuple[str, bytes], ...]


class Record(NamedTuple):
    """One record of the source topic."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


class Message(NamedTuple):
    """One record to produce."""

    key: bytes | None
    value: bytes | None
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one source partition, in offset order.

    Attributes
    ----------
    source:
        Names the incarnation of topic and partition that the offsets belong to.
    """

    topic: str
    partition: int
    source: int
    records: Sequence[Record]


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """What the pipeline may be told.

    Attributes
    ----------
    max_future_ms:
        How far an event time may lie ahead of the processing time.
    decisions, decision_features:
        Whether to make decisions, and to put the features' values into them.
    """

    lateness_ms: int = 3 * 86_400_000
    max_future_ms: int = 300_000
    max_record_bytes: int = MAX_RECORD_BYTES
    alert_level: RiskLevel = RiskLevel.MEDIUM
    max_reasons: int = 5
    decisions: bool = True
    decision_features: bool = False


@dataclass(slots=True)
class Plan:
    """What must happen for one batch.

    Attributes
    ----------
    alerts, decisions, dead_letters:
        Records to produce.
    writes:
        State records, None to delete.
    outcomes:
        How many records had each outcome; records that a replay skipped are in ``replayed``.
    alert_times:
        For each alert, the source record's timestamp and the event time, in ms.
    alert_levels, scores:
        Of the alerts, and of every scored transaction (float64[n]).
    """

    alerts: list[Message] = field(default_factory=list)
    decisions: list[Message] = field(default_factory=list)
    dead_letters: list[Message] = field(default_factory=list)
    writes: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    outcomes: dict[Outcome, int] = field(default_factory=dict)
    alert_times: list[tuple[int, int]] = field(default_factory=list)
    alert_levels: list[RiskLevel] = field(default_factory=list)
    scores: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    replayed: int = 0
    unknown_fields: int = 0
    other_source: int = 0
    rejected_fields: list[str] = field(default_factory=list)


class _Decoded(NamedTuple):
    record: Record
    transaction: Transaction


class Pipeline:
    """Decides batches with one model bundle."""

    def __init__(self, bundle: Bundle, config: PipelineConfig) -> None:
        self.bundle = bundle
        self.config = config
        self._history = HistoryConfig(config.lateness_ms)
        self._builder = VectorBuilder(bundle.spec)
        self._predictor = Predictor(bundle)
        self._policy = Policy(bundle.thresholds, config.alert_level)
        self._explainer = Explainer(bundle.spec, config.max_reasons)
        self._spec_hash = bundle.spec.hash
        self._names = bundle.spec.names

    def process(self, batch: Batch, reader: RecordReader, now_ms: int) -> Plan:
        """Return what must happen for ``batch``.

        Parameters
        ----------
        reader
            The state of the batch's partition.
        now_ms
            Processing time: bounds event times from above, and becomes ``scored_at``.
        """
        plan = Plan()
        decoded = self._decode(batch, now_ms, plan)
        if not decoded:
            return plan
        matrix = self._builder.empty(len(decoded))
        events = _events(batch, decoded)
        result = advance(events, self._history, reader, self._builder.history(matrix))
        self._builder.fill(_columns([item.transaction for item in decoded], self._builder), matrix)
        plan.writes = result.writes
        plan.other_source = result.other_source
        plan.replayed = int(np.count_nonzero(result.outcome == kernel.REPLAYED))
        scored = np.flatnonzero(result.outcome <= kernel.LATE)
        rows = matrix[scored]
        plan.scores = self._predictor.scores(rows)
        verdicts = [self._policy.judge(score) for score in plan.scores.tolist()]
        verdict_of: dict[int, tuple[Verdict, npt.NDArray[np.float64]]] = dict(
            zip(scored.tolist(), zip(verdicts, rows, strict=True), strict=True)
        )
        scored_at = format_event_time(now_ms)
        for index, code in enumerate(result.outcome.tolist()):
            item = decoded[index]
            if code == kernel.REPLAYED:
                continue
            if code == FAILED:
                error = result.errors[int(events.user[index])]
                self._reject(plan, batch, item.record, error, "$", f"{error}, at offset {item.record.offset}")
                continue
            outcome = _OUTCOMES[code]
            plan.outcomes[outcome] = plan.outcomes.get(outcome, 0) + 1
            if self.config.decisions:
                plan.decisions.append(self._decision(batch, item, outcome, scored_at, verdict_of.get(index)))
        self._alert(plan, batch, scored_at, [
            (decoded[index], verdict, row) for index, (verdict, row) in verdict_of.items() if verdict.alert
        ])  # fmt: skip
        return plan

    def _decode(self, batch: Batch, now_ms: int, plan: Plan) -> list[_Decoded]:
        """Return the valid transactions; the others become dead letters, each on its own."""
        decoded: list[_Decoded] = []
        latest = now_ms + self.config.max_future_ms
        for record in batch.records:
            try:
                transaction, unknown = decode_transaction(
                    record.value, max_bytes=self.config.max_record_bytes
                )
                if record.key != transaction.user_id.encode():
                    raise InvalidRecordError(
                        "key", "must be the user_id, so that a user's records meet on one partition"
                    )
                if transaction.event_time > latest:
                    ahead = (transaction.event_time - now_ms) // 1000
                    raise InvalidRecordError(
                        "event_time",
                        f"is {ahead} s ahead of the clock, more than the "
                        f"{self.config.max_future_ms // 1000} s allowed",
                    )
            except InvalidRecordError as error:
                self._reject(plan, batch, record, error, error.field, error.reason)
                continue
            plan.unknown_fields += unknown
            decoded.append(_Decoded(record, transaction))
        return decoded

    @staticmethod
    def _reject(
        plan: Plan, batch: Batch, record: Record, error: RiskStreamError, field_name: str, reason: str
    ) -> None:
        plan.outcomes[Outcome.REJECTED] = plan.outcomes.get(Outcome.REJECTED, 0) + 1
        plan.rejected_fields.append(field_name)
        headers = (
            *record.headers,
            (DeadLetterHeader.EXCEPTION.value, type(error).__name__.encode()),
            (DeadLetterHeader.MESSAGE.value, str(error).encode()),
            (DeadLetterHeader.TOPIC.value, batch.topic.encode()),
            (DeadLetterHeader.PARTITION.value, str(batch.partition).encode()),
            (DeadLetterHeader.OFFSET.value, str(record.offset).encode()),
            (DeadLetterHeader.FIELD.value, field_name.encode()),
            (DeadLetterHeader.REASON.value, reason.encode()),
            (DeadLetterHeader.TIMESTAMP.value, str(record.timestamp_ms).encode()),
        )
        plan.dead_letters.append(Message(record.key, record.value, headers))

    def _decision(
        self,
        batch: Batch,
        item: _Decoded,
        outcome: Outcome,
        scored_at: str,
        judged: tuple[Verdict, npt.NDArray[np.float64]] | None,
    ) -> Message:
        transaction = item.transaction
        body: dict[str, object] = {
            "transaction_id": transaction.transaction_id,
            "user_id": transaction.user_id,
            "event_time": format_event_time(transaction.event_time),
            "scored_at": scored_at,
            "outcome": outcome.value,
        }
        if judged is not None:
            verdict, row = judged
            body["risk_score"] = verdict.score
            body["risk_level"] = verdict.level.value
            body["prediction"] = verdict.prediction
            if verdict.alert:
                body["alert_id"] = alert_id(transaction.user_id, transaction.transaction_id)
            if self.config.decision_features:
                body["features"] = dict(zip(self._names, row.tolist(), strict=True))  # orjson: NaN is null
        body |= self._provenance(batch, item.record)
        return Message(item.record.key, orjson.dumps(body))

    def _alert(
        self,
        plan: Plan,
        batch: Batch,
        scored_at: str,
        items: list[tuple[_Decoded, Verdict, npt.NDArray[np.float64]]],
    ) -> None:
        if not items:
            return
        rows = np.stack([row for _, _, row in items])
        contributions = self._predictor.contributions(rows)
        for (item, verdict, row), moved in zip(items, contributions, strict=True):
            transaction = item.transaction
            body = {
                "alert_id": alert_id(transaction.user_id, transaction.transaction_id),
                "transaction_id": transaction.transaction_id,
                "user_id": transaction.user_id,
                "event_time": format_event_time(transaction.event_time),
                "scored_at": scored_at,
                "risk_score": verdict.score,
                "risk_level": verdict.level.value,
                "prediction": verdict.prediction,
                "reasons": self._explainer.reasons(row, moved),
            } | self._provenance(batch, item.record)
            plan.alerts.append(Message(item.record.key, orjson.dumps(body)))
            plan.alert_times.append((item.record.timestamp_ms, transaction.event_time))
            plan.alert_levels.append(verdict.level)

    def _provenance(self, batch: Batch, record: Record) -> dict[str, object]:
        return {
            "model_version": self.bundle.model_version,
            "feature_spec": self._spec_hash,
            "source_topic": batch.topic,
            "source_partition": batch.partition,
            "source_offset": record.offset,
        }


def _events(batch: Batch, decoded: list[_Decoded]) -> HistoryEvents:
    places: dict[str, int] = {}
    transactions = [item.transaction for item in decoded]
    count = len(decoded)
    user = np.fromiter((places.setdefault(t.user_id, len(places)) for t in transactions), np.int64, count)
    return HistoryEvents(
        users=[name.encode() for name in places],
        user=user,
        time_ms=np.fromiter((t.event_time for t in transactions), np.int64, count),
        amount_minor=np.fromiter((t.amount_minor for t in transactions), np.int64, count),
        merchant=identities(t.merchant_id for t in transactions),
        ident=identities(t.transaction_id for t in transactions),
        minor_units=np.fromiter((t.minor_units for t in transactions), np.int64, count),
        offset=np.fromiter((item.record.offset for item in decoded), np.int64, count),
        source=batch.source,
    )


def _columns(transactions: list[Transaction], builder: VectorBuilder) -> Columns:
    count = len(transactions)
    spec = builder.spec

    def balance(name: str) -> npt.NDArray[np.int64]:
        values = (getattr(t, name) for t in transactions)
        return np.fromiter((MISSING if value is None else value for value in values), np.int64, count)

    def attributes(name: str) -> list[float | str | None]:
        return [None if t.attributes is None else t.attributes.get(name) for t in transactions]

    return Columns(
        time_ms=np.fromiter((t.event_time for t in transactions), np.int64, count),
        amount_minor=np.fromiter((t.amount_minor for t in transactions), np.int64, count),
        minor_units=np.fromiter((t.minor_units for t in transactions), np.int64, count),
        pre_balance_minor=balance("pre_balance_minor"),
        post_balance_minor=balance("post_balance_minor"),
        categories={
            "channel": [t.channel for t in transactions],
            "transaction_type": [t.transaction_type for t in transactions],
        },
        numeric_attributes={
            name: np.array(
                [value if isinstance(value, float) else np.nan for value in attributes(name)], np.float64
            )
            for name in spec.numeric_attributes
        },
        categorical_attributes={
            name: [value if isinstance(value, str) else None for value in attributes(name)]
            for name in spec.categorical_attributes
        },
    )
