"""A broker's process: started, stopped, killed, and gone with the process that started it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from kafka import KafkaAdminClient

from stream.errors import BrokerError
from stream.kafka import admin
from stream.kafka.local.apache import KafkaBroker, missing_tools
from stream.kafka.topics import topic_specs
from stream.settings import KafkaSettings
from support.broker_records import consume, produce
from support.helpers import PATIENCE_SECONDS, is_running, settings_for, wait_until
from support.shared_brokers import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stream.kafka.local.base import Broker


@pytest.fixture(scope="module", params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def started_broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    if request.param == "kafka":
        request.getfixturevalue("kafka_tools")
    with KINDS[request.param]() as broker:
        yield broker


@pytest.fixture
def own_broker(started_broker: Broker) -> Broker:
    """A running broker of this module's own, which a test may stop and kill."""
    started_broker.start()
    return started_broker


def test_it_answers_once_start_returned(own_broker: Broker) -> None:
    assert own_broker.alive
    assert own_broker.bootstrap_servers == f"127.0.0.1:{own_broker.port}"
    client = KafkaAdminClient(bootstrap_servers=own_broker.bootstrap_servers)
    try:
        (node,) = client.describe_cluster()["brokers"]
    finally:
        client.close()
    assert (node["host"], node["port"]) == ("127.0.0.1", own_broker.port)


def test_start_of_a_running_broker_changes_nothing(own_broker: Broker) -> None:
    pid = own_broker.pid
    own_broker.start()
    assert own_broker.pid == pid


def test_it_listens_on_the_loopback_address_only(own_broker: Broker) -> None:
    import psutil

    listening = [
        c for c in psutil.Process(own_broker.pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN
    ]
    assert own_broker.port in {connection.laddr.port for connection in listening}
    assert {connection.laddr.ip.removeprefix("::ffff:") for connection in listening} == {"127.0.0.1"}


def test_ctrl_c_in_the_terminal_does_not_reach_it(own_broker: Broker) -> None:
    assert os.getsid(own_broker.pid) == os.getpgid(own_broker.pid) == own_broker.pid != os.getsid(0)


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


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("embedded", signal.SIGINT),
        ("embedded", signal.SIGTERM),
        pytest.param("kafka", signal.SIGTERM, marks=pytest.mark.kafka),
    ],
)
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
def test_kafka_keeps_its_data_over_a_restart(kafka_tools: None, tmp_path: Path) -> None:
    """After a crash in the same object, and after an orderly end in another one."""
    folder = tmp_path / "däta dir"  # properties files are not UTF-8
    with KafkaBroker(data_dir=folder) as broker:
        settings = settings_for(broker)
        admin.create_topics(settings)
        topic = settings.topics.transactions
        ids = admin.topic_ids(settings, [topic])
        produce(settings, topic, [(b"u", b"one"), (b"u", b"two")])
        broker.kill()
        broker.start()
        assert admin.topic_ids(settings, [topic]) == ids
        assert [value for _, _, value, _ in consume(settings, topic, 2)] == [b"one", b"two"]
        port = broker.port
    with KafkaBroker(data_dir=folder, port=port):
        assert [value for _, _, value, _ in consume(settings, topic, 2)] == [b"one", b"two"]
    assert folder.is_dir()


@pytest.mark.kafka
@pytest.mark.parametrize("started_broker", ["kafka"], indirect=True)
def test_kafka_removes_a_temporary_folder_at_stop_but_not_at_kill(
    own_broker: Broker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And needs no network once its jars are there: without Maven on the path there is no way to fetch anything."""
    settings = settings_for(own_broker)
    admin.create_topics(settings)
    own_broker.kill()
    own_broker.start()
    assert admin.check_topics(settings) == []
    java = shutil.which("java")
    assert java is not None
    (tmp_path / "java").symlink_to(java)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    own_broker.stop()
    own_broker.start()
    assert set(admin.check_topics(settings)) == {
        f"topic {s.name} does not exist" for s in topic_specs(settings)
    }
