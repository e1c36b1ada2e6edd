"""State, topics and brokers that are not what they were: noticed, said in a line, and nothing is lost."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, OffsetAndMetadata, TopicPartition

from stream.events.models import Outcome
from stream.kafka import admin
from stream.kafka.clients import client_config
from stream.kafka.local.apache import KafkaBroker
from stream.kafka.topics import changelog_topic
from support.helpers import wait_until
from support.oracle import Event
from support.streams import Stream, readable_line
from support.traffic import START, check_decisions, sent, traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from stream.kafka.local.base import Broker

MakeStream = "Callable[..., Stream]"


@contextlib.contextmanager
def administration(stream: Stream) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(**client_config(stream.settings.kafka))
    try:
        yield client
    finally:
        client.close()


def make_again(stream: Stream, topic: str) -> None:
    """Delete a topic and create it with the same name, once the broker has forgotten it."""
    with administration(stream) as client:
        client.delete_topics([topic])

        def made() -> bool:
            admin.create_topics(stream.settings)
            return admin.check_topics(stream.settings) == []

        wait_until(made, "the topic does not come back")


def partition_folders(stream: Stream) -> list[Path]:
    return sorted(path for path in stream.settings.state_dir.rglob("*.db") if path.is_dir())


@pytest.mark.parametrize("what", ["MANIFEST", "CURRENT", "sst"])
def test_damaged_state_is_put_aside_and_restored(kafka_stream: MakeStream, what: str) -> None:
    stream = kafka_stream()
    first = stream.start()
    stream.produce(traffic("hurt", 600, users=10))
    stream.wait_answered()
    assert first.stop() == 0
    if what == "sst":
        again = stream.start()  # what the first one wrote is in tables by now
        assert again.stop() == 0
    hurt = 0
    for folder in partition_folders(stream):
        for file in folder.glob("*.sst" if what == "sst" else f"{what}*"):
            content = bytearray(file.read_bytes())
            for at in range(min(len(content), 400)):
                content[at] ^= 0xFF
            file.write_bytes(content)
            hurt += 1
    assert hurt
    stream.produce(traffic("hurt", 300, users=10, begin=600))
    # Damage that only a read finds ends the worker once, and the next start restores.
    for _ in range(1 + stream.settings.topics.partitions):
        worker = stream.start(ready=False)
        wait_until(
            lambda: worker.process.poll() is not None or stream.sent.keys() <= stream.answered(),  # noqa: B023
            f"neither ends nor answers:\n{worker.log}",
        )
        if worker.process.poll() is None:
            break
        assert "is damaged" in readable_line(worker)
        stream.workers.remove(worker)
    stream.wait_answered()
    assert check_decisions(stream, "hurt", once=False) == len(stream.sent)
    assert any(".damaged-" in path.name for path in stream.settings.state_dir.rglob("*.damaged-*"))


def test_a_source_made_again_while_nobody_looked_is_taken_from_its_beginning(
    kafka_stream: MakeStream,
) -> None:
    """The group's offsets are those of the topic that has gone: going on at them would pass records over."""
    stream = kafka_stream()
    first = stream.start()
    old = [Event(f"again-{at}", START + at, 100 + at, "m") for at in range(200)]
    stream.produce(sent("again", event) for event in old)
    stream.wait_answered()
    assert first.stop() == 0
    make_again(stream, stream.settings.topics.transactions)
    stream.sent.clear()
    known = len(stream.read("decisions"))
    new = [Event(f"new-{at}", START + 1_000 + at, 300, "m") for at in range(100)]
    # More than there were, the old ones among them: the old offsets lie in the middle of it.
    stream.produce(sent("again", event) for event in [*new, *old, *new[:20]])
    second = stream.start()
    wait_until(
        lambda: len(stream.read("decisions")) >= known + 320,
        f"not every record of the new topic is decided:\n{second.log}",
    )
    assert "from another incarnation of" in second.log
    found = [record.json for record in stream.read("decisions")[known:]]
    assert [body["outcome"] for body in found] == ["scored"] * 100 + ["duplicate"] * 220
    assert second.metric("riskstream_other_source_users_total") == 1
    assert second.stop() == 0


