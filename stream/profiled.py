"""The pipeline of a model with profiles: the same decisions, in stages that each keep their own state.

================  ============  ============================================================================
records of        keyed by      are
================  ============  ============================================================================
transactions      user          taken into the user's history and log; decided at once where no other entity
                                is asked, otherwise sent on as a case and a question to each entity
labels            user          sent on as notes to the entities of their transaction; one whose transaction
                                is not known yet waits in the user's log
questions, notes  entity        answered from the entity's log, and taken into it
cases, answers    (partition)   put together; with all of its answers a case is decided
================  ============  ============================================================================

All topics have as many partitions, and a worker has the same ones of each. The messages are in
:mod:`stream.hop`; why nothing is lost or doubled on the way is in docs/guarantees.md. No I/O.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from stream.errors import InvalidRecordError
from stream.events import decode_label
from stream.features import kernel
from stream.features.entities import EntityProfile
from stream.features.entity_event import E_CASE, E_IDENT, E_SIZE, E_USER, Looker, find
from stream.features.entity_log import MAX_WAITING, EntityLogs, Horizon, Waiting
from stream.features.identity import identity
from stream.features.layout import entity_prefix
from stream.hop import (
    CODES,
    Answer,
    Case,
    Note,
    Question,
    case_of,
    decode_answers,
    decode_question,
    partition_of,
)
from stream.intake import decode_row
from stream.outputs import dead_letter
from stream.pipeline import Batch, Decoded, Part, Pipeline, PipelineConfig, Plan, columns_of, events_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from stream.events import Label
    from stream.features.entity_log import EntityLog
    from stream.features.history import RecordReader
    from stream.intake import Row
    from stream.outputs import HopEvent, Record
    from stream.scoring.bundle import Bundle

__all__ = ["HopTopics", "ProfiledPipeline"]

_DAY_MS: Final = 86_400_000

# What is counted, see stream.outputs.HOP_EVENTS.
CASES: Final = ("case", "opened")
OTHER_MODEL: Final = ("case", "other_model")
ANSWERED: Final = ("question", "answered")
REPEATED: Final = ("question", "repeated")
LATE: Final = ("question", "late")
UNUSABLE: Final = ("question", "unusable_state")
LABELS_NOTED: Final = ("label", "noted")
LABELS_WAITING: Final = ("label", "waiting")
LABELS_EXPIRED: Final = ("label", "expired")
NOTES_SENT: Final = ("note", "sent")
NOTES_LEARNT: Final = ("note", "learnt")
NOTES_REPEATED: Final = ("note", "repeated")
NOTES_UNKNOWN: Final = ("note", "unknown")
NOTES_EXPIRED: Final = ("note", "expired")

#: The outcome of a transaction that is decided elsewhere.
_ASKED: Final = 7

#: A user's log keeps of each transaction its time, amount, user and identity, and then the identities of
#: these, 0 where unknown: they say whom its label concerns.
_ROUTES: Final = ("merchant", "card", "device", "ip")
_FIRST_ROUTE: Final = E_IDENT + 1
_USER_WIDTH: Final = _FIRST_ROUTE + len(_ROUTES)


@dataclass(frozen=True, slots=True)
class HopTopics:
    """Names of the topics between the stages, and how many partitions each has."""

    transactions: str
    labels: str
    questions: str
    answers: str
    partitions: int


@dataclass(slots=True)
class _Open:
    """A case and the answers that there are."""

    case: Case
    offset: int
    answers: dict[int, Answer] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Columns:
    """A profile's columns in the model's vector."""

    looker: Looker
    first: int
    end: int


class _Stages:
    """What of a spec belongs to which stage."""

    def __init__(self, bundle: Bundle, lateness_ms: int) -> None:
        spec = bundle.spec
        self.local: list[_Columns] = []
        self.asked: dict[int, list[_Columns]] = {}
        self.labelled: set[str] = set()
        #: Where a transaction's amount to its user's usual one comes from, where an entity wants it: a column
        #: of the vector, or a look of its own because the user's profile is made elsewhere.
        self.usual_column: int | None = None
        self.usual: Looker | None = None
        self._lateness = lateness_ms
        end = len(spec.names)
        needs_usual = any("fraud_to_usual_min" in one.label_aggregates for one in spec.entities)
        for profile in reversed(spec.entities):
            first = end - len(profile.names)
            columns = _Columns(Looker(profile, lateness_ms), first, end)
            if profile.entity == "user" and not profile.label_windows_days:
                self.local.insert(0, columns)
            else:
                self.asked.setdefault(CODES[profile.entity], []).insert(0, columns)
            if profile.label_windows_days:
                self.labelled.add(profile.entity)
            if profile.entity == "user" and profile.usual_days is not None and needs_usual:
                if profile.label_windows_days:
                    self.usual = Looker(EntityProfile("user", usual_days=profile.usual_days), lateness_ms)
                else:
                    self.usual_column = end - 1
            end = first
        self.horizons = {
            code: self._horizon([one.looker.profile for one in columns])
            for code, columns in self.asked.items()
        }
        self.label_horizon_ms = {
            code: round(_label_horizon(columns) * _DAY_MS) for code, columns in self.asked.items()
        }
        own = [one.looker.profile for one in self.local]
        if self.usual is not None:
            own.append(self.usual.profile)
        waits = max((one.label_horizon_days for one in spec.entities if one.label_windows_days), default=0.0)
        self.user_horizon = Horizon(
            max(self._horizon(own).events_ms, round(waits * _DAY_MS) + lateness_ms), 0
        )
        #: Whether users have a log beside their history.
        self.keeps_users = bool(own) or bool(self.labelled)

    def _horizon(self, profiles: Sequence[EntityProfile]) -> Horizon:
        events = labels = 0.0
        for one in profiles:
            events = max(events, *one.windows_days, one.usual_days or 0.0, 0.0)
            if one.label_windows_days:
                events = max(events, one.label_horizon_days)
                labels = max(labels, max(one.label_windows_days) + one.label_horizon_days)
        return Horizon(round(events * _DAY_MS) + self._lateness, round(labels * _DAY_MS) + self._lateness)


class ProfiledPipeline(Pipeline):
    """Decides batches with a model that has profiles."""

    def __init__(self, bundle: Bundle, config: PipelineConfig, topics: HopTopics) -> None:
        super().__init__(bundle, config)
        self._hop = topics
        self._stages = _Stages(bundle, config.lateness_ms)
        self._users = EntityLogs(config.resident_bytes, _USER_WIDTH)
        self._entities = EntityLogs(config.resident_bytes)
        #: Cases without all of their answers, by partition, in the order of their offsets.
        self._open: dict[int, dict[int, _Open]] = {}

    @property
    def topics(self) -> HopTopics:
        """The topics between the stages."""
        return self._hop

    @property
    def waiting(self) -> int:  # type: ignore[override]
        """How many cases wait for answers."""
        return sum(map(len, self._open.values()))

    def forget(self) -> None:
        """Forget everything that is kept between batches: it is read anew."""
        super().forget()
        self.rebalanced()

    def rebalanced(self) -> None:
        """Forget logs and cases: partitions go on at their commits, which lie before every open case."""
        self._users.forget()
        self._entities.forget()
        self._open.clear()

    def process_all(
        self, batches: Sequence[Batch], readers: Sequence[RecordReader], now_ms: int
    ) -> list[Plan]:
        """Return what must happen for each batch, of whichever topic."""
        hop = self._hop
        plans: list[Plan] = [Plan() for _ in batches]
        taken: list[int] = []
        closed: list[tuple[int, list[_Open]]] = []
        for place, batch in enumerate(batches):
            if batch.topic == hop.questions:
                self._answer(batch, readers[place], plans[place], now_ms)
            elif batch.topic == hop.answers:
                closed.append((place, self._put_together(batch, plans[place], now_ms)))
            elif batch.topic != hop.labels:
                taken.append(place)
        parts = [self._decode(batches[place], now_ms) for place in taken]
        done = [self._reopen(batches[place], cases, now_ms) for place, cases in closed]
        matrix = self._vectors(
            parts, [readers[place] for place in taken], sum(len(one.decoded) for one in done)
        )
        for place, part in zip(taken, parts, strict=True):
            plans[place] = part.plan
            self._dispatch(part, readers[place], matrix)
        start = parts[-1].rows.stop if parts else 0
        for (place, cases), part in zip(closed, done, strict=True):
            part.plan = _joined(part.plan, plans[place])
            plans[place] = part.plan
            part.rows = slice(start, start + len(part.decoded))
            part.outcome = np.zeros(len(part.decoded), np.uint8)  # SCORED
            start = part.rows.stop
            self._assemble(part, cases, matrix)
        self._conclude([*parts, *done], matrix)
        # After the transactions: a label may be about one of this very round.
        for place, batch in enumerate(batches):
            if batch.topic == hop.labels:
                self._route(batch, readers[place], plans[place], now_ms)
        for plan in plans:
            # A user's records together, so that one record batch holds them all or none.
            plan.writes.sort(key=lambda write: write[0][:-6])
        return plans

    # --- transactions ------------------------------------------------------------------------------

    def _dispatch(self, part: Part, reader: RecordReader, matrix: npt.NDArray[np.float64]) -> None:
        """Take applied transactions into their users' logs, and ask about them what is not known here."""
        stages, batch, plan = self._stages, part.batch, part.plan
        if not stages.keeps_users and not stages.asked:
            return
        applied = [place for place, code in enumerate(part.outcome.tolist()) if code == kernel.SCORED]
        logs: dict[bytes, EntityLog] = {}
        if stages.keeps_users:
            users = dict.fromkeys(part.decoded[place].row.user_id.encode() for place in applied)
            logs = self._users.of(batch.partition, users, reader)
        for place in applied:
            _, row = part.decoded[place]
            vector = matrix[part.rows.start + place]
            ident = identity(f"{row.user_id}\0{row.transaction_id}")
            user = identity(row.user_id)
            to_usual = math.nan
            waiting: list[Waiting] = []
            if stages.keeps_users:
                log = logs[row.user_id.encode()]
                if log.error is None:
                    to_usual = self._own(log, row, user, vector)
                    names = (row.merchant_id, row.card_id, row.device_id, row.ip)
                    routes = [0 if name is None else identity(name) for name in names]
                    log.add((row.event_time, row.amount_minor, user, ident, *routes))
                    waiting = [one for one in log.waiting if one.ident == ident]
                else:
                    _count(plan, UNUSABLE)
            self._ask(part, place, vector, (user, ident, to_usual))
            if waiting:
                log.waiting = [one for one in log.waiting if one.ident != ident]
                for one in waiting:
                    self._tell(plan, log, log.events.end - 1, one)
        for log in logs.values():
            if log.error is None:
                plan.writes += self._users.writes(log, stages.user_horizon)
        self._users.keep(batch.partition, logs.values())

    def _own(self, log: EntityLog, row: Row, user: int, vector: npt.NDArray[np.float64]) -> float:
        """Write the profiles that the user's own log holds; returns the amount to the user's usual one."""
        stages, events, labels = self._stages, log.events, log.labels
        for columns in stages.local:
            columns.looker.fill(
                events.array, (events.first, events.end), labels.array, (labels.first, labels.end),
                row.event_time, row.amount_minor, row.minor_units, user, vector[columns.first : columns.end],
            )  # fmt: skip
        if stages.usual_column is not None:
            return float(vector[stages.usual_column])
        if stages.usual is None:
            return math.nan
        usual = np.full(1, np.nan)
        stages.usual.fill(
            events.array, (events.first, events.end), labels.array, (labels.first, labels.end),
            row.event_time, row.amount_minor, row.minor_units, user, usual,
        )  # fmt: skip
        return float(usual[0])

    def _ask(
        self, part: Part, place: int, vector: npt.NDArray[np.float64], known: tuple[int, int, float]
    ) -> None:
        """Open a case and ask each known entity, all at once; a transaction without any is decided here."""
        record, row = part.decoded[place]
        user, ident, to_usual = known
        batch, plan, hop = part.batch, part.plan, self._hop
        names = {"user": row.user_id, "merchant": row.merchant_id, "card": row.card_id}
        names |= {"device": row.device_id, "ip": row.ip}
        asked = {
            CODES[kind]: identity(name)
            for kind, name in names.items()
            if CODES[kind] in self._stages.asked and name is not None
        }
        if not asked:
            return
        case = case_of(batch.source, record.offset)
        bits = sum(1 << code for code in asked)
        opened = Case(case, record, self._spec_hash, bits, vector)
        plan.sends.setdefault((hop.answers, batch.partition), []).append(opened.encode())
        for code, entity in asked.items():
            question = Question(
                code, entity, case, batch.partition, row.event_time, row.amount_minor, row.minor_units, user,
                ident, to_usual,
            )  # fmt: skip
            self._to_entity(plan, entity, question)
        part.outcome[place] = _ASKED
        _count(plan, CASES)

    def _to_entity(self, plan: Plan, name: int, what: Question | Note) -> None:
        to = (self._hop.questions, partition_of(name, self._hop.partitions))
        plan.asks.setdefault(to, []).append(what.encode())

    # --- labels ------------------------------------------------------------------------------------

    def _route(self, batch: Batch, reader: RecordReader, plan: Plan, now_ms: int) -> None:
        """Tell labels to the entities of their transactions; what is not known yet waits."""
        labels = self._labels(batch, plan, now_ms)
        if not self._stages.labelled:
            return
        logs = self._users.of(
            batch.partition, dict.fromkeys(label.user_id.encode() for _, label in labels), reader
        )
        changed: dict[bytes, EntityLog] = {}
        for record, label in labels:
            log = logs[label.user_id.encode()]
            if log.error is not None:
                _refuse(batch, record, InvalidRecordError("user_id", str(log.error)), plan, now_ms)
                continue
            ident = identity(f"{label.user_id}\0{label.transaction_id}")
            one = Waiting(ident, int(label.is_fraud), label.label_time, record.offset)
            at = find(log.events.array[E_IDENT], log.events.first, log.events.end, ident)
            if at >= 0:
                self._tell(plan, log, at, one)
            elif label.event_time <= log.newest - self._stages.user_horizon.events_ms:
                _count(plan, LABELS_EXPIRED)
            elif one not in log.waiting:
                log.waiting.append(one)
                if len(log.waiting) > MAX_WAITING:
                    log.waiting.pop(0)
                    _count(plan, LABELS_EXPIRED)
                _count(plan, LABELS_WAITING)
                changed[log.prefix] = log
        for log in changed.values():
            plan.writes += self._users.writes(log, self._stages.user_horizon)
        self._users.keep(batch.partition, logs.values())

    def _labels(self, batch: Batch, plan: Plan, now_ms: int) -> list[tuple[Record, Label]]:
        """Return the valid labels; the others become dead letters."""
        labels: list[tuple[Record, Label]] = []
        for record in batch.records:
            try:
                label, unknown = decode_label(record.value, max_bytes=self.config.max_record_bytes)
                if record.key != label.user_id.encode():
                    raise InvalidRecordError(
                        "key", "must be the user_id, so that a label meets its user's transactions"
                    )
            except InvalidRecordError as error:
                _refuse(batch, record, error, plan, now_ms)
                continue
            plan.unknown_fields += unknown
            labels.append((record, label))
        return labels

    def _tell(self, plan: Plan, log: EntityLog, at: int, one: Waiting) -> None:
        """Note a label to each entity that its transaction names and the model has labels of."""
        events = log.events.array
        routes = dict(zip(_ROUTES, events[_FIRST_ROUTE:_USER_WIDTH, at].tolist(), strict=True))
        routes["user"] = int(events[E_USER, at])
        for entity in self._stages.labelled:
            name = routes[entity]
            if name:
                note = Note(CODES[entity], name, one.ident, one.is_fraud, one.when_ms, one.offset)
                self._to_entity(plan, name, note)
                _count(plan, NOTES_SENT)
        _count(plan, LABELS_NOTED)

    # --- entities ----------------------------------------------------------------------------------

    def _answer(self, batch: Batch, reader: RecordReader, plan: Plan, now_ms: int) -> None:
        """Answer questions from the entities' logs, in their order, and take what they say into them."""
        heard: list[tuple[bytes, Question | Note]] = []
        for record in batch.records:
            try:
                what = decode_question(record.value)
            except InvalidRecordError as error:
                _refuse(batch, record, error, plan, now_ms)
                continue
            heard.append((entity_prefix(what.entity, what.name), what))
        logs = self._entities.of(batch.partition, dict.fromkeys(prefix for prefix, _ in heard), reader)
        changed: dict[bytes, int] = {}
        for prefix, what in heard:
            log = logs[prefix]
            if isinstance(what, Note):
                if self._learn(log, what, plan):
                    changed[prefix] = what.entity
                continue
            features, applied = self._look(log, what, plan)
            if applied:
                changed[prefix] = what.entity
            answer = Answer(what.entity, what.case, self._spec_hash, features)
            plan.sends.setdefault((self._hop.answers, what.partition), []).append(answer.encode())
        for prefix, code in changed.items():
            plan.writes += self._entities.writes(logs[prefix], self._stages.horizons[code])
        self._entities.keep(batch.partition, logs.values())

    def _look(
        self, log: EntityLog, asked: Question, plan: Plan
    ) -> tuple[npt.NDArray[np.float64] | None, bool]:
        """Return an entity's features of a transaction, None where they were asked before.

        And whether it was taken into the log: not where it is late for the entity, or the log cannot be used.
        """
        wanted = self._stages.asked.get(asked.entity, [])
        features = np.full(sum(columns.looker.size for columns in wanted), np.nan)
        if not wanted:
            return features, False
        if log.error is not None:
            _count(plan, UNUSABLE)
            return features, False
        events, labels = log.events, log.labels
        if find(events.array[E_CASE], events.first, events.end, asked.case) >= 0:
            _count(plan, REPEATED)
            return None, False
        if asked.time_ms < log.newest - self.config.lateness_ms:
            _count(plan, LATE)
            return features, False
        place = 0
        for columns in wanted:
            looker = columns.looker
            looker.fill(
                events.array, (events.first, events.end), labels.array, (labels.first, labels.end),
                asked.time_ms, asked.amount_minor, asked.minor_units, asked.user,
                features[place : place + looker.size],
            )  # fmt: skip
            place += looker.size
        bits = int(np.float64(asked.to_usual).view(np.int64))
        log.add((asked.time_ms, asked.amount_minor, asked.user, asked.ident, bits, asked.case))
        _count(plan, ANSWERED)
        return features, True

    def _learn(self, log: EntityLog, note: Note, plan: Plan) -> bool:
        """Take a label into a log; whether that changed it."""
        wanted = self._stages.asked.get(note.entity, [])
        if not wanted or log.error is not None:
            _count(plan, NOTES_UNKNOWN)
            return False
        events = log.events
        at = find(events.array[E_IDENT], events.first, events.end, note.ident)
        if at < 0:
            _count(plan, NOTES_UNKNOWN)
            return False
        time_ms, amount, _, _, to_usual, _ = events.array[:E_SIZE, at].tolist()
        if note.when_ms > time_ms + self._stages.label_horizon_ms[note.entity]:
            _count(plan, NOTES_EXPIRED)
            return False
        number = log.total - (events.end - at)
        label = (note.when_ms, note.is_fraud, note.offset, time_ms, amount, to_usual, note.ident, number)
        learnt = log.label(label)
        _count(plan, NOTES_LEARNT if learnt else NOTES_REPEATED)
        return learnt

    # --- cases and answers -------------------------------------------------------------------------

    def _put_together(self, batch: Batch, plan: Plan, now_ms: int) -> list[_Open]:
        """Return the cases that have all of their answers now."""
        waiting = self._open.setdefault(batch.partition, {})
        ready: list[_Open] = []
        for record in batch.records:
            try:
                what = decode_answers(record)
            except InvalidRecordError as error:
                _refuse(batch, record, error, plan, now_ms)
                continue
            if isinstance(what, Case):
                # The same case again, before it was decided: nothing in it is new.
                waiting.setdefault(what.case, _Open(what, record.offset))
                continue
            one = waiting.get(what.case)
            if one is None:
                continue  # decided
            if what.features is None:
                if what.entity not in one.answers:
                    # The true answer lies before the case: it was the first case's, which is decided.
                    del waiting[what.case]
                continue
            one.answers[what.entity] = what
            if sum(1 << code for code in one.answers) & one.case.asked == one.case.asked:
                del waiting[what.case]
                ready.append(one)
        oldest = next(iter(waiting.values()), None)
        if batch.records:
            plan.hold = batch.records[-1].offset + 1 if oldest is None else oldest.offset
        return ready

    def _reopen(self, batch: Batch, cases: list[_Open], now_ms: int) -> Part:
        """Return decided cases as if their transactions had just been taken."""
        source = Batch(self._hop.transactions, batch.partition, 0, ())
        decoded = [
            Decoded(one.case.record, decode_row(one.case.record.value, self.config.max_record_bytes)[0])
            for one in cases
        ]
        return Part(source, decoded, Plan(), now_ms)

    def _assemble(self, part: Part, cases: list[_Open], matrix: npt.NDArray[np.float64]) -> None:
        """Write the vectors of decided cases."""
        for place, one in enumerate(cases, part.rows.start):
            if one.case.spec_hash != self._spec_hash or len(one.case.features) != matrix.shape[1]:
                self._translate(part, place, one, matrix)
                continue
            vector = matrix[place]
            vector[:] = one.case.features
            for code, answer in one.answers.items():
                start = 0
                if answer.spec_hash != self._spec_hash:
                    _count(part.plan, OTHER_MODEL)
                    continue
                for columns in self._stages.asked.get(code, []):
                    end = start + columns.end - columns.first
                    vector[columns.first : columns.end] = answer.features[start:end]  # type: ignore[index]
                    start = end

    def _translate(self, part: Part, place: int, one: _Open, matrix: npt.NDArray[np.float64]) -> None:
        """Write the vector of a case that was opened for another model: its history, and no profiles."""
        _count(part.plan, OTHER_MODEL)
        alone = Part(part.batch, [part.decoded[place - part.rows.start]], Plan(), part.now_ms)
        events, _ = events_of([alone], alone.decoded)
        vector = matrix[place : place + 1]
        self._builder.history(vector)[:] = self._builder.history(one.case.features[None, :])
        self._builder.fill(columns_of([alone.decoded[0].row], events, self.bundle.spec), vector)


def _joined(plan: Plan, other: Plan) -> Plan:
    """Return a plan with what another one for the same batch has already."""
    plan.sends, plan.asks, plan.hold, plan.hop = other.sends, other.asks, other.hold, other.hop
    plan.dead_letters, plan.rejected = other.dead_letters, other.rejected
    plan.outcomes |= other.outcomes
    return plan


def _count(plan: Plan, what: HopEvent) -> None:
    plan.hop[what] = plan.hop.get(what, 0) + 1


def _refuse(batch: Batch, record: Record, error: InvalidRecordError, plan: Plan, now_ms: int) -> None:
    """Send a record of another topic than the transactions' to the dead letters."""
    plan.rejected.append((error.field, record.offset))
    plan.dead_letters.append(
        dead_letter(batch.topic, batch.partition, record, error, error.field, error.reason, now_ms)
    )


def _label_horizon(columns: Sequence[_Columns]) -> float:
    """Return how many days after its transaction a label counts; profiles of one entity agree on it."""
    profiles = (one.looker.profile for one in columns)
    return next((one.label_horizon_days for one in profiles if one.label_windows_days), 0.0)
