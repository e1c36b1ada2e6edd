"""The contract of a broker and of the topics on it, the same for both kinds."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from helpers import PATIENCE_SECONDS, is_running, settings_for, wait_until
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

from stream.errors import BrokerError, TopicMismatchError
from stream.kafka import admin
from stream.kafka.clients import client_config
from stream.kafka.local.apache import KafkaBroker, missing_tools
from stream.kafka.local.embedded import EmbeddedBroker
from stream.kafka.topics import changelog_topic, topic_specs
from stream.settings import KafkaSettings, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stream.kafka.local.base import Broker

KINDS: dict[str, type[EmbeddedBroker | KafkaBroker]] = {"embedded": EmbeddedBroker, "kafka": KafkaBroker}
ConsumerRecord = tuple[int, bytes | None, bytes | None, list[tuple[str, bytes]]]


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def own_broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """A started broker of this test's own, which it may stop and kill."""
    if request.param == "kafka":
        request.getfixturevalue("kafka_tools")
    with KINDS[request.param]() as broker:
        yield broker


def produce(settings: Settings, topic: str, records: list[tuple[bytes | None, bytes | None]]) -> list[int]:
    producer = KafkaProducer(**client_config(settings.kafka), acks="all")
    try:
        sent = [
            producer.send(topic, key=key, value=value, headers=[("n", str(at).encode()), ("empty", b"")])
            for at, (key, value) in enumerate(records)
        ]
        return [future.get(timeout=PATIENCE_SECONDS).partition for future in sent]
    finally:
        producer.close()


def consume(settings: Settings, topic: str, count: int) -> list[ConsumerRecord]:
    consumer = KafkaConsumer(
        **client_config(settings.kafka), enable_auto_commit=False, auto_offset_reset="earliest"
    )
    try:
        consumer.assign([TopicPartition(topic, at) for at in sorted(consumer.partitions_for_topic(topic))])
        found: list[ConsumerRecord] = []
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(found) < count and time.monotonic() < deadline:
            for batch in consumer.poll(timeout_ms=200).values():
                found += [(record.partition, record.key, record.value, record.headers) for record in batch]
        return found
    finally:
        consumer.close()


# --- the process ---------------------------------------------------------------------------------------


def test_it_answers_once_start_returned(broker: Broker) -> None:
    assert broker.alive
    assert broker.bootstrap_servers == f"127.0.0.1:{broker.port}"
    client = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    try:
        (node,) = client.describe_cluster()["brokers"]
    finally:
        client.close()
    assert (node["host"], node["port"]) == ("127.0.0.1", broker.port)


def test_start_of_a_running_broker_changes_nothing(broker: Broker) -> None:
    pid = broker.pid
    broker.start()
    assert broker.pid == pid