def test_offsets_of_another_topic_of_the_name_are_not_gone_on_at(kafka_stream: MakeStream) -> None:
    """Kafka forgets a deleted topic's commits, but not always before the new one is taken."""
    stream = kafka_stream()
    topic = stream.settings.topics.transactions
    places = stream.produce(traffic("else", 100, users=3))
    consumer = KafkaConsumer(**client_config(stream.settings.kafka), group_id=stream.settings.app_id)
    try:
        commits = {
            TopicPartition(topic, partition): OffsetAndMetadata(offset, "id-of-another-topic", -1)
            for partition, offset in sorted(places)
        }
        consumer.assign(list(commits))
        consumer.commit(commits)
    finally:
        consumer.close()
    worker = stream.start()
    stream.wait_answered()
    assert "was recreated since offset" in worker.log
    assert check_decisions(stream, "else", once=True) == len(places)
    assert worker.stop() == 0


@pytest.mark.parametrize("more", [False, True])
def test_a_source_made_again_under_a_worker_ends_it(kafka_stream: MakeStream, more: bool) -> None:
    stream = kafka_stream()
    first = stream.start()
    places = stream.produce(sent("under", Event(f"under-{at}", START + at, 100)) for at in range(300))
    stream.wait_answered(places)
    make_again(stream, stream.settings.topics.transactions)
    stream.sent.clear()
    known = len(stream.read("decisions"))
    count = 900 if more else 50
    stream.produce(sent("under", Event(f"over-{at}", START + 1_000 + at, 100)) for at in range(count))
    assert first.wait_end() == 4, first.log
    assert "recreated" in readable_line(first)
    stream.workers.remove(first)
    second = stream.start()
    decided: set[str] = set()

    def all_decided() -> bool:
        bodies = [record.json for record in stream.read("decisions")[known:]]
        decided.update(
            body["transaction_id"]
            for body in bodies
            if body["outcome"] in {Outcome.SCORED.value, Outcome.LATE.value}
        )
        return len(decided) == count

    wait_until(all_decided, f"{count - len(decided)} records of the new topic are not scored:\n{second.log}")
    assert second.stop() == 0


def test_a_changelog_made_again_is_not_believed(kafka_stream: MakeStream) -> None:
    stream = kafka_stream()
    first = stream.start()
    stream.produce(traffic("log", 300, users=5))
    stream.wait_answered()
    assert first.stop() == 0
    make_again(stream, changelog_topic(stream.settings))
    second = stream.start(ready=False)
    assert second.wait_end() == 6, second.log
    line = readable_line(second)
    assert "changelog topic that was deleted and recreated" in line
    stream.workers.remove(second)


def test_a_source_that_grew_ends_the_worker(kafka_stream: MakeStream) -> None:
    stream = kafka_stream(topics={"partitions": 2})
    worker = stream.start()
    with administration(stream) as client:
        client.create_partitions({stream.settings.topics.transactions: 3})
    assert stream.start(ready=False).wait_end() == 4
    assert "has 3 partitions, not 2" in readable_line(stream.workers[1])
    stream.workers = [worker]
    assert worker.stop() == 0


def test_a_broker_that_stays_away_ends_an_idle_worker(
    kafka_tools: None, bundle_folder: Path, tmp_path: Path
) -> None:
    with KafkaBroker() as broker:
        patience: dict[str, Any] = {"broker_gone_seconds": 3.0}
        stream = Stream(broker, tmp_path, bundle_folder, watchdog=patience)
        try:
            worker = stream.start()
            places = stream.produce(traffic("gone", 50, users=3))
            stream.wait_answered(places)
            broker.kill()
            assert worker.wait_end() == 4, worker.log
            assert "has not responded" in readable_line(worker)
            assert len(worker.log.splitlines()) < 300
        finally:
            stream.workers = []
            stream.close()


@pytest.fixture
def kafka_stream(
    kafka_broker: Broker, bundle_folder: Path, tmp_path: Path
) -> Iterator[Callable[..., Stream]]:
    """Make deployments on Apache Kafka."""
    made: list[Stream] = []

    def make(**overrides: Any) -> Stream:
        made.append(Stream(kafka_broker, tmp_path, bundle_folder, **overrides))
        return made[-1]

    yield make
    for stream in made:
        stream.close()
