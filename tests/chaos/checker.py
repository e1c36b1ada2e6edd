"""The checker: what the topics and the stores hold against the brute-force oracle's fold of the source.

It uses none of the product's code to form an expectation: the oracle says what a transaction's outcome and
features are, a bad record says itself which field is wrong. The product's layout only turns stored bytes
into numbers.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kafka import KafkaAdminClient

from chaos.entity_join import EntityJoinChecker
from chaos.findings import Findings
from chaos.stored import History, check_stores, compare, decode, fold
from chaos.topics import Found, Position, Reader
from chaos.traffic import BAD_FIELD, event_of
from stream.events.models import DeadLetterHeader
from stream.kafka.clients import client_config
from stream.kafka.topics import changelog_topic, requests_topic, responses_topic
from stream.state.format import user_of_key
from support.oracle import same

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from stream.features.profiles.spec import EntityProfile
    from stream.settings import Settings


__all__ = ["Checker", "Findings", "Position"]

#: All that a second delivery of the same alert or decision may differ in: nothing.
MAY_DIFFER: tuple[str, ...] = ()

#: And a second dead letter: how far a future event is ahead was measured again.
LETTER_MAY_DIFFER = (
    DeadLetterHeader.TIMESTAMP.value,
    DeadLetterHeader.MESSAGE.value,
    DeadLetterHeader.REASON.value,
)

#: The record with which a worker takes a partition over; no user has it.
OWNER_KEY = b"\0O\0\0\0\0"

#: Records of the logs that models with profiles keep beside the histories.
LOG_KINDS = frozenset("PEK")

ALERT_LEVELS = ("MEDIUM", "HIGH")

_ADDED = frozenset(header.value for header in DeadLetterHeader)


@dataclass(slots=True)
class _Expected:
    """What the oracle says of one source record; ``field`` only where it must be rejected."""

    record: Found
    user: str = ""
    outcome: str = "rejected"
    features: dict[str, float] | None = None
    transaction_id: str = ""
    field: str = ""


class Checker:
    """Follows the topics of one deployment; its ``check`` may be called whenever nothing is under way.

    Parameters
    ----------
    profiles
        Those of the deployment's model.
    """

    def __init__(self, settings: Settings, profiles: Sequence[EntityProfile] = ()) -> None:
        self._settings = settings
        topics = settings.topics
        self._names = {
            "source": topics.transactions,
            "decisions": topics.decisions,
            "alerts": topics.alerts,
            "dead_letters": topics.dead_letters,
            "changelog": changelog_topic(settings),
        }
        self.entity_join: EntityJoinChecker | None = None
        if profiles:
            self.entity_join = EntityJoinChecker(settings, profiles)
            self._names |= {
                "labels": topics.labels,
                "requests": requests_topic(settings),
                "responses": responses_topic(settings),
            }
        self._readers = {name: Reader(settings, topic) for name, topic in self._names.items()}
        self._expected: dict[Position, _Expected] = {}
        self._unchecked: set[Position] = set()
        self._histories: dict[str, History] = {}
        self._decisions: dict[Position, dict[str, Any]] = {}
        self._dead_letters: dict[Position, Found] = {}
        self._label_letters: dict[Position, Found] = {}
        self._alerts: dict[tuple[str, int, int], dict[str, Any]] = {}
        #: By partition, the highest answered offset.
        self._highest: dict[int, int] = {}
        self._pending = Findings()
        #: By partition: key to value, and the last record's offset.
        self._state: dict[int, dict[bytes, bytes]] = {}
        self._reached: dict[int, int] = {}
        self.changelog_records = 0
        self.redelivered = 0
        self.late = 0

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()

    # --- reading -----------------------------------------------------------------------------------

    def answered(self) -> int:
        """Return how many records have a decision or a dead letter, read so far; polls for more."""
        for name in ("decisions", "dead_letters"):
            for found in self._readers[name].some():
                self._take(name, found)
        return len(self._decisions) + len(self._dead_letters)

    def is_answered(self, position: Position) -> bool:
        return position in self._decisions or position in self._dead_letters

    def answered_beyond(self, marks: dict[int, int]) -> bool:
        """Whether every partition has an answer to a record behind its mark; polls for more."""
        self.answered()
        return all(self._highest.get(partition, -1) > mark for partition, mark in marks.items())

    def follow(self, names: Iterable[str] = ()) -> None:
        """Read the topics to their ends."""
        for name in names or self._readers:
            for found in self._readers[name].rest():
                self._take(name, found)

    def _take(self, name: str, found: Found) -> None:
        getattr(self, f"_take_{name}")(found)

    def _take_source(self, found: Found) -> None:
        position = (found.partition, found.offset)
        self._unchecked.add(position)
        bad = [value for name, value in found.headers if name == BAD_FIELD]
        if bad:
            self._expected[position] = _Expected(found, field=bad[0].decode())
            return
        body = json.loads(found.value or b"")
        name, event = event_of(body)
        history = self._histories.setdefault(name, History(found.partition))
        outcome, features = history.user.take(event)
        if outcome != "duplicate":
            history.applied.append(found.offset)
            if self.entity_join is not None:
                self.entity_join.take_source(found, body, event, outcome)
        self.late += outcome == "late"
        self._expected[position] = _Expected(found, name, outcome, features, event.transaction_id)

    def _note(self, position: Position) -> None:
        partition, offset = position
        self._highest[partition] = max(offset, self._highest.get(partition, -1))

    def _take_decisions(self, found: Found) -> None:
        body = json.loads(found.value or b"")
        position = (body["source_partition"], body["source_offset"])
        comparable = {name: value for name, value in body.items() if name not in MAY_DIFFER}
        self._note(position)
        first = self._decisions.setdefault(position, comparable)
        if first is not comparable:
            self.redelivered += 1
            if first != comparable:
                self._pending.add(f"{position}: two different decisions: {_differences(first, comparable)}")
        if found.partition != position[0] or found.key != body["user_id"].encode():
            self._pending.add(f"{position}: its decision has key {found.key!r}, partition {found.partition}")

    def _take_alerts(self, found: Found) -> None:
        body = json.loads(found.value or b"")
        comparable = {name: value for name, value in body.items() if name not in MAY_DIFFER}
        first = self._alerts.setdefault(_alert_of(body), comparable)
        if first != comparable:
            self._pending.add(f"alert {body['alert_id']}: two contents: {first} and {comparable}")
        if found.partition != body["source_partition"] or found.key != body["user_id"].encode():
            self._pending.add(f"alert {body['alert_id']}: key {found.key!r}, partition {found.partition}")

    def _take_dead_letters(self, found: Found) -> None:
        headers = dict(found.headers)
        position = (
            int(headers[DeadLetterHeader.PARTITION.value]),
            int(headers[DeadLetterHeader.OFFSET.value]),
        )
        letters = self._dead_letters
        if headers[DeadLetterHeader.TOPIC.value].decode() == self._names["source"]:
            self._note(position)
        else:
            letters = self._label_letters
        first = letters.setdefault(position, found)
        if first is not found:
            self.redelivered += 1
            one, two = (
                (
                    letter.key,
                    letter.value,
                    [pair for pair in letter.headers if pair[0] not in LETTER_MAY_DIFFER],
                )
                for letter in (first, found)
            )
            if one != two:
                self._pending.add(f"{position}: two different dead letters: {one} and {two}")

    def _take_labels(self, found: Found) -> None:
        assert self.entity_join is not None
        self.entity_join.take_label(found)

    def _take_requests(self, found: Found) -> None:
        assert self.entity_join is not None
        self.entity_join.take_request(found)

    def _take_responses(self, found: Found) -> None:
        assert self.entity_join is not None
        self.entity_join.take_response(found)

    def _take_changelog(self, found: Found) -> None:
        self.changelog_records += 1
        self._reached[found.partition] = found.offset
        fold(self._state.setdefault(found.partition, {}), found)

    # --- checking ----------------------------------------------------------------------------------

    def unanswered(self) -> list[Position]:
        """Return the source positions without an answer, all topics read to their ends."""
        self.follow()
        return sorted(position for position in self._unchecked if not self.is_answered(position))

    def sent_at(self, position: Position) -> str:
        """Return what lies at a source position, in a few words."""
        expected = self._expected[position]
        value = (expected.record.value or b"")[:120]
        return f"{expected.outcome} {expected.field} {expected.user} key {expected.record.key!r}: {value!r}"

    def check(self) -> Findings:
        """Compare every answer and alert; everything that was sent must have had its time."""
        findings, self._pending = self._pending, Findings()
        unanswered = self.unanswered()
        if self.entity_join is not None:
            self.entity_join.catch_up(findings)
        for position in unanswered:
            findings.add(f"{position}: no decision and no dead letter", lost=1)
            self._unchecked.discard(position)
        findings.join(self._pending)
        self._pending = Findings()
        for position in self._unchecked:
            self._check_answer(position, findings)
        self._unchecked.clear()
        self._check_alerts(findings)
        for position in self._decisions.keys() - self._expected.keys():
            findings.add(f"{position}: a decision on a record that is not in the source")
        return findings

    def check_commits(self) -> Findings:
        """Compare the committed offsets with the effects; to be called while no worker runs.

        Whatever lies below a committed offset must have its answer, and its effect in the changelog.
        """
        findings = Findings()
        bounds = self.committed()
        committed = bounds["source"]
        self.follow()
        if self.entity_join is not None:
            self.entity_join.catch_up(findings)
            self.entity_join.check_commits(self._state, bounds, findings)
        for position in self._unchecked:
            if position[1] >= committed.get(position[0], 0) or self.is_answered(position):
                continue
            if self.entity_join is None or not self.entity_join.waits(position, bounds["responses"]):
                findings.add(f"{position}: committed {committed[position[0]]}, and not answered", lost=1)
        for name, history in self._histories.items():
            bound = committed.get(history.partition, 0)
            below = [offset for offset in history.applied if offset < bound]
            if not below:
                continue
            records = self._records_of(self._state, history.partition, name)
            reached = decode(name.encode(), records).offset if records else -1
            if reached < below[-1]:
                findings.add(
                    f"{name}: committed {bound}, changelog only has {reached} of {below[-1]}", lost=1
                )
        return findings

    def committed(self) -> dict[str, dict[int, int]]:
        """Return for each consumed topic the group's committed offset of each partition that has one."""
        client = KafkaAdminClient(**client_config(self._settings.kafka))
        try:
            found = client.list_group_offsets([self._settings.app_id])[self._settings.app_id]
        finally:
            client.close()
        return {
            name: {
                partition.partition: place.offset
                for partition, place in found.items()
                if partition.topic == topic and place.offset >= 0
            }
            for name, topic in self._names.items()
        }

    def under_way(self) -> list[str]:
        """Return what of the topics between the stages is not committed, a line for each partition.

        Without any, nothing is under way: every label is where it belongs, and no case is open.
        """
        if self.entity_join is None:
            return []
        committed = self.committed()
        return [
            f"{name} of partition {partition}: committed {committed[name].get(partition, 0)} of {end}"
            for name in ("labels", "requests", "responses")
            for partition, end in self._readers[name].ends().items()
            if committed[name].get(partition, 0) < end
        ]

    def changelog_size(self) -> int:
        """Return how many records the changelog has now: fewer than were written once it was compacted."""
        return sum(1 for _ in self._whole_changelog())

    def check_whole_changelog(self) -> Findings:
        """Compare a fold of the changelog from its very start with the running one, while nobody writes."""
        self.follow(["changelog"])
        findings, state = Findings(), {}
        for found in self._whole_changelog():
            fold(state.setdefault(found.partition, {}), found)
        for partition in state.keys() | self._state.keys():
            if state.get(partition, {}) != self._state.get(partition, {}):
                findings.add(f"changelog of partition {partition}: another fold from its start")
        return findings

    def _whole_changelog(self) -> Iterator[Found]:
        reader = Reader(self._settings, self._names["changelog"])
        try:
            yield from reader.rest()
        finally:
            reader.close()

    def _check_letter(self, name: str, record: Found, letter: Found, field: str, findings: Findings) -> None:
        position = (record.partition, record.offset)
        own = [(header, value) for header, value in letter.headers if header not in _ADDED]
        added = {header: value.decode() for header, value in letter.headers if header in _ADDED}
        if (letter.key, letter.value, own) != (record.key, record.value, list(record.headers)):
            findings.add(f"{position}: its dead letter is not what it was: {letter}")
        asked = {
            DeadLetterHeader.TOPIC.value: self._names[name],
            DeadLetterHeader.PARTITION.value: str(position[0]),
            DeadLetterHeader.OFFSET.value: str(position[1]),
            DeadLetterHeader.FIELD.value: field,
        }
        if any(added.get(header) != value for header, value in asked.items()):
            findings.add(f"{position}: its dead letter says {added}, not {asked}")
        if not added.get(DeadLetterHeader.REASON.value):
            findings.add(f"{position}: its dead letter has no reason")

    def _check_label_letters(self, entity_join: EntityJoinChecker, findings: Findings) -> None:
        for position, (record, name) in entity_join.bad_labels.items():
            letter = self._label_letters.get(position)
            if letter is None:
                findings.add(f"label at {position}: is not valid ({name}), and has no dead letter", lost=1)
            else:
                self._check_letter("labels", record, letter, name, findings)
        for position in self._label_letters.keys() - entity_join.bad_labels.keys():
            findings.add(f"label at {position}: is valid, and has a dead letter")

    def _check_answer(self, position: Position, findings: Findings) -> None:
        expected, record = self._expected[position], self._expected[position].record
        decision, letter = self._decisions.get(position), self._dead_letters.get(position)
        if expected.field:
            if decision is not None or letter is None:
                findings.add(f"{position}: is not valid ({expected.field}) and was decided: {decision}")
                return
            self._check_letter("source", record, letter, expected.field, findings)
            return
        if letter is not None or decision is None:
            findings.add(f"{position}: is valid and was rejected: {dict(letter.headers) if letter else None}")
            return
        if (decision["transaction_id"], decision["outcome"]) != (expected.transaction_id, expected.outcome):
            findings.add(
                f"{position}: {decision['transaction_id']} {decision['outcome']}, "
                f"not {expected.transaction_id} {expected.outcome}"
            )
            return
        if expected.features is not None:
            values, wanted = decision["features"], expected.features
            if self.entity_join is not None:
                wanted = wanted | self.entity_join.features(position, findings)
            found = {name: math.nan if values[name] is None else values[name] for name in wanted}
            differ = {
                name: (found[name], value) for name, value in wanted.items() if not same(found[name], value)
            }
            if differ:
                findings.add(f"{position}: features of {expected.transaction_id} differ: {differ}")
        elif "features" in decision:
            findings.add(f"{position}: a duplicate with features")

    def _check_alerts(self, findings: Findings) -> None:
        asked: dict[tuple[str, int, int], dict[str, Any]] = {}
        for position, body in self._decisions.items():
            deserved = body.get("risk_level") in ALERT_LEVELS
            if deserved != ("alert_id" in body):
                findings.add(f"{position}: level {body.get('risk_level')}, alert {body.get('alert_id')}")
            if deserved:
                asked[_alert_of(body)] = body
        for name in asked.keys() - self._alerts.keys():
            findings.add(f"alert {name[0]} on {asked[name]['transaction_id']} is missing", lost=1)
        for name in self._alerts.keys() - asked.keys():
            findings.add(f"alert {name[0]}: no decision asks for it")
        for name in asked.keys() & self._alerts.keys():
            decision, alert = asked[name], self._alerts[name]
            if any(alert[key] != decision[key] for key in alert.keys() & decision.keys()):
                findings.add(f"alert {name[0]} is not what its decision says")
            if not alert["reasons"]:
                findings.add(f"alert {name[0]} has no reasons")

    @staticmethod
    def _records_of(state: dict[int, dict[bytes, bytes]], partition: int, name: str) -> dict[bytes, bytes]:
        user = name.encode()
        records = state.get(partition, {})
        return {
            key: value
            for key, value in records.items()
            if key.startswith(user) and user_of_key(key)[0] == user and key[-5] not in b"PEK"
        }

    def check_state(self) -> Findings:
        """Compare the changelog's fold, as far as it was read, with the source's, user by user.

        With profiles entity by entity as well; nothing may be under way.
        """
        findings, state = Findings(), self._state
        if self.entity_join is not None:
            self.entity_join.check_state(state, findings)
            self._check_label_letters(self.entity_join, findings)
        by_user: dict[tuple[int, bytes], dict[bytes, bytes]] = {}
        for partition, records in state.items():
            for key, value in records.items():
                if key == OWNER_KEY:
                    continue
                user, kind, _ = user_of_key(key)
                if kind in LOG_KINDS:
                    continue
                by_user.setdefault((partition, user), {})[key] = value
        for name, history in self._histories.items():
            records = by_user.pop((history.partition, name.encode()), {})
            if not history.applied:
                if records:
                    findings.add(f"{name}: a history without events")
                continue
            if not records:
                count = len(history.applied)
                findings.add(f"{name}: no history of its {count} events", lost=count)
                continue
            compare(name, history, decode(name.encode(), records), findings)
        for partition, user in by_user:
            findings.add(f"partition {partition} has a history of {user!r}, who has no events there")
        return findings

    def check_stores(
        self, folders: Iterable[Path], scratch: Path, *, may_be_damaged: bool = False
    ) -> Findings:
        """Compare the workers' RocksDB files with the changelog's fold; see :func:`chaos.stored.check_stores`."""
        self.follow(["changelog"])
        return check_stores(self._reached, self._state, folders, scratch, may_be_damaged=may_be_damaged)


def _differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what two decisions say differently, their features among it."""
    left, right = ({**body, **body.get("features", {}), "features": None} for body in (one, other))
    names = left.keys() | right.keys()
    return {name: (left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)}


def _alert_of(body: dict[str, Any]) -> tuple[str, int, int]:
    """Return which alert this is: its id and its transaction's position.

    A second copy of a transaction that lies behind the horizon is scored again (see ``docs/explanation/windows.md``): one id,
    two positions.
    """
    return body["alert_id"], body["source_partition"], body["source_offset"]
