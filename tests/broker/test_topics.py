"""Topics on both kinds of brokers, and records in them."""

from __future__ import annotations

import os
import threading
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaAdminClient

from stream.errors import BrokerError, TopicMismatchError
from stream.kafka import admin
from stream.kafka.topics import changelog_topic, topic_specs
from support.broker_records import consume, produce
from support.helpers import settings_for, wait_until

if TYPE_CHECKING:
    from stream.kafka.local.base import Broker


# --- records -------------------------------------------------------------------------------------------


def test_records_come_back_with_keys_and_headers(broker: Broker) -> None:
    settings = settings_for(broker)
    admin.create_topics(settings)
    topic = settings.topics.transactions
    sent = [(f"user-{at % 7}".encode(), os.urandom(at)) for at in range(1, 60)] + [
        (b"user-0", None),
        (None, b"no key"),
    ]
    partitions = produce(settings, topic, sent)
    found = consume(settings, topic, len(sent))
    expected = [
        (partition, key, value, [("n", str(at).encode()), ("empty", b"")])
        for at, (partition, (key, value)) in enumerate(zip(partitions, sent, strict=True))
    ]
    by_number = sorted(found, key=lambda record: int(record[3][0][1]))
    assert [(p, k, v or None, h) for p, k, v, h in by_number] == expected
    for key in {key for key, _ in sent if key}:
        assert len({partition for partition, (k, _) in zip(partitions, sent, strict=True) if k == key}) == 1


# --- topics --------------------------------------------------------------------------------------------


def test_topics_are_created_once_and_then_right(broker: Broker) -> None:
    settings = settings_for(broker, topics={"partitions": 3})
    names = sorted(spec.name for spec in topic_specs(settings))
    assert admin.check_topics(settings) == [
        f"topic {spec.name} does not exist" for spec in topic_specs(settings)
    ]
    assert admin.create_topics(settings) == names
    assert admin.create_topics(settings) == []
    assert admin.check_topics(settings) == []
    assert set(admin.topic_states(settings)) == set(names)
    admin.require_topics(settings)


def test_topics_made_by_two_at_once_are_all_right(broker: Broker) -> None:
    settings = settings_for(broker)
    created: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: created.append(admin.create_topics(settings))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sum(created, [])) == sorted(spec.name for spec in topic_specs(settings))  # noqa: RUF017 - few
    admin.require_topics(settings)


def test_a_wrong_number_of_partitions_is_named(broker: Broker) -> None:
    settings = settings_for(broker, topics={"partitions": 2})
    admin.create_topics(settings)
    other = settings.model_copy(update={"topics": settings.topics.model_copy(update={"partitions": 3})})
    name = settings.topics.transactions
    problems = admin.check_topics(other)
    assert f"topic {name} has 2 partitions, not 3" in problems
    assert f"topic {changelog_topic(settings)} has 2 partitions, not 3" in problems
    assert admin.create_topics(other) == []
    with pytest.raises(TopicMismatchError) as caught:
        admin.require_topics(other)
    text = str(caught.value)
    assert "\n" not in text
    # However many topics there are, the line stays one that can be read.
    assert f"topic {name} has 2 partitions, not 3" in text
    assert text.count("partitions, not 3") < len(problems)
    assert f"and {len(problems) - text.count('partitions, not 3')} more" in text
    assert "riskstream topics create" in text


def test_a_wrong_policy_is_named(broker: Broker) -> None:
    settings = settings_for(broker)
    control, transactions = settings.topics.control, settings.topics.transactions
    raw_create(broker, control, 1, {"cleanup.policy": "delete"})
    raw_create(broker, transactions, 4, {"cleanup.policy": "delete", "retention.ms": "1000"})
    admin.create_topics(settings)
    assert admin.check_topics(settings) == [
        f"topic {transactions} has retention.ms=1000, not 604800000",
        f"topic {control} has cleanup.policy=delete, not compact",
    ]


def test_what_the_broker_does_not_report_is_no_mismatch(embedded_broker: Broker) -> None:
    settings = settings_for(embedded_broker)
    raw_create(embedded_broker, settings.topics.transactions, 4, {})
    admin.create_topics(settings)
    assert admin.check_topics(settings) == []


@pytest.mark.kafka
def test_kafka_refuses_more_replicas_than_brokers_in_a_readable_line(kafka_broker: Broker) -> None:
    settings = settings_for(kafka_broker, topics={"replication_factor": 2})
    with pytest.raises(BrokerError, match="cannot be created: Unable to replicate the partition 2") as caught:
        admin.create_topics(settings)
    assert "\n" not in str(caught.value)


def test_topic_ids_tell_a_topic_from_one_made_again(broker: Broker) -> None:
    settings = settings_for(broker)
    admin.create_topics(settings)
    names = [settings.topics.transactions, settings.topics.alerts, "no-such-topic"]
    first = admin.topic_ids(settings, names)
    assert list(first) == names
    assert first["no-such-topic"] == ""
    assert admin.topic_ids(settings, names) == first
    assert len({uuid.UUID(first[name]) for name in names[:2]}) == 2
    client = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    try:
        client.delete_topics(names[:1])
    finally:
        client.close()
    wait_until(lambda: admin.topic_ids(settings, names)[names[0]] == "", "the topic is not deleted")
    admin.create_topics(settings)
    second = admin.topic_ids(settings, names)
    assert uuid.UUID(second[names[0]]) != uuid.UUID(first[names[0]])
    assert second[names[1]] == first[names[1]]


def test_the_command_creates_and_checks_with_one_line_a_topic(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from stream.cli.commands.topics import topics

    settings = settings_for(broker)
    monkeypatch.setenv("RISKSTREAM_APP_ID", settings.app_id)
    monkeypatch.setenv("RISKSTREAM_KAFKA__BOOTSTRAP_SERVERS", broker.bootstrap_servers)
    for name in ("transactions", "alerts", "decisions", "labels", "dead_letters", "control"):
        monkeypatch.setenv(f"RISKSTREAM_TOPICS__{name.upper()}", getattr(settings.topics, name))
    names = [spec.name for spec in topic_specs(settings)]

    def run(verb: str) -> tuple[list[str], list[str], BaseException | None]:
        result = CliRunner().invoke(topics, [verb])
        lines = [line.split() for line in result.stdout.splitlines()]
        assert [line[1] for line in lines] == [f"{name}:" for name in names]
        return [line[0] for line in lines], result.stdout.splitlines(), result.exception

    states, _, error = run("check")
    assert set(states) == {"FAIL"}
    assert isinstance(error, TopicMismatchError)
    assert error.exit_code != 0
    assert (set(run("create")[0]), run("create")[2]) == ({"created"}, None)
    assert (set(run("create")[0]), set(run("check")[0])) == ({"ok"}, {"ok"})
    monkeypatch.setenv("RISKSTREAM_TOPICS__PARTITIONS", "5")
    states, lines, error = run("create")
    assert isinstance(error, TopicMismatchError)
    assert f"FAIL  {names[0]}: has 4 partitions, not 5" in lines
    assert states.count("ok") == 1


def raw_create(broker: Broker, topic: str, partitions: int, configs: dict[str, str]) -> None:
    client = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    try:
        shape: dict[str, Any] = {"num_partitions": partitions, "replication_factor": 1, "configs": configs}
        client.create_topics({topic: shape}, wait_for_metadata=True)
    finally:
        client.close()
