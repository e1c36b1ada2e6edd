"""Records that used to end every worker that met them: each is decided, a dead letter, or named and skipped."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from click.testing import CliRunner
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from stream.cli.commands.skip import skip
from stream.errors import DataError
from stream.events.records import ConsumerRecord
from stream.kafka.local.apache import KafkaBroker
from support.raw_batches import batch_of, sealed, send_batch
from support.streams import Stream, readable_line, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from stream.kafka.local.base import Broker

pytestmark = pytest.mark.kafka

START_MS = 1_750_000_000_000
MIB = 1 << 20


def value_of(name: str, user: str = "user-1", **changes: Any) -> bytes:
    body = {
        "transaction_id": name,
        "user_id": user,
        "event_time": START_MS,
        "amount": "12.50",
        "currency": "EUR",
        "channel": "web",
        "transaction_type": "purchase",
    }
    return json.dumps(body | changes).encode()


def record(name: str, value: bytes | None = None, headers: Any = ()) -> ConsumerRecord:
    # Of now: the topic's retention deletes records with an old timestamp, as soon as the broker looks.
    now_ms = time.time_ns() // 1_000_000
    return ConsumerRecord(0, now_ms, b"user-1", value_of(name) if value is None else value, headers)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def call(stream: Stream, *arguments: str) -> Any:
        for name, value in stream.settings.child_environment().items():
            monkeypatch.setenv(name, value)
        return CliRunner().invoke(skip, arguments)

    return call


@pytest.fixture(scope="module")
def stream(
    kafka_broker: Broker, bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stream]:
    made = Stream(kafka_broker, tmp_path_factory.mktemp("poison"), bundle_folder)
    try:
        made.start()
        yield made
    finally:
        made.close()


def decided(stream: Stream) -> set[str]:
    return {found.json["transaction_id"] for found in stream.read("decisions")}


def wait_decided(stream: Stream, *wanted: str) -> None:
    def done() -> bool:
        assert stream.workers[-1].process.poll() is None, stream.workers[-1].log
        return set(wanted) <= decided(stream)

    until(done, f"not decided: {wanted}")


def test_a_timestamp_beyond_the_year_9999_is_decided(stream: Stream) -> None:
    servers, topic = stream.settings.kafka.bootstrap_servers, stream.settings.topics.transactions
    # Brokers of this version refuse such timestamps unless told otherwise; older ones take them.
    entry = ConfigEntry(
        "message.timestamp.after.max.ms", str(2**63 - 1), incremental_operation=AlterConfigOpType.SET
    )
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": servers})
    for future in admin.incremental_alter_configs([resource]).values():
        future.result(30)
    producer = Producer({"bootstrap.servers": servers})
    for value in (value_of("microseconds"), b"{"):
        producer.produce(topic, key=b"user-1", value=value, timestamp=START_MS * 1000)
    assert producer.flush(30) == 0
    wait_decided(stream, "microseconds")
    [decision] = [
        found.json for found in stream.read("decisions") if found.json["transaction_id"] == "microseconds"
    ]
    assert decision["scored_at"] == decision["event_time"]
    until(lambda: any(found.value == b"{" for found in stream.read("dead_letters")), "no dead letter")


def test_a_header_name_that_is_not_utf_8_is_decided(stream: Stream) -> None:
    servers, topic = stream.settings.kafka.bootstrap_servers, stream.settings.topics.transactions
    batch = batch_of(
        [record("odd header", headers=(("name", b"1"),)), record("beside it")._replace(offset=1)]
    )
    send_batch(servers, topic, 0, sealed(batch.replace(b"name", b"n\xff\xfee")))
    wait_decided(stream, "odd header", "beside it")
    bad = batch_of([record("", b"odd and bad", headers=(("name", b"1"),))])
    send_batch(servers, topic, 0, sealed(bad.replace(b"name", b"n\xff\xfee")))

    def letter() -> list[Any]:
        return [found for found in stream.read("dead_letters") if found.value == b"odd and bad"]

    until(letter, "no dead letter")
    assert letter()[0].header("n\\xff\\xfee") == "1"


def test_half_a_million_headers_are_decided_or_a_dead_letter(stream: Stream) -> None:
    servers, topic = stream.settings.kafka.bootstrap_servers, stream.settings.topics.transactions
    headers = (("", b""),) * 560_000
    for value in (value_of("many headers"), b"many headers and bad"):
        batch = batch_of([record("", value, headers)], 1)
        assert len(batch) < 4096
        send_batch(servers, topic, 1, batch)
    wait_decided(stream, "many headers")

    def letter() -> list[Any]:
        return [found for found in stream.read("dead_letters") if found.value == b"many headers and bad"]

    until(letter, "no dead letter")
    assert "the source topic has the whole record" in letter()[0].header("riskstream.errors.reason")


def test_a_decompression_bomb_is_dead_letters_within_the_bound(stream: Stream) -> None:
    servers, topic = stream.settings.kafka.bootstrap_servers, stream.settings.topics.transactions
    worker = stream.workers[-1]
    wait_decided(stream)
    process = psutil.Process(worker.process.pid)
    before = process.memory_info().rss
    bomb = [record("", bytes(160 * MIB))._replace(offset=at) for at in range(3)]
    batch = batch_of([*bomb, record("behind the bomb")._replace(offset=3)], 1)
    assert len(batch) < MIB
    send_batch(servers, topic, 2, batch)
    most = before

    def done() -> bool:
        nonlocal most
        most = max(most, process.memory_info().rss)
        return "behind the bomb" in decided(stream)

    until(done, "not decided: what lies behind the bomb")
    assert worker.process.poll() is None, worker.log
    assert (most - before) / MIB < 160
    letters = [found for found in stream.read("dead_letters") if (found.value or b"").startswith(bytes(1000))]
    assert len(letters) == 3
    assert all("bytes are more than" in letter.header("riskstream.errors.reason") for letter in letters)


def damage(broker_folder: Path, topic: str, partition: int, marker: bytes) -> None:
    """Change a byte in the log, as a failing disk does."""
    [log] = (broker_folder / f"{topic}-{partition}").glob("*.log")
    with log.open("r+b") as file:
        at = file.read().index(marker)
        file.seek(at)
        file.write(b"X")


def test_what_cannot_be_read_is_named_and_can_be_skipped(
    kafka_tools: None, bundle_folder: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    with KafkaBroker(data_dir=tmp_path / "broker") as broker:
        stream = Stream(broker, tmp_path, bundle_folder)
        servers, topic = broker.bootstrap_servers, stream.settings.topics.transactions
        try:
            first = send_batch(servers, topic, 0, batch_of([record("before")]))
            broken = send_batch(
                servers, topic, 0, batch_of([record("broken"), record("broken too")._replace(offset=1)])
            )
            send_batch(servers, topic, 0, batch_of([record("behind")]))
            assert (first, broken) == (0, 1)
            [log_folder] = {path.parent.parent for path in (tmp_path / "broker").rglob(f"{topic}-0/*.log")}
            damage(log_folder, topic, 0, b"broken too")
            for _ in range(2):  # a restart meets it again
                worker = stream.start(ready=False)
                assert worker.wait_end() == 4
                line = readable_line(worker)
                assert f"{topic} [0] cannot be read from offset 1 to 2: its checksum is wrong" in line
                assert f"'riskstream skip {topic}:0:1 --why REASON'" in line
            assert decided(stream) == {"before"}

            for arguments in (["no-topic:0:1"], [f"{topic}:9:1"], [f"{topic}:0:4"], [f"{topic}:0"]):
                refused = run(stream, *arguments, "--why", "testing")
                assert isinstance(refused.exception, DataError), refused.output
            assert run(stream, f"{topic}:0:1").exit_code != 0  # no reason is given
            made = run(stream, f"{topic}:0:1", "--why", "the disk is failing", "--by", "me")
            assert made.exit_code == 0, made.output
            assert f"{topic}:0:1  me: the disk is failing" in run(stream).stdout
            worker = stream.start()
            wait_decided(stream, "before", "behind")
            assert decided(stream) == {"before", "behind"}
            assert worker.metric("riskstream_skipped_records_total") == 2
            assert "skipped the offsets 1 to 2 on request" in worker.log
            assert worker.stop() == 0

            # A record that can be read is skipped alone; a request that is withdrawn has no effect.
            place = send_batch(servers, topic, 0, batch_of([record("one"), record("two")._replace(offset=1)]))
            for at in (place, place + 1):
                assert run(stream, f"{topic}:0:{at}", "--why", "testing").exit_code == 0
            assert run(stream, f"{topic}:0:{place + 1}", "--withdraw").exit_code == 0
            worker = stream.start()
            wait_decided(stream, "two")
            assert decided(stream) == {"before", "behind", "two"}
            assert worker.metric("riskstream_skipped_records_total") == 1
        finally:
            stream.close()
