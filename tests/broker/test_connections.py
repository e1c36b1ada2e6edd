"""A broker that cannot be used is one readable line; TLS and passwords."""

from __future__ import annotations

import gc
import socket
import subprocess
import threading
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from stream.errors import BrokerError
from stream.kafka import admin
from stream.kafka.local.apache import KafkaBroker
from stream.kafka.local.embedded import EmbeddedBroker
from stream.settings import KafkaSettings, Settings
from support.broker_records import consume, produce
from support.helpers import PATIENCE_SECONDS, settings_for, wait_until, wait_until_ready

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stream.kafka.local.base import Broker


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
        wait_until_ready(settings, 0.2)
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
        waiting = threading.Thread(target=wait_until_ready, args=(settings, PATIENCE_SECONDS))
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
        wait_until_ready(Settings(kafka=wrong), PATIENCE_SECONDS)
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
