"""The pipeline: one batch of records in, everything that must happen out. No I/O, no clock, no Kafka.

:meth:`Pipeline.process` decides a whole batch in memory: it decodes and validates, brings the users'
histories forward, scores, explains what deserves an alert, and encodes alerts, decisions and dead
letters. What it returns is a plan; the runtime carries it out in the order that the guarantees need.
Given the same records, state, bundle and time, the plan is the same to the byte.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import numpy as np

from stream.errors import InvalidRecordError, RiskStreamError, StateError
from stream.events import MAX_RECORD_BYTES, Outcome, RiskLevel
from stream.features import kernel
from stream.features.history import (
    FAILED,
    HistoryConfig,
    HistoryEvents,
    Partitioned,
    RecordReader,
    advance,
)
from stream.features.identity import identities
from stream.features.residents import Residents
from stream.features.vector import MISSING, Columns, VectorBuilder
from stream.intake import Row, decode_row
from stream.outputs import Encoder, Message, Record, dead_letter
from stream.scoring.policy import Policy, Verdict
from stream.scoring.predictor import Predictor
from stream.scoring.reasons import Explainer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from stream.features.spec import FeatureSpec
    from stream.hop_events import HopEvent
    from stream.scoring.bundle import Bundle
    from stream.scoring.sentences import Language

__all__ = [
    "Alerted",
    "Batch",
    "Decoded",
    "Message",
    "Part",
    "Pipeline",
    "PipelineConfig",
    "Plan",
    "Record",
    "Sends",
    "columns_of",
    "events_of",
    "gather",
    "refuse",
]

#: Records by topic and partition.
Sends = dict[tuple[str, int], list[Message]]

_K = TypeVar("_K")
_V = TypeVar("_V")

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
    language:
        Of the reasons' sentences: ``en`` or ``zh``.
    decisions, decision_features:
        Whether to make decisions, and to put the features' values into them.
    resident_bytes:
        Memory for long histories that stay unpacked between rounds.
    """

    lateness_ms: int = 3 * 86_400_000
    max_future_ms: int = 300_000
    max_record_bytes: int = MAX_RECORD_BYTES
    alert_level: RiskLevel = RiskLevel.MEDIUM
    max_reasons: int = 5
    language: Language = "en"
    decisions: bool = True
    decision_features: bool = False
    resident_bytes: int = 128 << 20


def gather(parts: Iterable[tuple[_K, list[_V]]]) -> dict[_K, list[_V]]:
    """Return lists joined under their keys, in their order; those that were given stay as they are."""
    found: dict[_K, list[_V]] = {}
    for key, values in parts:
        if values:
            found.setdefault(key, []).extend(values)
    return found


class Alerted(NamedTuple):
    """Which transaction an alert is about: its level, and the source record's time, both times in ms."""

    level: RiskLevel
    timestamp_ms: int
    event_time_ms: int
    offset: int
    transaction_id: str


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
    alerted:
        What the alerts are about, in their order.
    rejected:
        The offending field and the source offset of each dead letter, in their order.
    scores, features:
        Of every scored transaction (float64[n] and float64[n, k]).
    sends, asks:
        Records for other stages of a model with profiles, by topic and partition; those of ``asks`` may be
        sent only once all others are acknowledged.
    hold:
        Where the batch's partition has to be taken up again after a restart; None: behind the batch.
    hop:
        How often what happened between the stages.
    """

    alerts: list[Message] = field(default_factory=list)
    decisions: list[Message] = field(default_factory=list)
    dead_letters: list[Message] = field(default_factory=list)
    writes: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    outcomes: dict[Outcome, int] = field(default_factory=dict)
    alerted: list[Alerted] = field(default_factory=list)
    scores: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    features: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    replayed: int = 0
    unknown_fields: int = 0
    other_source: int = 0
    rejected: list[tuple[str, int]] = field(default_factory=list)
    sends: Sends = field(default_factory=dict)
    asks: Sends = field(default_factory=dict)
    hold: int | None = None
    hop: Counter[HopEvent] = field(default_factory=Counter)


class Decoded(NamedTuple):
    """A record and the valid transaction in it."""

    record: Record
    row: Row


@dataclass(slots=True)
class Part:
    """One partition's batch on its way: its valid transactions, and their rows in the common matrix."""

    batch: Batch
    decoded: list[Decoded]
    plan: Plan
    now_ms: int
    rows: slice = field(default_factory=lambda: slice(0, 0))
    outcome: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    errors: dict[str, StateError] = field(default_factory=dict)


