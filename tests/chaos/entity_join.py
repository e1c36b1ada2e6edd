"""What the checker knows of a model with profiles: entities, labels, and the requests between them.

The fold takes the source's transactions in their order, and requests and label updates in the order in which
each stands in its partition for the first time; everything else is the oracle's, see
:mod:`support.profile_oracle`. The product's code turns bytes into numbers, and names a source record as its
requests do.
"""

from __future__ import annotations

import json
import math
from collections import deque
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from chaos.entity_logs import ROUTES, Logs, compare, label_row, usual
from chaos.traffic import BAD_FIELD
from stream.events.records import ConsumerRecord
from stream.features.profiles.log import MAX_WAITING
from stream.kafka import admin
from stream.pipeline.entity_join.messages import (
    CODES,
    EntityRequest,
    EntityResponse,
    LabelUpdate,
    decode_join_record,
    decode_request,
    pending_id_of,
)
from stream.state.format import entity_prefix
from support.profile_oracle import DAY, Entity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chaos.findings import Findings
    from chaos.topics import Found
    from stream.features.profiles.spec import EntityProfile
    from stream.settings import Settings
    from support.oracle import Event


__all__ = ["EntityJoinChecker", "identity_of"]

#: A record's partition and offset.
Position = tuple[int, int]

_LATENESS_MS = 3 * DAY


def identity_of(text: str | None) -> int:
    """Return the 64-bit identity that stands for an id, 0 for none."""
    if text is None:
        return 0
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True) or 1


def _bits(value: float) -> int:
    return int(np.float64(value).view(np.int64))


class _Label(NamedTuple):
    """A label as it was sent."""

    partition: int
    offset: int
    user: str
    id_hash: int
    is_fraud: int
    event_time: int
    when: int


@dataclass(slots=True)
class _Case:
    """A scored transaction, and what becomes of its questions."""

    position: Position
    name: int
    time: int
    amount: int
    user: int
    id_hash: int
    to_usual: float
    #: By code, the entities that must be asked.
    asked: dict[int, int]
    #: Of profiles; those of an entity once it was asked.
    features: dict[str, float]
    #: By code, where its question stands first.
    questions: dict[int, int] = field(default_factory=dict)
    #: Where its case stands last in the answers' topic.
    opened: int = -1
    answered: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _User:
    """A user's log: its scored transactions, their offsets in the source and what they name."""

    partition: int
    log: Entity
    offsets: list[int] = field(default_factory=list)
    #: By identity of the transaction, every set of entities that one of that name had.
    routes: dict[int, list[dict[str, int]]] = field(default_factory=dict)
    rows: list[tuple[int, ...]] = field(default_factory=list)


