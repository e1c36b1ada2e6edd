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

from stream.errors import InvalidRecordError, RiskStreamError
from stream.events import MAX_RECORD_BYTES, Outcome, RiskLevel
from stream.features import kernel
from stream.features.history import FAILED, HistoryConfig, HistoryEvents, HistoryResult, RecordReader, advance
from stream.features.identity import identities
from stream.features.vector import MISSING, Columns, VectorBuilder
from stream.intake import Row, decode_row
from stream.outputs import Encoder, Message, Record, dead_letter
from stream.scoring.policy import Policy, Verdict
from stream.scoring.predictor import Predictor
from stream.scoring.reasons import Explainer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from stream.features.spec import FeatureSpec
    from stream.scoring.bundle import Bundle

__all__ = ["Batch", "Message", "Pipeline", "PipelineConfig", "Plan", "Record"]

#: Of the records that leave something behind; one whose effect the state already holds leaves nothing.
_OUTCOMES: Final = (Outcome.SCORED, Outcome.LATE, Outcome.DUPLICATE)


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
    row: Row


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
        self._builder.fill(_columns(decoded, events, self.bundle.spec), matrix)
        plan.writes = result.writes
        plan.other_source = result.other_source
        scored = np.flatnonzero(result.outcome <= kernel.LATE)
        plan.scores = self._predictor.scores(matrix if len(scored) == len(matrix) else matrix[scored])
        verdicts = dict(zip(scored.tolist(), map(self._policy.judge, plan.scores.tolist()), strict=True))
        encoder = Encoder(
            self.bundle.model_version, self._spec_hash, batch.topic, batch.partition, scored_at_ms=now_ms
        )
        self._decide(plan, batch, decoded, events, result, verdicts, matrix, encoder, now_ms)
        self._alert(plan, decoded, verdicts, matrix, encoder)
        return plan

    def _decode(self, batch: Batch, now_ms: int, plan: Plan) -> list[_Decoded]:
        """Return the valid transactions; the others become dead letters, each on its own."""
        decoded: list[_Decoded] = []
        latest = now_ms + self.config.max_future_ms
        max_bytes = self.config.max_record_bytes
        for record in batch.records:
            try:
                row, unknown = decode_row(record.value, max_bytes)
                if record.key != row.user_id.encode():
                    raise InvalidRecordError(
                        "key", "must be the user_id, so that a user's records meet on one partition"
                    )
                if row.event_time > latest:
                    raise InvalidRecordError(
                        "event_time",
                        f"is {(row.event_time - now_ms) // 1000} s ahead of the clock, more than the "
                        f"{self.config.max_future_ms // 1000} s allowed",
                    )
            except InvalidRecordError as error:
                _reject(plan, batch, record, error, error.field, error.reason, now_ms)
                continue
            plan.unknown_fields += unknown
            decoded.append(_Decoded(record, row))
        return decoded

    def _decide(
        self,
        plan: Plan,
        batch: Batch,
        decoded: list[_Decoded],
        events: HistoryEvents,
        result: HistoryResult,
        verdicts: dict[int, Verdict],
        matrix: npt.NDArray[np.float64],
        encoder: Encoder,
        now_ms: int,
    ) -> None:
        """Count every transaction's outcome, and make its decision."""
        names = self.bundle.spec.names
        for index, ((record, row), code) in enumerate(zip(decoded, result.outcome.tolist(), strict=True)):
            if code == kernel.REPLAYED:
                plan.replayed += 1
                continue
            if code == FAILED:
                error = result.errors[int(events.user[index])]
                _reject(plan, batch, record, error, "$", f"{error}, at offset {record.offset}", now_ms)
                continue
            outcome = _OUTCOMES[code]
            plan.outcomes[outcome] = plan.outcomes.get(outcome, 0) + 1
            if self.config.decisions:
                verdict = verdicts.get(index)
                features = None
                if self.config.decision_features and verdict is not None:
                    features = dict(zip(names, matrix[index].tolist(), strict=True))
                plan.decisions.append(encoder.decision(record, row, outcome, verdict, features))

    def _alert(
        self,
        plan: Plan,
        decoded: list[_Decoded],
        verdicts: dict[int, Verdict],
        matrix: npt.NDArray[np.float64],
        encoder: Encoder,
    ) -> None:
        """Explain and encode the alerts."""
        chosen = [index for index, verdict in verdicts.items() if verdict.alert]
        contributions = self._predictor.contributions(matrix[chosen])
        for index, moved in zip(chosen, contributions, strict=True):
            record, row = decoded[index]
            verdict = verdicts[index]
            reasons = self._explainer.reasons(matrix[index], moved)
            plan.alerts.append(encoder.alert(record, row, verdict, reasons))
            plan.alert_times.append((record.timestamp_ms, row.event_time))
            plan.alert_levels.append(verdict.level)


def _reject(
    plan: Plan,
    batch: Batch,
    record: Record,
    error: RiskStreamError,
    field_name: str,
    reason: str,
    now_ms: int,
) -> None:
    plan.outcomes[Outcome.REJECTED] = plan.outcomes.get(Outcome.REJECTED, 0) + 1
    plan.rejected_fields.append(field_name)
    plan.dead_letters.append(
        dead_letter(batch.topic, batch.partition, record, error, field_name, reason, refused_at_ms=now_ms)
    )


def _events(batch: Batch, decoded: list[_Decoded]) -> HistoryEvents:
    places: dict[str, int] = {}
    user = np.array([places.setdefault(row.user_id, len(places)) for _, row in decoded], np.int64)
    numbers = np.array(
        [(row.event_time, row.amount_minor, row.minor_units, record.offset) for record, row in decoded],
        np.int64,
    )
    time_ms, amount_minor, minor_units, offset = np.ascontiguousarray(numbers.T)
    return HistoryEvents(
        users=[name.encode() for name in places],
        user=user,
        time_ms=time_ms,
        amount_minor=amount_minor,
        merchant=identities([row.merchant_id for _, row in decoded]),
        ident=identities([row.transaction_id for _, row in decoded]),
        minor_units=minor_units,
        offset=offset,
        source=batch.source,
    )


def _columns(decoded: list[_Decoded], events: HistoryEvents, spec: FeatureSpec) -> Columns:
    rows = [row for _, row in decoded]

    def balances(values: list[int | None]) -> npt.NDArray[np.int64]:
        return np.array([MISSING if value is None else value for value in values], np.int64)

    def attributes(name: str) -> list[float | str | None]:
        return [None if row.attributes is None else row.attributes.get(name) for row in rows]

    return Columns(
        time_ms=events.time_ms,
        amount_minor=events.amount_minor,
        minor_units=events.minor_units,
        pre_balance_minor=balances([row.pre_balance_minor for row in rows]),
        post_balance_minor=balances([row.post_balance_minor for row in rows]),
        categories={
            "channel": [row.channel for row in rows],
            "transaction_type": [row.transaction_type for row in rows],
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