def test_it_listens_on_the_loopback_address_only(broker: Broker) -> None:
    import psutil

    listening = [
        c for c in psutil.Process(broker.pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN
    ]
    assert broker.port in {connection.laddr.port for connection in listening}
    assert {connection.laddr.ip.removeprefix("::ffff:") for connection in listening} == {"127.0.0.1"}


def test_ctrl_c_in_the_terminal_does_not_reach_it(broker: Broker) -> None:
    assert os.getsid(broker.pid) == os.getpgid(broker.pid) == broker.pid != os.getsid(0)


def test_stop_leaves_no_process_and_may_come_twice(own_broker: Broker) -> None:
    pid = own_broker.pid
    own_broker.stop()
    own_broker.stop()
    assert not is_running(pid)
    assert not own_broker.alive
    with pytest.raises(BrokerError, match="not running"):
        _ = own_broker.pid


def test_kill_leaves_no_process_and_start_takes_the_same_port(own_broker: Broker) -> None:
    pid, address = own_broker.pid, own_broker.bootstrap_servers
    own_broker.kill()
    own_broker.kill()
    assert not is_running(pid)
    own_broker.start()
    assert own_broker.bootstrap_servers == address
    assert own_broker.pid != pid
    admin.probe(settings_for(own_broker).kafka, PATIENCE_SECONDS)


@pytest.mark.parametrize("kind", ["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def test_it_dies_with_the_process_that_started_it(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if kind == "kafka":
        request.getfixturevalue("kafka_tools")
    name, module = KINDS[kind].__name__, KINDS[kind].__module__
    program = (
        f"from {module} import {name} as Broker\n"
        "import signal\n"
        "broker = Broker()\n"
        "broker.start()\n"
        "print(broker.pid, flush=True)\n"
        "signal.pause()\n"
    )
    # Nobody is left to remove the temporary folder.
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
        parent.wait()
    wait_until(lambda: not is_running(pid), "the broker outlives its parent")


@pytest.mark.parametrize("kind", ["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_stop(
    kind: str, sent: signal.Signals, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "kafka":
        request.getfixturevalue("kafka_tools")
    options = ["--data-dir", str(tmp_path / "data")] if kind == "kafka" else []
    command = [sys.executable, "-c", "from stream.cli import main; main()", "broker", "start"]
    with subprocess.Popen(
        [*command, "--kind", kind, "--port", "0", *options], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        word, address = process.stdout.readline().split()
        assert word == "ready:"
        admin.probe(KafkaSettings(bootstrap_servers=address), PATIENCE_SECONDS)
        process.send_signal(sent)
        assert process.wait(PATIENCE_SECONDS) == 0
    with pytest.raises(BrokerError):
        admin.probe(KafkaSettings(bootstrap_servers=address), 0.2)


@pytest.mark.parametrize("kind", ["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def test_a_taken_port_is_one_readable_line(kind: str, request: pytest.FixtureRequest) -> None:
    if kind == "kafka":
        request.getfixturevalue("kafka_tools")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(BrokerError, match=f"port {port} of 127.0.0.1 is in use"):
            KINDS[kind](port=port).start()


@pytest.mark.kafka
def test_a_broker_that_dies_while_starting_says_why(kafka_tools: None) -> None:
    broker = KafkaBroker(extra_config={"num.io.threads": "none"})
    with pytest.raises(BrokerError, match=r"num\.io\.threads") as caught:
        broker.start()
    assert "\n" not in str(caught.value)
    assert not broker.alive


def test_kafka_without_java_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(BrokerError, match="install Java 17 or newer"):
        KafkaBroker().start()
    missing = missing_tools()
    assert missing is not None
    assert "Java 17" in missing


@pytest.mark.kafka
def test_kafka_without_maven_says_what_to_install(
    kafka_tools: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    java = shutil.which("java")
    assert java is not None
    (tmp_path / "java").symlink_to(java)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("RISKSTREAM_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(BrokerError, match="install Maven"):
        KafkaBroker().start()


@pytest.mark.kafka
@pytest.mark.usefixtures("kafka_broker")
def test_kafka_starts_without_network_once_its_jars_are_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without Maven on the path there is no way to fetch anything."""
    java = shutil.which("java")
    assert java is not None
    (tmp_path / "java").symlink_to(java)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with KafkaBroker() as broker:
        assert broker.alive


@pytest.mark.kafka
@pytest.mark.parametrize("end", ["kill", "stop"])
def test_kafka_keeps_its_data_over_a_restart(kafka_tools: None, tmp_path: Path, end: str) -> None:
    folder = tmp_path / "däta dir"  # properties files are not UTF-8
    with KafkaBroker(data_dir=folder) as broker:
        settings = settings_for(broker)
        admin.create_topics(settings)
        topic = settings.topics.transactions
        ids = admin.topic_ids(settings, [topic])
        produce(settings, topic, [(b"u", b"one"), (b"u", b"two")])
        getattr(broker, end)()
        broker.start()
        assert admin.topic_ids(settings, [topic]) == ids
        assert [value for _, _, value, _ in consume(settings, topic, 2)] == [b"one", b"two"]
        port = broker.port
    with KafkaBroker(data_dir=folder, port=port):
        assert [value for _, _, value, _ in consume(settings, topic, 2)] == [b"one", b"two"]
    assert folder.is_dir()


@pytest.mark.kafka
def test_kafka_removes_a_temporary_folder_at_stop_but_not_at_kill(kafka_tools: None) -> None:
    with KafkaBroker() as broker:
        settings = settings_for(broker)
        admin.create_topics(settings)
        broker.kill()
        broker.start()
        assert admin.check_topics(settings) == []
        broker.stop()
        broker.start()
        assert set(admin.check_topics(settings)) == {
            f"topic {s.name} does not exist" for s in topic_specs(settings)
        }


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
    assert set(admin.check_each_topic(settings)) == set(names)
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


# --- a broker that cannot be used ----------------------------------------------------------------------


def test_an_unreachable_broker_is_one_readable_line(capfd: pytest.CaptureFixture[str]) -> None:
    from stream.kafka.local.base import free_port

    address = f"127.0.0.1:{free_port()}"
    settings = Settings(kafka={"bootstrap_servers": address, "request_timeout_seconds": 1})
    for action in (admin.create_topics, admin.check_topics, admin.require_topics):
        with pytest.raises(BrokerError) as caught:
            action(settings)
        text = str(caught.value)
        assert address in text
        assert "ECONNREFUSED" in text
        assert "RISKSTREAM_KAFKA__BOOTSTRAP_SERVERS" in text
        assert "\n" not in text
    with pytest.raises(BrokerError, match=address):
        admin.wait_until_ready(settings, 0.2)
    assert capfd.readouterr().err == ""


def test_a_failed_connection_leaves_no_thread_and_no_socket(embedded_broker: Broker) -> None:
    import psutil

    from stream.kafka.local.base import free_port

    kafka = KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}")
    me = psutil.Process()
    with pytest.raises(BrokerError):
        admin.probe(kafka, 0.2)
    threads, files = threading.active_count(), me.num_fds()
    for _ in range(3):
        with pytest.raises(BrokerError):
            admin.probe(kafka, 0.2)
    wait_until(lambda: threading.active_count() <= threads, "a thread is left")
    wait_until(lambda: gc.collect() < 0 or me.num_fds() <= files, "a socket is left")


def test_something_else_at_the_address_is_one_readable_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(BrokerError, match=address):
            admin.probe(KafkaSettings(bootstrap_servers=address), 0.5)


@pytest.mark.parametrize("address", ["127.0.0.1:none", "no-such-host.invalid:9092", ",", "127.0.0.1:99999"])
def test_an_address_that_means_nothing_is_one_readable_line(address: str) -> None:
    with pytest.raises(BrokerError) as caught:
        admin.probe(KafkaSettings(bootstrap_servers=address), 0.5)
    assert address in str(caught.value)
    assert "\n" not in str(caught.value)


def test_waiting_ends_when_the_broker_comes() -> None:
    from stream.kafka.local.base import free_port

    with EmbeddedBroker(port=free_port()) as broker:
        broker.kill()
        settings = settings_for(broker)
        waiting = threading.Thread(target=admin.wait_until_ready, args=(settings, PATIENCE_SECONDS))
        waiting.start()
        broker.start()
        waiting.join(PATIENCE_SECONDS)
        assert not waiting.is_alive()


# --- TLS and passwords ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secured(kafka_tools: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaSettings]:
    """Apache Kafka with TLS and passwords; the settings of a client that may come in."""
    folder = tmp_path_factory.mktemp("tls")
    store, certificate = folder / "broker.p12", folder / "ca.pem"
    password = uuid.uuid4().hex
    common = ["keytool", "-keystore", str(store), "-storepass", password, "-alias", "broker"]
    subprocess.run(
        [
            *common,
            "-genkeypair",
            "-keyalg",
            "EC",
            "-dname",
            "CN=broker",
            "-ext",
            "SAN=ip:127.0.0.1",
            "-ext",
            "BC=ca:true",
        ],
        check=True,
        capture_output=True,
    )
    subprocess.run(
        [*common, "-exportcert", "-rfc", "-file", str(certificate)], check=True, capture_output=True
    )
    client = KafkaSettings(
        security_protocol="SASL_SSL", sasl_username="worker", sasl_password=password, ssl_ca_file=certificate
    )
    module = "org.apache.kafka.common.security.plain.PlainLoginModule"
    config = {
        "listener.security.protocol.map": "CLIENT:SASL_SSL,CONTROLLER:PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "listener.name.client.plain.sasl.jaas.config": f'{module} required username="worker" '
        f'password="{password}" user_worker="{password}";',
        "ssl.keystore.type": "PKCS12",
        "ssl.keystore.location": str(store),
        "ssl.keystore.password": password,
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(certificate),
    }
    with KafkaBroker(extra_config=config, client=client) as broker:
        yield client.model_copy(update={"bootstrap_servers": broker.bootstrap_servers})


@pytest.mark.kafka
def test_tls_with_the_right_password_works(secured: KafkaSettings) -> None:
    settings = Settings(kafka=secured, app_id="secured")
    admin.create_topics(settings)
    admin.require_topics(settings)
    produce(settings, "transactions", [(b"u", b"v")])
    assert [value for _, _, value, _ in consume(settings, "transactions", 1)] == [b"v"]


@pytest.mark.kafka
def test_a_wrong_password_is_one_readable_line_that_does_not_show_it(secured: KafkaSettings) -> None:
    wrong = KafkaSettings(**{**secured.model_dump(), "sasl_password": "not-the-password"})
    with pytest.raises(BrokerError, match="rejects user 'worker'") as caught:
        admin.wait_until_ready(Settings(kafka=wrong), PATIENCE_SECONDS)
    assert "not-the-password" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ssl_ca_file": None}, "certificate verify failed"),
        ({"bootstrap_servers": "localhost"}, "certificate is not valid for 'localhost'"),
    ],
)
def test_a_certificate_that_does_not_fit_is_refused(
    secured: KafkaSettings, change: dict[str, Any], reason: str
) -> None:
    if "bootstrap_servers" in change:
        change = {"bootstrap_servers": secured.bootstrap_servers.replace("127.0.0.1", "localhost")}
    with pytest.raises(BrokerError, match=reason) as caught:
        admin.probe(secured.model_copy(update=change), 2)
    assert "\n" not in str(caught.value)