class EntityJoinChecker:
    """The fold of one deployment's questions, labels and users' logs."""

    def __init__(self, settings: Settings, profiles: Sequence[EntityProfile]) -> None:
        self._profiles = profiles
        self._partitions = settings.topics.partitions
        topic = settings.topics.transactions
        topic_id = admin.topic_ids(settings, [topic])[topic]
        self._sources = [identity_of(f"{topic}:{topic_id}:{at}") for at in range(self._partitions)]
        self._asked: dict[int, list[EntityProfile]] = {}
        self._local: list[EntityProfile] = []
        for one in profiles:
            if one.entity == "user" and not one.label_windows_days:
                self._local.append(one)
            else:
                self._asked.setdefault(CODES[one.entity], []).append(one)
        self._labelled = {one.entity for one in profiles if one.label_windows_days}
        self._waits_days = max(
            (one.label_horizon_days for one in profiles if one.label_windows_days), default=0
        )
        self._names = [name for one in profiles for name in one.names]
        self._users: dict[str, _User] = {}
        self._cases: dict[int, _Case] = {}
        self._by_position: dict[Position, _Case] = {}
        self._entities: dict[tuple[int, int], Entity] = {}
        #: By entity, offsets of the questions that it took and of the notes that it learnt from.
        self._taken_at: dict[tuple[int, int], list[int]] = {}
        self._learnt_at: dict[tuple[int, int], list[int]] = {}
        #: Questions and notes that are not folded yet: the source was not read so far.
        self._pending: dict[int, deque[Found]] = {}
        #: Cases and answers likewise.
        self._unread: list[Found] = []
        #: First occurrences of notes: each one's offset in its partition, and what came of it.
        self._notes: dict[LabelUpdate, tuple[int, str]] = {}
        self._labels: dict[Position, _Label] = {}
        self.bad_labels: dict[Position, tuple[Found, str]] = {}
        #: What came of questions and notes, for those who look whether a run had everything.
        self.outcomes: dict[str, int] = {}

    def _count(self, what: str) -> None:
        self.outcomes[what] = self.outcomes.get(what, 0) + 1

    # --- reading -----------------------------------------------------------------------------------

    def take_source(self, found: Found, body: dict[str, Any], event: Event, outcome: str) -> None:
        """Take a valid transaction that is not a duplicate."""
        if outcome != "scored":
            return
        name = body["user_id"]
        user = self._users.get(name)
        if user is None:
            log = Entity(self._local, keeps_days=self._waits_days)
            user = self._users[name] = _User(found.partition, log)
        log, who = user.log, identity_of(name)
        id_hash = identity_of(f"{name}\0{event.transaction_id}")
        features = dict.fromkeys(self._names, math.nan) | log.features(event.time, event.amount, who)
        usual = features.get("user_amount_to_usual", math.nan)
        routes = {kind: identity_of(body.get(key)) for kind, key in ROUTES.items()} | {"user": who}
        asked = {code: routes[kind] for kind, code in CODES.items() if code in self._asked and routes[kind]}
        case = _Case(
            (found.partition, found.offset),
            pending_id_of(self._sources[found.partition], found.offset),
            event.time, event.amount, who, id_hash, usual, asked, features,
        )  # fmt: skip
        self._by_position[case.position] = case
        if asked:
            self._cases[case.name] = case
        log.take(event.time, event.amount, who, id_hash, usual, case.name)
        user.offsets.append(found.offset)
        user.rows.append((event.time, event.amount, who, id_hash, *(routes[kind] for kind in ROUTES)))
        user.routes.setdefault(id_hash, []).append(routes)

    def take_label(self, found: Found) -> None:
        position = (found.partition, found.offset)
        bad = [value for name, value in found.headers if name == BAD_FIELD]
        if bad:
            self.bad_labels[position] = (found, bad[0].decode())
            return
        body = json.loads(found.value or b"")
        name = body["user_id"]
        self._labels[position] = _Label(
            *position, name, identity_of(f"{name}\0{body['transaction_id']}"), int(body["is_fraud"]),
            body["event_time"], body["label_time"],
        )  # fmt: skip

    def take_request(self, found: Found) -> None:
        self._pending.setdefault(found.partition, deque()).append(found)

    def take_response(self, found: Found) -> None:
        self._unread.append(found)

    def catch_up(self, findings: Findings) -> None:
        """Fold what was read, as far as it is about transactions that were read too."""
        for partition in self._pending:
            self._advance(partition, findings)
        unread, self._unread = self._unread, []
        for found in unread:
            what = decode_join_record(ConsumerRecord(found.offset, 0, found.key, found.value, found.headers))
            if what is None:
                continue  # an owner's mark
            case = self._cases.get(what.pending_id)
            if case is None:
                self._unread.append(found)
                continue
            if found.partition != case.position[0]:
                findings.add(f"{case.position}: its case or answer lies on partition {found.partition}")
            if isinstance(what, EntityResponse):
                case.answered.add(what.entity)
            else:
                case.opened = found.offset
                if what.record.offset != case.position[1]:
                    findings.add(f"{case.position}: its case is about offset {what.record.offset}")

    def _advance(self, partition: int, findings: Findings) -> None:
        """Fold the partition's questions and notes as far as their transactions were read."""
        pending = self._pending[partition]
        while pending:
            what = decode_request(pending[0].value)
            if isinstance(what, EntityRequest):
                case = self._cases.get(what.pending_id)
                if case is None:
                    return
                self._ask(pending[0], case, what, findings)
            else:
                self._tell(pending[0], what)
            pending.popleft()

    def _entity(self, code: int, name: int) -> Entity:
        key = (code, name)
        if key not in self._entities:
            self._entities[key] = Entity(self._asked[code])
        return self._entities[key]

    def _ask(self, found: Found, case: _Case, what: EntityRequest, findings: Findings) -> None:
        wanted = (case.asked.get(what.entity), case.position[0], case.time, case.amount, 100, case.user)
        given = (what.name, what.partition, what.time_ms, what.amount_minor, what.minor_units, what.user)
        if (*wanted, case.id_hash, _bits(case.to_usual)) != (*given, what.id_hash, _bits(what.to_usual)):
            findings.add(f"{case.position}: a question that does not belong to it: {what}")
            return
        if found.partition != what.name % self._partitions:
            findings.add(f"{case.position}: its question lies on partition {found.partition}")
        if what.entity in case.questions:
            self._count("request again")
            return
        case.questions[what.entity] = found.offset
        entity = self._entity(what.entity, what.name)
        if entity.is_late(case.time):
            self._count("request late")
            return
        self._count("request answered")
        case.features |= entity.features(case.time, case.amount, case.user)
        entity.take(case.time, case.amount, case.user, case.id_hash, case.to_usual, case.name)
        self._taken_at.setdefault((what.entity, what.name), []).append(found.offset)

    def _tell(self, found: Found, what: LabelUpdate) -> None:
        if what in self._notes:
            self._count("label_update again")
            return
        entity = self._entity(what.entity, what.name)
        outcome = entity.tell(what.id_hash, what.is_fraud, what.when_ms, what.offset)
        self._count(f"label_update {outcome}")
        self._notes[what] = (found.offset, outcome)
        if outcome == "applied":
            self._learnt_at.setdefault((what.entity, what.name), []).append(found.offset)

    # --- checking ----------------------------------------------------------------------------------

    def features(self, position: Position, findings: Findings) -> dict[str, float]:
        """Return the expected profile features of a decided transaction that is no duplicate."""
        case = self._by_position.get(position)
        if case is None:  # late for its user: no entity is asked
            return dict.fromkeys(self._names, math.nan)
        for code in case.asked.keys() - case.questions.keys():
            findings.add(f"{position}: decided, and entity {code} was never asked", lost=1)
        return case.features

    def waits(self, position: Position, answers_committed: dict[int, int]) -> bool:
        """Whether an undecided transaction's case will be read again, and all of its entities were asked."""
        case = self._by_position.get(position)
        return (
            case is not None
            and case.asked.keys() == case.questions.keys()
            and case.opened >= answers_committed.get(position[0], 0)
        )

    def check_commits(
        self, state: dict[int, dict[bytes, bytes]], bounds: dict[str, dict[int, int]], findings: Findings
    ) -> None:
        """Compare committed offsets of transactions, labels and questions with their effects.

        Parameters
        ----------
        bounds
            For each of ``source``, ``labels`` and ``questions`` the committed offset of each partition.
        """
        logs = Logs(state)
        for name, user in self._users.items():
            bound = bounds["source"].get(user.partition, 0)
            wanted = sum(offset < bound for offset in user.offsets)
            found = logs.user(user.partition, name).total
            if found < wanted:
                findings.add(
                    f"{name}: committed {bound}, its log only has {found} of {wanted}", lost=wanted - found
                )
        for key, offsets in self._taken_at.items():
            bound = bounds["requests"].get(key[1] % self._partitions, 0)
            wanted = sum(offset < bound for offset in offsets)
            found = logs.entity(key, self._partitions).total
            if found < wanted:
                findings.add(
                    f"entity {key}: committed {bound}, its log only has {found} of {wanted}",
                    lost=wanted - found,
                )
        for case in self._cases.values():
            for code in case.questions.keys() - case.answered:
                bound = bounds["requests"].get(case.asked[code] % self._partitions, 0)
                if case.questions[code] < bound:
                    findings.add(
                        f"{case.position}: its question to {code} is committed, not answered", lost=1
                    )
        for note, (offset, outcome) in self._notes.items():
            key = (note.entity, note.name)
            if outcome != "applied" or offset >= bounds["requests"].get(note.name % self._partitions, 0):
                continue
            entity, log = self._entities[key], logs.entity(key, self._partitions)
            assert entity.newest is not None
            kept = note.when_ms > entity.newest - entity.labels_horizon
            if kept and (note.when_ms, note.is_fraud, note.offset) not in log.label_names:
                findings.add(f"entity {key}: {note} is committed, and not in its log", lost=1)
        for label in self._labels.values():
            if label.offset < bounds["labels"].get(label.partition, 0):
                self._check_label(label, logs, findings)

    def check_state(self, state: dict[int, dict[bytes, bytes]], findings: Findings) -> None:
        """Compare every log with the fold; everything that was sent must have had its time."""
        self.catch_up(findings)
        for partition, pending in self._pending.items():
            if pending:
                what = decode_request(pending[0].value)
                findings.add(f"questions {partition}, {pending[0].offset}: {what} is about no transaction")
        for found in self._unread:
            findings.add(f"answers {found.partition}, {found.offset}: about no transaction")
        logs = Logs(state)
        for name, user in self._users.items():
            log = logs.user(user.partition, name)
            compare(
                name,
                "transactions",
                log.events,
                user.rows,
                (user.log, user.log.events_horizon),
                log,
                findings,
            )
        for key, entity in self._entities.items():
            log = logs.entity(key, self._partitions)
            name = f"entity {key}"
            events = [
                (one.time, one.amount, one.user, one.id_hash, usual(one.to_usual), one.case)
                for one in entity.events
            ]
            labels = [label_row(one) for one in entity.labels]
            compare(name, "transactions", log.events, events, (entity, entity.events_horizon), log, findings)
            compare(name, "labels", log.labels, labels, (entity, entity.labels_horizon), log, findings)
        self._check_labels(logs, findings)
        known = {name.encode() for name in self._users} | {
            label.user.encode() for label in self._labels.values()
        }
        known |= {entity_prefix(*key) for key in self._entities}
        findings.wrong += [f"a log of {prefix!r}, of whom nobody told" for prefix in logs.prefixes - known]

    def _check_labels(self, logs: Logs, findings: Findings) -> None:
        """Compare labels with what they became: notes to entities, or labels that wait."""
        sent: dict[tuple[int, int, int, int], _Label] = {}
        for label in self._labels.values():
            sent[label.id_hash, label.is_fraud, label.when, label.offset] = label
            self._check_label(label, logs, findings, at_rest=True)
        for note in self._notes:
            label = sent.get((note.id_hash, note.is_fraud, note.when_ms, note.offset))
            user = None if label is None else self._users.get(label.user)
            kind = next(kind for kind, code in CODES.items() if code == note.entity)
            routes = [] if user is None else user.routes.get(note.id_hash, [])
            if not any(each[kind] == note.name for each in routes):
                findings.add(f"{note} is of no label of a transaction there")
        for label_user, partition in {(label.user, label.partition) for label in self._labels.values()}:
            waiting = logs.user(partition, label_user).waiting
            if len(set(waiting)) != len(waiting):
                findings.add(f"{label_user}: a label waits twice", doubled=len(waiting) - len(set(waiting)))
            findings.wrong += [
                f"{label_user}: {one} waits, which nobody sent" for one in waiting if one not in sent
            ]

    def _check_label(self, label: _Label, logs: Logs, findings: Findings, *, at_rest: bool = False) -> None:
        user, log = self._users.get(label.user), logs.user(label.partition, label.user)
        routes = [] if user is None else user.routes.get(label.id_hash, [])
        told = any(
            all(
                LabelUpdate(CODES[kind], each[kind], label.id_hash, label.is_fraud, label.when, label.offset)
                in self._notes
                for kind in self._labelled
                if each[kind]
            )
            for each in routes
        )
        waits = (label.id_hash, label.is_fraud, label.when, label.offset) in log.waiting
        expired = log.newest is not None and label.event_time <= log.newest - round(
            self._waits_days * DAY + _LATENESS_MS
        )
        if not (told or waits or expired or len(log.waiting) == MAX_WAITING):
            findings.add(f"{label} was neither told to entities nor waits", lost=1)
        if at_rest and waits and routes:
            findings.add(f"{label} still waits, and its transaction is there")
