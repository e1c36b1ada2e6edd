"""The checker's own test: each thing that a worker might do wrong is found."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import rocksdict
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition

from chaos.deployment import Deployment
from chaos.rounds import BROKER_CONFIG
from stream.features.profiles.cache import EntityLogs
from stream.features.profiles.log import EntityLog, Horizon
from stream.kafka.clients import client_config
from stream.kafka.local.apache import KafkaBroker
from stream.kafka.topics import changelog_topic
from stream.state.format import user_of_key
from stream.state.store import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def test_the_checker_finds_what_is_wrong(
    kafka_tools: None, tmp_path: Path, bundles: dict[bool, Path]
) -> None:
    """Each thing that a worker might do wrong, done to the topics and the stores by this test."""
    with KafkaBroker(extra_config=BROKER_CONFIG) as broker:
        for profiled, spoil in ((False, _spoil), (True, _spoil_profiles)):
            folder = tmp_path / ("profiled" if profiled else "plain")
            stream = Deployment(broker, folder, bundles[profiled], "checker", profiled=profiled)
            try:
                spoil(stream, tmp_path)
            finally:
                stream.close()


def _spoil(stream: Deployment, tmp_path: Path) -> None:
    settings, checker = stream.settings, stream.checker
    topics = settings.topics

    def send(topic: str, key: bytes, value: bytes | None, partition: int) -> None:
        stream.producer.send(topic, key=key, value=value, partition=partition).get(60)

    def load(count: int) -> None:
        for record in stream.traffic.take(count):
            stream.send(record)
        stream.producer.flush(60)

    stream.arrange(1)
    load(1_500)
    stream.wait(lambda: not checker.unanswered(), "not everything is answered")
    stream.stop([0])
    folders = [slot.state_dir for slot in stream.slots]

    def problems() -> list[str]:
        checker.follow()
        found = checker.check()
        found.join(checker.check_state())
        found.join(checker.check_commits())
        found.join(checker.check_whole_changelog())
        found.join(checker.check_stores(folders, tmp_path / "copies"))
        return found.wrong

    assert problems() == []
    # Another decision, another alert, an alert that nobody asked for.
    position, decision = next(iter(checker._decisions.items()))
    changed = json.dumps(decision | {"risk_score": 0.123}).encode()
    send(topics.decisions, decision["user_id"].encode(), changed, position[0])
    alert = next(iter(checker._alerts.values()))
    for changes in ({}, {"risk_score": 0.5}, {"alert_id": "made up"}):  # the first is a mere redelivery
        value = json.dumps(alert | changes).encode()
        send(topics.alerts, alert["user_id"].encode(), value, alert["source_partition"])
    found = problems()
    assert [line.split(":")[1][:24] for line in found] == [
        " two different decisions", " two contents", " no decision asks for it",
    ]  # fmt: skip
    checker._alerts = {name: body for name, body in checker._alerts.items() if name[0] != "made up"}
    # An alert is not there.
    missing = checker._alerts.popitem()
    assert ["is missing" in line for line in problems()] == [True]
    checker._alerts |= dict([missing])
    # The changelog loses a user's last event, and then the whole user; the store is as it was.
    user = checker._histories["user-0"]
    place, head = user.partition, b"user-0\0H\0\0\0\0"
    last = checker._state[place][head]
    send(
        changelog_topic(settings),
        head,
        checker._state[place][_other_head(checker._state[place], head)],
        place,
    )
    found = problems()
    assert any(line.startswith("user-0: ") and "events counted, not" in line for line in found)
    assert any("no store of partition" in line for line in found)
    send(changelog_topic(settings), head, last, place)
    # A store has one record more than the changelog.
    options = rocksdict.Options(raw_mode=True)
    (path,) = folders[0].rglob(f"history-{place}.db")
    database = rocksdict.Rdict(str(path), options=options)
    database[b"__faust\0offset__"] = str(checker._reached[place] + 1).encode()
    database.close()
    assert problems() == []
    database = rocksdict.Rdict(str(path), options=options)
    database[b"user-0\0C\0\0\0\x63"] = b"more"
    database.close()
    assert ["is not the changelog's fold at 1 keys" in line for line in problems()] == [True]
    # Offsets are committed before anything was done about them.
    load(50)
    consumer = KafkaConsumer(
        **client_config(settings.kafka), group_id=settings.app_id, enable_auto_commit=False
    )
    places = [TopicPartition(topics.transactions, at) for at in range(topics.partitions)]
    consumer.assign(places)
    ends = consumer.end_offsets(places)
    consumer.commit({partition: OffsetAndMetadata(end, "", -1) for partition, end in ends.items()})
    consumer.close()
    commits = checker.check_commits()
    assert any("and not answered" in line for line in commits.wrong)
    assert any("changelog only has" in line for line in commits.wrong)
    answers = checker.check()
    assert answers.lost >= 50
    assert all("no decision and no dead letter" in line for line in answers.wrong)


def _other_head(state: dict[bytes, bytes], head: bytes) -> bytes:
    return next(key for key in state if key != head and key[-6:] == head[-6:])


def _log(records: dict[bytes, bytes], prefix: bytes) -> EntityLog:
    return EntityLogs(0).of(0, [prefix], MemoryStore(records))[prefix]


def _spoil_profiles(stream: Deployment, tmp_path: Path) -> None:
    """What may go wrong with a model that has profiles; the state is spoiled in what the checker has read."""
    checker, entity_join = stream.checker, stream.checker.entity_join
    assert entity_join is not None
    stream.arrange(1)
    for record in stream.traffic.take(1_500):
        stream.send(record)
    stream.producer.flush(60)
    stream.wait(lambda: not checker.unanswered() and not checker.under_way(), "something is under way")
    stream.stop([0])
    checker.follow()
    assert checker.check().wrong == []
    assert checker.check_state().wrong == []
    assert checker.check_commits().wrong == []
    # Every path of questions and labels was taken.
    assert {
        "request answered",
        "request late",
        "label_update applied",
        "label_update unknown",
    } <= entity_join.outcomes.keys()
    # An entity's log has an event twice: one of a log whose last event and last label are not sealed.
    place, head, log = next(
        (partition, key, log)
        for partition, records in checker._state.items()
        for key in records
        if key[:2] == b"\xff\x02" and key[-5:-4] == b"P"
        for log in [_log(checker._state[partition], user_of_key(key)[0])]
        if log.events.end > log.events.tail and log.labels.end > log.labels.tail
    )
    prefix, whole = log.prefix, checker._state[place][head]
    log.add(log.events.array[:, log.events.end - 1].tolist())
    checker._state[place] |= log.writes(Horizon(2**60, 2**60))  # type: ignore[arg-type]
    found = checker.check_state()
    assert found.doubled == 1
    assert "transactions counted" in found.wrong[0]
    checker._state[place][head] = whole
    # It has lost one, and a label.
    log = _log(checker._state[place], prefix)
    log.events.end -= 1
    log.labels.end -= 1
    log.total -= 1
    checker._state[place][head] = log.writes(Horizon(2**60, 2**60))[-1][1] or b""
    found = checker.check_state()
    assert found.lost == 2
    assert any("labels, not" in line for line in found.wrong)
    assert any("its log only has" in line for line in checker.check_commits().wrong)
    checker._state[place][head] = whole
    assert checker.check_state().wrong == []
    # A note never came.
    note = next(note for note, (_, outcome) in entity_join._notes.items() if outcome == "applied")
    taken = entity_join._notes.pop(note)
    assert ["neither told to entities nor waits" in line for line in checker.check_state().wrong] == [True]
    entity_join._notes[note] = taken
    # A question was never asked, an answer never given, and a profile feature is another one.
    position, decision = next(
        (position, body)
        for position, body in checker._decisions.items()
        if body.get("features", {}).get("merchant_count_2d") is not None
    )
    case = entity_join._by_position[position]
    asked, case.questions = case.questions, {}
    checker._unchecked = {position}
    assert ["was never asked" in line for line in checker.check().wrong] == [True, True][: len(asked)]
    case.questions = asked
    case.answered.clear()
    assert all("is committed, not answered" in line for line in checker.check_commits().wrong)
    case.answered |= asked.keys()
    decision["features"]["merchant_count_2d"] += 1
    checker._unchecked = {position}
    assert ["merchant_count_2d" in line for line in checker.check().wrong] == [True]
