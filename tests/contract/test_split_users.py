"""Two producers with different partitioners split users: workers count the records, ``check`` finds the users."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import confluent_kafka
import pytest

from stream.cli.commands.check import Finding, findings
from stream.kafka import admin
from stream.kafka.partitioner import partition_of
from support.helpers import settings_for
from support.oracle import Event
from support.streams import Position, Sent, until
from support.traffic import START, sent

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from stream.kafka.local.base import Broker
    from stream.settings import Partitioner, Settings
    from support.streams import Stream

#: librdkafka's names: its default, and that of Kafka's Java clients.
CRC32, MURMUR2 = "consistent_random", "murmur2_random"


def produce(settings: Settings, records: Iterable[Sent], partitioner: str) -> dict[Position, Sent]:
    """Produce with librdkafka; returns where the records lie."""
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": settings.kafka.bootstrap_servers, "partitioner": partitioner}
    )
    places: dict[Position, Sent] = {}

    def delivered(record: Sent, error: Any, message: Any) -> None:
        assert error is None, error
        places[message.partition(), message.offset()] = record

    for record in records:
        producer.produce(
            settings.topics.transactions,
            record.value,
            record.key,
            headers=list(record.headers),
            on_delivery=lambda error, message, record=record: delivered(record, error, message),
        )
    assert producer.flush(60) == 0
    return places


def transactions(prefix: str, users: Iterable[str]) -> list[Sent]:
    return [
        sent(user, Event(f"{prefix}-{at}", START + at * 60_000, 1_250, None)) for at, user in enumerate(users)
    ]


USERS = ["ana", "bjørn", "李四", *(f"user-{number}" for number in range(40))]


# --- a worker ------------------------------------------------------------------------------------------


def test_a_worker_counts_the_records_of_the_other_partitioner(shared: Stream) -> None:
    [worker] = shared.workers
    before = worker.metric("riskstream_misplaced_records_total")
    assert "RISKSTREAM_TOPICS__PARTITIONER" not in worker.log
    users = [f"split-{user}" for user in USERS]
    right = produce(shared.settings, transactions("by-murmur2", users), MURMUR2)
    shared.sent |= right
    shared.wait_answered(right)
    assert worker.metric("riskstream_misplaced_records_total") == before
    wrong = produce(shared.settings, transactions("by-crc32", users), CRC32)
    shared.sent |= wrong
    count = shared.settings.topics.partitions
    expected = sum(
        partition != partition_of(record.key or b"", count, "murmur2")
        for (partition, _), record in wrong.items()
    )
    assert expected > len(USERS) / 2
    shared.wait_answered(wrong)
    until(
        lambda: worker.metric("riskstream_misplaced_records_total") == before + expected,
        "the misplaced records are not counted",
    )
    assert worker.log.count("users may be split, 'riskstream check' shows") == 1


# --- check ---------------------------------------------------------------------------------------------


def looked(settings: Settings) -> list[Finding]:
    return [found for found in findings(settings) if found.name == "partitioner"]


@pytest.fixture
def own(broker: Broker, tmp_path: Path) -> Settings:
    settings = settings_for(broker, topics={"partitions": 3}, state_dir=tmp_path, bundle=tmp_path)
    admin.create_topics(settings)
    return settings


def with_partitioner(settings: Settings, partitioner: Partitioner) -> Settings:
    return settings.model_copy(
        update={"topics": settings.topics.model_copy(update={"partitioner": partitioner})}
    )


def test_check_tells_which_partitioner_producers_use(own: Settings) -> None:
    assert [found.state for found in looked(own)] == ["note"]
    places = produce(own, transactions("one", USERS), CRC32)
    assert {partition_of(record.key or b"", 3, "crc32") == at for (at, _), record in places.items()} == {True}
    [found] = looked(with_partitioner(own, "crc32"))
    assert (found.state, f"{len(USERS)} users, all where crc32" in found.text) == ("ok", True)
    verdict, *partitions = looked(own)
    assert (verdict.state, verdict.exit_code) == ("FAIL", 2)
    assert "set RISKSTREAM_TOPICS__PARTITIONER=crc32" in verdict.text
    for number, found in enumerate(partitions):
        keys = {record.key for (at, _), record in places.items() if at == number}
        by_murmur2 = sum(partition_of(cast("bytes", key), 3, "murmur2") == number for key in keys)
        assert f"partition {number}: of {len(keys)} keys, {by_murmur2} belong here by murmur2" in found.text
        assert f"and {len(keys)} by crc32" in found.text
    assert len(partitions) == 3
    [found] = looked(with_partitioner(own, "any"))
    assert (found.state, "each on one partition" in found.text) == ("ok", True)


def test_check_finds_split_users_however_partitions_are_chosen(own: Settings) -> None:
    for at, partitioner in enumerate((MURMUR2, CRC32)):
        produce(own, transactions(f"from-{at}", USERS), partitioner)
    apart = [
        user
        for user in USERS
        if partition_of(user.encode(), 3, "murmur2") != partition_of(user.encode(), 3, "crc32")
    ]
    for partitioner in ("murmur2", "crc32", "any"):
        verdict, *_ = looked(with_partitioner(own, partitioner))
        assert (verdict.state, verdict.exit_code) == ("FAIL", 4)
        assert f"{len(USERS)} users, and {len(apart)} of them are split" in verdict.text
        assert "partitioner=murmur2_random" in verdict.text


def test_check_notices_two_partitioners_before_a_user_meets_both(own: Settings) -> None:
    produce(own, transactions("old", USERS[::2]), MURMUR2)
    produce(own, transactions("new", USERS[1::2]), CRC32)
    verdict, *_ = looked(own)
    assert (verdict.state, verdict.exit_code) == ("FAIL", 4)
    assert "users of both kinds of producers are split" in verdict.text


def test_check_names_another_way_to_choose_partitions(own: Settings) -> None:
    """As Kafka's clients in Go do by default, which know neither hash."""
    produce(own, transactions("fnv", USERS), "fnv1a_random")
    verdict, *_ = looked(own)
    assert (verdict.state, verdict.exit_code) == ("FAIL", 4)
    assert "set RISKSTREAM_TOPICS__PARTITIONER=any" in verdict.text
    [found] = looked(with_partitioner(own, "any"))
    assert found.state == "ok"


def test_records_without_a_key_say_nothing(own: Settings) -> None:
    """librdkafka's default puts an empty key on any partition, as if there was none."""
    produce(own, [Sent(b"", b"{}")] * 20 + [Sent(None, b"{}")] * 20, CRC32)
    assert [found.state for found in looked(own)] == ["note"]