class Pipeline:
    """Decides batches with one model bundle; of a model with profiles see :mod:`stream.profiled`."""

    def __init__(self, bundle: Bundle, config: PipelineConfig) -> None:
        self.bundle = bundle
        self.config = config
        self._history = HistoryConfig(config.lateness_ms)
        self._residents = Residents(config.resident_bytes)
        self._builder = VectorBuilder(bundle.spec)
        self._predictor = Predictor(bundle)
        self._policy = Policy(bundle.thresholds, config.alert_level)
        self._explainer = Explainer(bundle.spec, config.max_reasons, config.language)
        self._spec_hash = bundle.spec.hash

    def process(self, batch: Batch, reader: RecordReader, now_ms: int) -> Plan:
        """Return what must happen for one partition's batch; see :meth:`process_all`."""
        return self.process_all([batch], [reader], now_ms)[0]

    def process_all(
        self, batches: Sequence[Batch], readers: Sequence[RecordReader], now_ms: int
    ) -> list[Plan]:
        """Return what must happen for each of several partitions' batches.

        Each partition has its own state; vectors, scores and explanations are made for all at once.

        Parameters
        ----------
        readers
            The state of each batch's partition.
        now_ms
            Processing time: bounds event times from above.
        """
        parts = [self._decode(batch, now_ms) for batch in batches]
        matrix = self._vectors(parts, readers)
        self._conclude(parts, matrix)
        return [part.plan for part in parts]

    @property
    def waiting(self) -> int:
        """How many transactions wait for what is known elsewhere."""
        return 0

    def rebalanced(self) -> None:
        """Forget what may have become another worker's; nothing is under way."""

    def _vectors(
        self, parts: list[Part], readers: Sequence[RecordReader], more: int = 0
    ) -> npt.NDArray[np.float64]:
        """Return the transactions' vectors, having taken them into the histories; then so many empty rows."""
        everything = [item for part in parts for item in part.decoded]
        count = len(everything)
        matrix = self._builder.empty(count + more)
        start = 0
        for part in parts:
            part.rows = slice(start, start + len(part.decoded))
            start = part.rows.stop
        if everything:
            events, ends = events_of(parts, everything)
            self._advance(parts, events, Partitioned(readers, ends), matrix[:count])
            rows = [row for _, row in everything]
            self._builder.fill(columns_of(rows, events, self.bundle.spec), matrix[:count])
        return matrix

    def _conclude(self, parts: list[Part], matrix: npt.NDArray[np.float64]) -> None:
        """Score the vectors of transactions that have an outcome; the plans get what is said of them."""
        verdicts = self._judge(parts, matrix)
        for part in parts:
            self._decide(part, verdicts, matrix)
        self._alert(parts, verdicts, matrix)

    def forget(self) -> None:
        """Forget the long histories that are kept unpacked; they are read anew when they are needed."""
        self._residents.forget()

    def _advance(
        self,
        parts: list[Part],
        events: HistoryEvents,
        reader: Partitioned,
        matrix: npt.NDArray[np.float64],
    ) -> None:
        """Bring the users' histories forward, those of all partitions at once."""
        features = self._builder.history(matrix)
        result = advance(events, self._history, reader, features, residents=self._residents)
        for part in parts:
            part.outcome = result.outcome[part.rows]
        for place, error in result.errors.items():
            [at] = reader.part_of(np.array([place])).tolist()
            parts[at].errors[events.users[place].decode()] = error
        for at in reader.part_of(np.flatnonzero(result.other_source)).tolist():
            parts[at].plan.other_source += 1
        for at, write in zip(
            reader.part_of(np.array(result.owners, np.int64)).tolist(), result.writes, strict=True
        ):
            parts[at].plan.writes.append(write)

    def _judge(self, parts: list[Part], matrix: npt.NDArray[np.float64]) -> dict[int, Verdict]:
        """Score every row that has features, and return the verdicts by row."""
        outcomes = np.concatenate([part.outcome for part in parts]) if parts else np.empty(0, np.uint8)
        scored = np.flatnonzero(outcomes <= kernel.LATE)
        rows = matrix if len(scored) == len(matrix) else matrix[scored]
        scores = self._predictor.scores(rows)
        for part in parts:
            first, last = np.searchsorted(scored, [part.rows.start, part.rows.stop])
            part.plan.scores = scores[first:last]
            part.plan.features = rows[first:last]
        return dict(zip(scored.tolist(), map(self._policy.judge, scores.tolist()), strict=True))

    def _decode(self, batch: Batch, now_ms: int) -> Part:
        """Return the valid transactions; the others become dead letters, each on its own."""
        part = Part(batch, [], Plan(), now_ms)
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
                _reject(part, record, error, error.field, error.reason)
                continue
            part.plan.unknown_fields += unknown
            part.decoded.append(Decoded(record, row))
        return part

    def _decide(self, part: Part, verdicts: dict[int, Verdict], matrix: npt.NDArray[np.float64]) -> None:
        """Count every transaction's outcome, and make its decision."""
        plan = part.plan
        names = self.bundle.spec.names if self.config.decision_features else ()
        decide = self._encoder(part.batch).decision if self.config.decisions else None
        counts = np.bincount(part.outcome, minlength=FAILED + 1).tolist()
        plan.replayed = counts[kernel.REPLAYED]
        plan.outcomes |= {outcome: counts[code] for code, outcome in enumerate(_OUTCOMES) if counts[code]}
        places = range(part.rows.start, part.rows.stop)
        for place, (record, row), code in zip(places, part.decoded, part.outcome.tolist(), strict=True):
            if code <= kernel.DUPLICATE:
                if decide is not None:
                    verdict, features = verdicts.get(place), None
                    if names and verdict is not None:
                        features = dict(zip(names, matrix[place].tolist(), strict=True))
                    plan.decisions.append(decide(record, row, _OUTCOMES[code], verdict, features))
            elif code == FAILED:
                error = part.errors[row.user_id]
                _reject(part, record, error, "$", f"{error}, at offset {record.offset}")

    def _alert(
        self, parts: list[Part], verdicts: dict[int, Verdict], matrix: npt.NDArray[np.float64]
    ) -> None:
        """Explain and encode the alerts."""
        chosen = [place for place, verdict in verdicts.items() if verdict.alert]
        explained = iter(zip(chosen, self._predictor.contributions(matrix[chosen]), strict=True))
        place, moved = next(explained, (-1, None))
        for part in parts:
            encoder = self._encoder(part.batch)
            plan = part.plan
            while moved is not None and part.rows.start <= place < part.rows.stop:
                record, row = part.decoded[place - part.rows.start]
                verdict = verdicts[place]
                reasons = self._explainer.reasons(matrix[place], moved)
                plan.alerts.append(encoder.alert(record, row, verdict, reasons))
                plan.alerted.append(
                    Alerted(
                        verdict.level, record.timestamp_ms, row.event_time, record.offset, row.transaction_id
                    )
                )
                place, moved = next(explained, (-1, None))

    def _encoder(self, batch: Batch) -> Encoder:
        return Encoder(self.bundle.model_version, self._spec_hash, batch.topic, batch.partition)


