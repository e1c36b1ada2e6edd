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
:mod:`stream.pipeline.entity_join.messages`; why nothing is lost or doubled on the way is in
docs/guarantees.md. No I/O.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from stream.errors import InvalidRecordError
from stream.events.decode import decode_label, decode_row
from stream.features.profiles.cache import EntityLogs
from stream.features.profiles.log import MAX_WAITING, Waiting
from stream.features.profiles.online import E_CASE, E_IDENT, E_SIZE, E_USER
from stream.features.windows.arrays import SCORED
from stream.pipeline import counters
from stream.pipeline.columns import columns_of, events_of
from stream.pipeline.effects import Batch, Decoded, Part, PipelineConfig, Plan, refuse
from stream.pipeline.entity_join.messages import (
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
from stream.pipeline.entity_join.pending import OpenCases
from stream.pipeline.entity_join.plan import ROUTES, USER_WIDTH, Stages, entities_of
from stream.pipeline.transactions import Pipeline
from stream.state.format import entity_prefix
from stream.state.hashing import identity

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from stream.events.decode import Row
    from stream.events.models import Label
    from stream.events.records import Record
    from stream.features.profiles.log import EntityLog
    from stream.pipeline.entity_join.pending import OpenCase
    from stream.scoring.bundle import Bundle
    from stream.state.store import RecordReader


#: The outcome of a transaction that is decided elsewhere.
_ASKED: Final = 7


@dataclass(frozen=True, slots=True)
class HopTopics:
    """Names of the topics that the stages take records from, and how many partitions each has."""

    transactions: str
    labels: str
    questions: str
    answers: str
    partitions: int

    @property
    def names(self) -> tuple[str, ...]:
        """The topics, the transactions first."""
        return (self.transactions, self.labels, self.questions, self.answers)


class ProfiledPipeline(Pipeline):
    """Decides batches with a model that has profiles."""

    def __init__(self, bundle: Bundle, config: PipelineConfig, topics: HopTopics) -> None:
        super().__init__(bundle, config)
        self._hop = topics
        self._stages = Stages(bundle.spec, config.lateness_ms)
        self._users = EntityLogs(config.resident_bytes, USER_WIDTH)
        self._entities = EntityLogs(config.resident_bytes)
        self._cases = OpenCases()

    @property
    def topics(self) -> HopTopics:
        """The topics between the stages."""
        return self._hop

    @property
    def waiting(self) -> int:
        """How many cases wait for answers."""
        return len(self._cases)

    def forget(self) -> None:
        """Forget everything that is kept between batches: it is read anew."""
        super().forget()
        self.rebalanced()

    def rebalanced(self) -> None:
        """Forget logs and cases: partitions go on at their commits, which lie before every open case."""
        self._users.forget()
        self._entities.forget()
        self._cases.forget()

    def own(self, partition: int, epoch: int, mark: int) -> None:
        """Take a partition over, see :meth:`OpenCases.own`."""
        self._cases.own(partition, epoch, mark)

    def process_all(
        self, batches: Sequence[Batch], readers: Sequence[RecordReader], now_ms: int
    ) -> list[Plan]:
        """Return what must happen for each batch, of whichever topic."""
        hop = self._hop
        plans: list[Plan] = [Plan() for _ in batches]
        taken: list[int] = []
        closed: list[tuple[int, list[OpenCase]]] = []
        for place, batch in enumerate(batches):
            if batch.topic == hop.questions:
                self._answer(batch, readers[place], plans[place], now_ms)
            elif batch.topic == hop.answers:
                closed.append((place, self._put_together(batch, plans[place], now_ms)))
            elif batch.topic != hop.labels:
                taken.append(place)
        parts = [self._decode(batches[place], now_ms) for place in taken]
        done = [self._reopen(batches[place], cases, plans[place], now_ms) for place, cases in closed]
        matrix = self._vectors(
            parts, [readers[place] for place in taken], sum(len(one.decoded) for one in done)
        )
        for place, part in zip(taken, parts, strict=True):
            plans[place] = part.plan
            self._dispatch(part, readers[place], matrix)
        start = parts[-1].rows.stop if parts else 0
        for (_, cases), part in zip(closed, done, strict=True):
            part.rows = slice(start, start + len(part.decoded))
            part.outcome = np.zeros(len(part.decoded), np.uint8)  # SCORED
            start = part.rows.stop
            self._assemble(part, cases, matrix)
        self._conclude([*parts, *done], matrix)
        # After the transactions: a label may be about one of this very round.
        for place, batch in enumerate(batches):
            if batch.topic == hop.labels:
                self._route(batch, readers[place], plans[place], now_ms)
        _labels_last(batches, plans, taken, hop.labels)
        for plan in plans:
            # A user's records together, so that one record batch holds them all or none.
            plan.writes.sort(key=lambda write: write[0][:-6])
        return plans

    @staticmethod
    def _refuse(batch: Batch, record: Record, error: InvalidRecordError, plan: Plan, now_ms: int) -> None:
        refuse(plan, batch, record, error, (error.field, error.reason), now_ms)

    # --- transactions ------------------------------------------------------------------------------

    def _dispatch(self, part: Part, reader: RecordReader, matrix: npt.NDArray[np.float64]) -> None:
        """Take applied transactions into their users' logs, and ask about them what is not known here."""
        stages, batch, plan = self._stages, part.batch, part.plan
        if not stages.keeps_users and not stages.asked:
            return
        applied = [place for place, code in enumerate(part.outcome.tolist()) if code == SCORED]
        logs: dict[bytes, EntityLog] = {}
        if stages.keeps_users:
            users = dict.fromkeys(part.decoded[place].row.user_id.encode() for place in applied)
            logs = self._users.of(batch.partition, users, reader)
        for place in applied:
            _, row = part.decoded[place]
            vector = matrix[part.rows.start + place]
            names = entities_of(row)
            ident = identity(f"{row.user_id}\0{row.transaction_id}")
            to_usual = math.nan
            waiting: list[Waiting] = []
            if stages.keeps_users:
                log = logs[row.user_id.encode()]
                if log.error is None:
                    to_usual = self._own(log, row, names["user"], vector)
                    routes = [names[entity] for entity in ROUTES]
                    log.add((row.event_time, row.amount_minor, names["user"], ident, *routes))
                    waiting = [one for one in log.waiting if one.ident == ident]
                else:
                    plan.hop[counters.UNUSABLE] += 1
            self._ask(part, place, vector, names, (ident, to_usual))
            if waiting:
                log.waiting = [one for one in log.waiting if one.ident != ident]
                for one in waiting:
                    self._tell(plan, log, log.events.end - 1, one)
        for log in logs.values():
            if log.error is None:
                plan.writes += log.writes(stages.user_horizon)
        self._users.keep(batch.partition, logs.values())

    def _own(self, log: EntityLog, row: Row, user: int, vector: npt.NDArray[np.float64]) -> float:
        """Write the profiles that the user's own log holds; returns the amount to the user's usual one."""
        stages = self._stages
        stages.look_at_own(log, row, user, vector)
        if stages.usual_column is not None:
            return float(vector[stages.usual_column])
        if stages.usual is None:
            return math.nan
        usual = np.full(1, np.nan)
        log.look(stages.usual, row.event_time, row.amount_minor, row.minor_units, user, usual)
        return float(usual[0])

    def _ask(
        self,
        part: Part,
        place: int,
        vector: npt.NDArray[np.float64],
        names: dict[str, int],
        known: tuple[int, float],
    ) -> None:
        """Open a case and ask each known entity, all at once; a transaction without any is decided here."""
        record, row = part.decoded[place]
        ident, to_usual = known
        batch, plan, hop = part.batch, part.plan, self._hop
        asked = self._stages.named(names)
        if not asked:
            return
        case = case_of(batch.source, record.offset)
        bits = sum(1 << code for code in asked)
        opened = Case(case, record, self._spec_hash, bits, vector, self._cases.epoch(batch.partition))
        plan.sends.setdefault((hop.answers, batch.partition), []).append(opened.encode())
        for code, name in asked.items():
            question = Question(
                code, name, case, batch.partition, row.event_time, row.amount_minor, row.minor_units,
                names["user"], ident, to_usual,
            )  # fmt: skip
            self._to_entity(plan, name, question)
        part.outcome[place] = _ASKED
        plan.hop[counters.CASE_OPENED] += 1

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
                self._refuse(batch, record, InvalidRecordError("user_id", str(log.error)), plan, now_ms)
                continue
            ident = identity(f"{label.user_id}\0{label.transaction_id}")
            one = Waiting(ident, int(label.is_fraud), label.label_time, record.offset)
            at = log.find(E_IDENT, ident)
            if at >= 0:
                self._tell(plan, log, at, one)
            elif label.event_time <= log.newest - self._stages.user_horizon.events_ms:
                plan.hop[counters.LABEL_EXPIRED] += 1
            elif one not in log.waiting:
                log.waiting.append(one)
                if len(log.waiting) > MAX_WAITING:
                    log.waiting.pop(0)
                    plan.hop[counters.LABEL_EXPIRED] += 1
                plan.hop[counters.LABEL_WAITING] += 1
                changed[log.prefix] = log
        for log in changed.values():
            plan.writes += log.writes(self._stages.user_horizon)
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
                self._refuse(batch, record, error, plan, now_ms)
                continue
            plan.unknown_fields += unknown
            labels.append((record, label))
        return labels

    def _tell(self, plan: Plan, log: EntityLog, at: int, one: Waiting) -> None:
        """Note a label to each entity that its transaction names and the model has labels of."""
        user, _, *names = log.events.array[E_USER:USER_WIDTH, at].tolist()
        routes = {"user": user, **dict(zip(ROUTES, names, strict=True))}
        for entity in self._stages.labelled:
            name = routes[entity]
            if name:
                note = Note(CODES[entity], name, one.ident, one.is_fraud, one.when_ms, one.offset)
                self._to_entity(plan, name, note)
                plan.hop[counters.NOTE_SENT] += 1
        plan.hop[counters.LABEL_NOTED] += 1

    # --- entities ----------------------------------------------------------------------------------

    def _answer(self, batch: Batch, reader: RecordReader, plan: Plan, now_ms: int) -> None:
        """Answer questions from the entities' logs, in their order, and take what they say into them."""
        heard: list[tuple[bytes, Question | Note]] = []
        for record in batch.records:
            try:
                what = decode_question(record.value)
            except InvalidRecordError as error:
                self._refuse(batch, record, error, plan, now_ms)
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
            plan.writes += logs[prefix].writes(self._stages.horizons[code])
        self._entities.keep(batch.partition, logs.values())

    def _look(
        self, log: EntityLog, asked: Question, plan: Plan
    ) -> tuple[npt.NDArray[np.float64] | None, bool]:
        """Return an entity's features of a transaction, None where they were asked before.

        And whether it was taken into the log: not where it is late for the entity, or the log cannot be used.
        """
        stages = self._stages
        features = stages.unknown(asked.entity)
        if asked.entity not in stages.asked:
            return features, False
        if log.error is not None:
            plan.hop[counters.UNUSABLE] += 1
            return features, False
        if log.find(E_CASE, asked.case) >= 0:
            plan.hop[counters.REPEATED] += 1
            return None, False
        if stages.is_late(log, asked):
            plan.hop[counters.LATE] += 1
            return features, False
        stages.look(log, asked, features)
        bits = int(np.float64(asked.to_usual).view(np.int64))
        log.add((asked.time_ms, asked.amount_minor, asked.user, asked.ident, bits, asked.case))
        plan.hop[counters.ANSWERED] += 1
        return features, True

    def _learn(self, log: EntityLog, note: Note, plan: Plan) -> bool:
        """Take a label into a log; whether that changed it."""
        wanted = self._stages.asked.get(note.entity, [])
        if not wanted or log.error is not None:
            plan.hop[counters.NOTE_UNKNOWN] += 1
            return False
        at = log.find(E_IDENT, note.ident)
        if at < 0:
            plan.hop[counters.NOTE_UNKNOWN] += 1
            return False
        time_ms, amount, _, _, to_usual, _ = log.events.array[:E_SIZE, at].tolist()
        stages = self._stages
        # Whether one that old is still in the log depends on how records came in batches.
        gone = time_ms <= log.newest - stages.horizons[note.entity].events_ms
        if gone or note.when_ms > time_ms + stages.label_horizon_ms.get(note.entity, 0):
            plan.hop[counters.NOTE_EXPIRED] += 1
            return False
        number = log.total - (log.events.end - at)
        label = (note.when_ms, note.is_fraud, note.offset, time_ms, amount, to_usual, note.ident, number)
        learnt = log.label(label)
        plan.hop[counters.NOTE_LEARNT if learnt else counters.NOTE_REPEATED] += 1
        return learnt

    # --- cases and answers -------------------------------------------------------------------------

    def _put_together(self, batch: Batch, plan: Plan, now_ms: int) -> list[OpenCase]:
        """Return the cases that have all of their answers now."""
        ready: list[OpenCase] = []
        for record in batch.records:
            try:
                what = decode_answers(record)
            except InvalidRecordError as error:
                self._refuse(batch, record, error, plan, now_ms)
                continue
            one = None if what is None else self._cases.hear(batch.partition, record.offset, what)
            if one is not None:
                ready.append(one)
        if batch.records:
            oldest = self._cases.oldest(batch.partition)
            plan.hold = batch.records[-1].offset + 1 if oldest is None else oldest
        return ready

    def _reopen(self, batch: Batch, cases: list[OpenCase], plan: Plan, now_ms: int) -> Part:
        """Return decided cases as if their transactions had just been taken."""
        source = Batch(self._hop.transactions, batch.partition, 0, ())
        decoded = [
            Decoded(one.case.record, decode_row(one.case.record.value, self.config.max_record_bytes)[0])
            for one in cases
        ]
        return Part(source, decoded, plan, now_ms)

    def _assemble(self, part: Part, cases: list[OpenCase], matrix: npt.NDArray[np.float64]) -> None:
        """Write the vectors of decided cases."""
        for place, one in enumerate(cases, part.rows.start):
            if one.case.spec_hash != self._spec_hash or len(one.case.features) != matrix.shape[1]:
                self._translate(part, place, one, matrix)
                continue
            vector = matrix[place]
            vector[:] = one.case.features
            for code, answer in one.answers.items():
                if answer.spec_hash != self._spec_hash:
                    part.plan.hop[counters.CASE_OF_OTHER_MODEL] += 1
                    continue
                assert answer.features is not None  # such a case is dropped
                self._stages.put(code, answer.features, vector)

    def _translate(self, part: Part, place: int, one: OpenCase, matrix: npt.NDArray[np.float64]) -> None:
        """Write the vector of a case that was opened for another model: its history, and no profiles."""
        part.plan.hop[counters.CASE_OF_OTHER_MODEL] += 1
        alone = Part(part.batch, [part.decoded[place - part.rows.start]], Plan(), part.now_ms)
        history, _ = events_of([alone], alone.decoded)
        vector = matrix[place : place + 1]
        self._builder.history(vector)[:] = self._builder.history(one.case.features[None, :])
        self._builder.fill(columns_of([alone.decoded[0].row], history, self.bundle.spec), vector)


def _labels_last(batches: Sequence[Batch], plans: Sequence[Plan], taken: Sequence[int], labels: str) -> None:
    """Put what labels ask and write behind what transactions of their partition do: so it was decided.

    An entity that is told a label before it was asked about the transaction does not know what it is about;
    and of two states of a user's log the last one written stays.
    """
    of_partition = {batches[place].partition: plans[place] for place in taken}
    for batch, plan in zip(batches, plans, strict=True):
        before = of_partition.get(batch.partition)
        if batch.topic != labels or before is None:
            continue
        for to, messages in plan.asks.items():
            before.asks.setdefault(to, []).extend(messages)
        before.writes += plan.writes
        plan.asks, plan.writes = {}, []
