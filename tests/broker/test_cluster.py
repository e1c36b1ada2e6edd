"""A cluster of three brokers: what its topics survive, and when it forgets the former owner of a partition."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from stream.cli.commands.check import Finding, findings
from stream.errors import BrokerError, FencedError, TopicMismatchError
from stream.events.records import ProducerRecord
from stream.kafka import admin
from stream.kafka.clients import aiokafka_config, client_config
from stream.kafka.producer import BatchProducer
from stream.kafka.topics import changelog_topic, topic_specs, transactional_id
from support.helpers import settings_for, wait_until
from support.kafka_cluster import three_brokers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from stream.kafka.local.apache import KafkaBroker
    from stream.settings import Settings

pytestmark = pytest.mark.kafka

#: The brokers forget producers soon, and notice soon that one of them is gone.
QUICK = {
    "broker.session.timeout.ms": "1500",
    "broker.heartbeat.interval.ms": "200",
    "transactional.id.expiration.ms": "2000",
    "transaction.remove.expired.transaction.cleanup.interval.ms": "100",
    "producer.id.expiration.ms": "2000",
    "producer.id.expiration.check.interval.ms": "100",
}

RECORD = ProducerRecord(b"key", b"value")


@pytest.fixture(scope="module")
def cluster(kafka_tools: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[KafkaBroker]]:
    with three_brokers(tmp_path_factory.mktemp("cluster"), QUICK) as brokers:
        yield brokers


def settings_on(cluster: list[KafkaBroker], **topics: Any) -> Settings:
    return settings_for(cluster[0], topics={"partitions": 1, **topics})


def looked(settings: Settings, name: str) -> list[Finding]:
    return [found for found in findings(settings) if found.name == name and found.state != "ok"]


def weak_topics(settings: Settings) -> dict[str, list[str]]:
    """Return the weaknesses of the topics that have any."""
    states = admin.topic_states(settings)
    return {name: state.weaknesses for name, state in states.items() if state.weaknesses}


def changelog_on(cluster: list[KafkaBroker], partitions: int = 1) -> tuple[Settings, str, str]:
    """Create topics; returns their settings, the changelog, and the transactional id of its partition 0."""
    settings = settings_on(cluster, partitions=partitions)
    admin.create_topics(settings)
    return settings, changelog_topic(settings), transactional_id(settings, 0)


def raw_create(cluster: list[KafkaBroker], topic: str, replicas: int, configs: dict[str, str]) -> None:
    client = KafkaAdminClient(bootstrap_servers=cluster[0].bootstrap_servers)
    try:
        shape: dict[str, Any] = {"num_partitions": 1, "replication_factor": replicas, "configs": configs}
        client.create_topics({topic: shape}, wait_for_metadata=True)
    finally:
        client.close()


# --- topics --------------------------------------------------------------------------------------------


def test_topics_are_durable_unless_the_settings_say_otherwise(cluster: list[KafkaBroker]) -> None:
    settings = settings_on(cluster)
    assert admin.create_topics(settings) == sorted(spec.name for spec in topic_specs(settings))
    admin.require_topics(settings)
    assert weak_topics(settings) == {}
    for spec, _, _ in admin.topic_states(settings).values():
        assert spec.replication_factor == 3
        assert spec.durability == {
            "min.insync.replicas": "2",
            "unclean.leader.election.enable": "false",
        }
    # Three replicas are required where the settings say so, and noted where the cluster suggests it.
    single = settings_on(cluster, replication_factor=1)
    admin.create_topics(single)
    assert (admin.check_topics(single), weak_topics(single)) == ([], {})
    topics = single.topics
    by_default = single.model_copy(update={"topics": topics.model_copy(update={"replication_factor": None})})
    assert admin.check_topics(by_default) == []
    notes = looked(by_default, "topic")
    assert {found.state for found in notes} == {"note"}
    assert len(notes) == len(topic_specs(single))
    assert all("has replication factor 1, not 3" in found.text for found in notes)
    required = single.model_copy(update={"topics": topics.model_copy(update={"replication_factor": 3})})
    assert {found.state for found in looked(required, "topic")} == {"FAIL"}


def test_an_existing_topic_that_loses_records_is_noted_and_used(
    cluster: list[KafkaBroker], caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_on(cluster)
    retention = {"retention.ms": "604800000"}
    topics = settings.topics
    raw_create(cluster, topics.transactions, 3, retention | {"unclean.leader.election.enable": "true"})
    raw_create(cluster, topics.alerts, 3, retention | {"min.insync.replicas": "3"})
    raw_create(cluster, topics.decisions, 2, retention)
    admin.create_topics(settings)
    admin.require_topics(settings)
    assert f"{', '.join(sorted([topics.alerts, topics.decisions, topics.transactions]))};" in caplog.text
    weak = weak_topics(settings)
    assert {name: [text.split(":")[0] for text in texts] for name, texts in weak.items()} == {
        topics.transactions: [
            "has min.insync.replicas=1, not 2",
            "has unclean.leader.election.enable=true, not false",
        ],
        topics.alerts: ["has min.insync.replicas=3, not 2"],
        topics.decisions: ["has replication factor 2, not 3, for which there are enough brokers"],
    }
    assert [found.text.split()[0] for found in looked(settings, "topic")] == [
        topics.transactions,
        topics.alerts,
        topics.decisions,
    ]
    own = topics.model_copy(update={"min_insync_replicas": 3})
    assert topics.alerts not in weak_topics(settings.model_copy(update={"topics": own}))


def test_a_topic_that_acknowledges_nothing_is_refused(cluster: list[KafkaBroker]) -> None:
    settings = settings_on(cluster)
    raw_create(cluster, settings.topics.alerts, 1, {"retention.ms": "604800000", "min.insync.replicas": "2"})
    admin.create_topics(settings)
    with pytest.raises(
        TopicMismatchError, match=r"min\.insync\.replicas=2 and 1 replicas, so no record is ever"
    ):
        admin.require_topics(settings)


# --- fencing -------------------------------------------------------------------------------------------


def with_owners(settings: Settings, work: Callable[[BatchProducer, BatchProducer], Awaitable[None]]) -> None:
    """Run ``work`` with the producers of a former and a new owner of the changelog."""

    async def run() -> None:
        pair = [BatchProducer(aiokafka_config(settings.kafka), 10.0, 10.0) for _ in range(2)]
        try:
            for producer in pair:
                await producer.start([changelog_topic(settings)])
            await work(*pair)
        finally:
            for producer in pair:
                await producer.stop()

    asyncio.run(run())


def test_check_names_brokers_that_forget_owners_early(cluster: list[KafkaBroker]) -> None:
    notes = looked(settings_on(cluster), "fencing")
    assert [(found.state, found.text.split()[0]) for found in notes] == [
        ("note", "producer.id.expiration.ms"),
        ("note", "transactional.id.expiration.ms"),
    ]
    assert all(f"2000 on broker {number}" in found.text for number in (1, 2, 3) for found in notes)


def test_a_former_owner_writes_again_when_the_partition_has_forgotten_the_new_one(
    cluster: list[KafkaBroker],
) -> None:
    """As the guarantees say: after ``producer.id.expiration.ms`` without a write of the new owner."""
    settings, topic, own_id = changelog_on(cluster)

    async def work(old: BatchProducer, new: BatchProducer) -> None:
        await old.fence(topic, {0: (own_id, RECORD)})
        await new.fence(topic, {0: (own_id, RECORD)})
        assert new.epoch(topic, 0) == old.epoch(topic, 0) + 1
        refused = 0
        while True:
            try:
                await old.deliver([(topic, 0, [RECORD])])
                break
            except FencedError:
                refused += 1
                assert refused < 100_000
        assert refused > 0

    with_owners(settings, work)


def test_a_new_owner_fences_nobody_when_the_coordinator_has_forgotten_the_id(
    cluster: list[KafkaBroker],
) -> None:
    """As the guarantees say: after ``transactional.id.expiration.ms`` without a change of owners."""
    settings, topic, own_id = changelog_on(cluster)
    client = KafkaAdminClient(bootstrap_servers=cluster[0].bootstrap_servers)

    async def work(old: BatchProducer, new: BatchProducer) -> None:
        await old.fence(topic, {0: (own_id, RECORD)})

        def known() -> bool:
            listed = client.list_transactions().values()
            return own_id in {found.transactional_id for broker in listed for found in broker}

        assert await asyncio.to_thread(known)
        while await asyncio.to_thread(known):
            await old.deliver([(topic, 0, [RECORD])])  # writes do not renew the id
        await new.fence(topic, {0: (own_id, RECORD)})
        await old.deliver([(topic, 0, [RECORD])])

    try:
        with_owners(settings, work)
    finally:
        client.close()


def test_an_owner_that_renews_its_ids_is_fenced_however_long_it_was_the_owner(
    cluster: list[KafkaBroker],
) -> None:
    """Ids that are renewed outlive both expirations, and writes go on in between."""
    settings, topic, own_id = changelog_on(cluster, 2)
    client = KafkaAdminClient(bootstrap_servers=cluster[0].bootstrap_servers)

    async def work(old: BatchProducer, new: BatchProducer) -> None:
        bystander = transactional_id(settings, 1)
        await old.fence(topic, {0: (own_id, RECORD), 1: (bystander, RECORD)})
        first = old.epoch(topic, 0)

        def known() -> set[str]:
            listed = client.list_transactions().values()
            return {found.transactional_id for broker in listed for found in broker}

        assert bystander in await asyncio.to_thread(known)
        while bystander in await asyncio.to_thread(known):  # the coordinator forgets what is not renewed
            await old.renew(topic, 0)
            await old.deliver([(topic, 0, [RECORD])])
        assert old.epoch(topic, 0) == first
        await new.fence(topic, {0: (own_id, RECORD)})
        assert new.epoch(topic, 0) == first + 1
        with pytest.raises(FencedError):
            await old.deliver([(topic, 0, [RECORD])])
        with pytest.raises(FencedError):
            await old.renew(topic, 0)

    try:
        with_owners(settings, work)
    finally:
        client.close()


def test_a_partition_that_was_lost_does_not_keep_others_from_being_renewed(
    cluster: list[KafkaBroker],
) -> None:
    """As after a rebalance: the producer still knows its former partition, which has another owner."""
    settings, topic, _ = changelog_on(cluster, 2)
    ids = [transactional_id(settings, number) for number in range(2)]

    async def work(old: BatchProducer, new: BatchProducer) -> None:
        await old.fence(topic, {number: (own_id, RECORD) for number, own_id in enumerate(ids)})
        await new.fence(topic, {1: (ids[1], RECORD)})
        await old.renew(topic, 0)
        await old.deliver([(topic, 0, [RECORD])])
        await new.renew(topic, 1)
        await new.renew(topic, 0)  # never its own: nothing to renew
        await new.deliver([(topic, 1, [RECORD])])

    with_owners(settings, work)


# --- a broker fails; the last test, for it ends two of them -----------------------------------------------


def test_acknowledged_records_survive_a_broker_and_two_stop_all_writes(cluster: list[KafkaBroker]) -> None:
    settings = settings_on(cluster, partitions=6)
    admin.create_topics(settings)
    topic = settings.topics.alerts

    async def send(value: bytes, timeout_seconds: float) -> None:
        producer = BatchProducer(aiokafka_config(settings.kafka), 2.0, timeout_seconds)
        await producer.start([topic])
        try:
            await producer.deliver((topic, number, [ProducerRecord(b"k", value)]) for number in range(6))
        finally:
            await producer.stop()

    asyncio.run(send(b"before", 60.0))
    cluster[2].kill()
    asyncio.run(send(b"after", 60.0))
    found: set[tuple[int, bytes]] = set()
    reader = KafkaConsumer(**client_config(settings.kafka), auto_offset_reset="earliest")
    try:
        reader.assign([TopicPartition(topic, number) for number in range(6)])

        def everything() -> bool:
            for batch in reader.poll(timeout_ms=100).values():
                found.update((record.partition, record.value) for record in batch)
            return found == {(number, value) for number in range(6) for value in (b"before", b"after")}

        wait_until(everything, "acknowledged records are gone")
    finally:
        reader.close()
    cluster[1].kill()
    with pytest.raises(BrokerError, match="not delivered"):
        asyncio.run(send(b"one replica", 1.0))