def _reject(part: Part, record: Record, error: RiskStreamError, field_name: str, reason: str) -> None:
    outcomes = part.plan.outcomes
    outcomes[Outcome.REJECTED] = outcomes.get(Outcome.REJECTED, 0) + 1
    refuse(part.plan, part.batch, record, error, (field_name, reason), part.now_ms)


def refuse(
    plan: Plan,
    batch: Batch,
    record: Record,
    error: RiskStreamError,
    field_and_reason: tuple[str, str],
    now_ms: int,
) -> None:
    """Send a record to the dead letters."""
    field_name, reason = field_and_reason
    plan.rejected.append((field_name, record.offset))
    plan.dead_letters.append(
        dead_letter(batch.topic, batch.partition, record, error, field_name, reason, now_ms)
    )


def events_of(parts: list[Part], everything: list[Decoded]) -> tuple[HistoryEvents, list[int]]:
    """Return the events of all partitions, and the place behind the last user of each."""
    users: list[bytes] = []
    user: list[int] = []
    sources: list[int] = []
    ends: list[int] = []
    for part in parts:
        places: dict[str, int] = {}
        first = len(users)
        user += [first + places.setdefault(row.user_id, len(places)) for _, row in part.decoded]
        users += [name.encode() for name in places]
        sources += [part.batch.source] * len(places)
        ends.append(len(users))
    numbers = np.array(
        [(row.event_time, row.amount_minor, row.minor_units, record.offset) for record, row in everything],
        np.int64,
    )
    time_ms, amount_minor, minor_units, offset = np.ascontiguousarray(numbers.T)
    events = HistoryEvents(
        users=users,
        user=np.array(user, np.int64),
        time_ms=time_ms,
        amount_minor=amount_minor,
        merchant=identities([row.merchant_id for _, row in everything]),
        ident=identities([row.transaction_id for _, row in everything]),
        minor_units=minor_units,
        offset=offset,
        source=np.array(sources, np.int64),
    )
    return events, ends


def columns_of(rows: Sequence[Row], events: HistoryEvents, spec: FeatureSpec) -> Columns:
    """Return what transactions say of themselves; ``events`` are theirs."""

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
