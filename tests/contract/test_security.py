"""TLS and passwords against Apache Kafka: one broker, a listener for each way in, real workers."""

from __future__ import annotations

import json
import shutil
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from kafka import KafkaAdminClient
from kafka.admin import UserScramCredentialUpsertion

from stream.kafka.local.apache import KafkaBroker
from support.certificates import Authority
from support.required import without
from support.streams import Sent, Stream, readable_line
from support.token_endpoint import TokenEndpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.kafka

MECHANISMS = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
MODULES = "org.apache.kafka.common.security"


class Secured(NamedTuple):
    """A broker and the settings of clients that may come in, by listener."""

    broker: KafkaBroker
    password: dict[str, Any]
    oauth: dict[str, Any]
    tokens: TokenEndpoint
    mutual: dict[str, Any]
    elsewhere: dict[str, Any]


@pytest.fixture(scope="module")
def secured(kafka_tools: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    if shutil.which("openssl") is None:
        without("needs the openssl command")
    folder = tmp_path_factory.mktemp("certificates")
    authority = Authority(folder / "ours")
    here = authority.keystore("broker", "IP:127.0.0.1")
    elsewhere = authority.keystore("other-broker", "DNS:kafka.example.org")
    certificate, key = authority.issue("worker")
    (folder / "key-password").write_text("the key's own password\n", "ascii")
    encrypted = authority.encrypt(key, "the key's own password")
    secret = uuid.uuid4().hex
    word = folder / "password"
    word.write_text(secret + "\n", "ascii")
    config = {
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(authority.certificate),
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.password.sasl.enabled.mechanisms": ",".join(MECHANISMS),
        "listener.name.password.plain.sasl.jaas.config": f"{MODULES}.plain.PlainLoginModule required "
        f'user_worker="{secret}";',
    }
    oauth_module = (
        f"{MODULES}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub=broker;"
    )
    config["listener.name.oauth.sasl.enabled.mechanisms"] = "OAUTHBEARER"
    config["listener.name.oauth.oauthbearer.sasl.jaas.config"] = oauth_module
    for mechanism in ("scram-sha-256", "scram-sha-512"):
        module = f"{MODULES}.scram.ScramLoginModule required;"
        config[f"listener.name.password.{mechanism}.sasl.jaas.config"] = module
    for name, store in (("password", here), ("oauth", here), ("mutual", here), ("elsewhere", elsewhere)):
        config[f"listener.name.{name}.ssl.keystore.type"] = "PEM"
        config[f"listener.name.{name}.ssl.keystore.location"] = str(store)
    listeners = {"PASSWORD": "SASL_SSL", "OAUTH": "SASL_SSL", "MUTUAL": "SSL", "ELSEWHERE": "SSL"}
    with (
        TokenEndpoint("worker", secret, "kafka risk") as tokens,
        KafkaBroker(listeners=listeners, extra_config=config) as broker,
    ):
        client = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
        try:
            for mechanism in MECHANISMS[1:]:
                answer = client.alter_user_scram_credentials(
                    [UserScramCredentialUpsertion("worker", mechanism, secret)]
                )
                assert answer == {"worker": None}
        finally:
            client.close()
        tls = {"security_protocol": "SSL", "ssl_ca_file": authority.certificate}
        yield Secured(
            broker,
            {
                **tls,
                "bootstrap_servers": broker.address("PASSWORD"),
                "security_protocol": "SASL_SSL",
                "sasl_username": "worker",
                "sasl_password_file": word,
            },
            {
                **tls,
                "bootstrap_servers": broker.address("OAUTH"),
                "security_protocol": "SASL_SSL",
                "sasl_mechanism": "OAUTHBEARER",
                "oauth_token_url": tokens.url,
                "oauth_client_id": "worker",
                "oauth_client_secret_file": word,
                "oauth_scope": "kafka risk",
            },
            tokens,
            {
                **tls,
                "bootstrap_servers": broker.address("MUTUAL"),
                "ssl_cert_file": certificate,
                "ssl_key_file": encrypted,
                "ssl_key_password_file": folder / "key-password",
            },
            {**tls, "bootstrap_servers": broker.address("ELSEWHERE")},
        )


@pytest.fixture
def make(secured: Secured, bundle_folder: Path, tmp_path: Path) -> Iterator[Callable[..., Stream]]:
    """Make a deployment that reaches the broker by these settings; its topics come in by the plain way."""
    made: list[Stream] = []

    def call(kafka: dict[str, Any]) -> Stream:
        made.append(Stream(secured.broker, tmp_path, bundle_folder))
        stream = made[-1]
        sections = stream.settings.kafka.model_copy(update={"request_timeout_seconds": 3.0, **kafka})
        stream.settings = stream.settings.model_copy(
            update={"kafka": type(sections)(**sections.model_dump())}
        )
        return stream

    yield call
    for stream in made:
        stream.close()


def transactions(count: int) -> list[Sent]:
    def body(at: int) -> dict[str, Any]:
        return {
            "transaction_id": f"t{at}",
            "user_id": f"user-{at % 5}",
            "event_time": 1_750_000_000_000 + at,
            "amount": "1.00",
            "currency": "EUR",
            "channel": "web",
            "transaction_type": "purchase",
        }

    return [Sent(f"user-{at % 5}".encode(), json.dumps(body(at)).encode()) for at in range(count)]


@pytest.mark.parametrize("way", [*MECHANISMS, "OAUTHBEARER", "mutual TLS"])
def test_a_worker_does_its_work(way: str, secured: Secured, make: Callable[..., Stream]) -> None:
    ways = {"mutual TLS": secured.mutual, "OAUTHBEARER": secured.oauth}
    kafka = ways.get(way, {**secured.password, "sasl_mechanism": way})
    secured.tokens.seconds = 2.0  # so that tokens are replaced while the worker runs
    stream = make(kafka)
    worker = stream.start()
    stream.produce(transactions(200))
    stream.wait_answered()
    assert len(stream.read("decisions")) == 200
    assert worker.stop() == 0
    # State that was lost comes back over the same connection.
    shutil.rmtree(stream.settings.state_dir)
    again = stream.start()
    stream.produce(transactions(1))  # a duplicate, if the history is there
    stream.wait_answered()
    assert [found.json["outcome"] for found in stream.read("decisions")][200:] == ["duplicate"]
    assert again.stop() == 0
    assert "Traceback" not in worker.log + again.log


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("PLAIN", "user 'worker' with mechanism PLAIN"),
        ("SCRAM-SHA-256", "user 'worker' with mechanism SCRAM-SHA-256"),
        ("SCRAM-SHA-512", "user 'worker' with mechanism SCRAM-SHA-512"),
        ("another host's certificate", "certificate is not valid for '127.0.0.1'"),
        ("an unknown authority", "certificate verify failed"),
        ("no client certificate", "bad certificate"),
        ("a client certificate of another authority", "certificate unknown"),
        ("a wrong password of the key", "RISKSTREAM_KAFKA__SSL_KEY_PASSWORD_FILE"),
        ("no password of the key", "RISKSTREAM_KAFKA__SSL_KEY_PASSWORD_FILE"),
        ("a wrong client secret", "refuses client 'worker' with HTTP status 401"),
        ("a token that has expired", "client 'worker' with mechanism OAUTHBEARER"),
        ("no token endpoint", "gives no token"),
    ],
)
def test_what_does_not_fit_is_one_readable_line(
    what: str, says: str, secured: Secured, make: Callable[..., Stream], tmp_path: Path
) -> None:
    wrong = "a-wrong-password"
    if what in MECHANISMS:
        word = tmp_path / "password"
        word.write_text(wrong, "ascii")
        # A refusal ends the wait; a machine with too much to do may take seconds to shake hands.
        kafka = {
            **secured.password,
            "sasl_mechanism": what,
            "sasl_password_file": word,
            "request_timeout_seconds": 20.0,
        }
    elif what == "another host's certificate":
        kafka = secured.elsewhere
    elif what == "an unknown authority":
        kafka = {**secured.password, "ssl_ca_file": Authority(tmp_path / "theirs").certificate}
    elif what in {"a wrong client secret", "a token that has expired", "no token endpoint"}:
        word = tmp_path / "secret"
        word.write_text(wrong, "ascii")
        kafka = {**secured.oauth, "request_timeout_seconds": 20.0} | {
            "a wrong client secret": {"oauth_client_secret_file": word},
            "a token that has expired": {"oauth_token_url": secured.tokens.url + "/expired"},
            "no token endpoint": {"oauth_token_url": "http://127.0.0.1:9/token"},
        }[what]
    elif what == "a wrong password of the key":
        word = tmp_path / "key-password"
        word.write_text(wrong, "ascii")
        kafka = {**secured.mutual, "ssl_key_password_file": word}
    elif what == "no password of the key":
        kafka = {**secured.mutual, "ssl_key_password_file": None}
    elif what == "no client certificate":
        kafka = {**secured.mutual, "ssl_cert_file": None, "ssl_key_file": None, "ssl_key_password_file": None}
    else:
        certificate, key = Authority(tmp_path / "theirs").issue("worker")
        kafka = {**secured.mutual, "ssl_cert_file": certificate, "ssl_key_file": key}
    worker = make(kafka).start(ready=False)
    assert worker.wait_end() == 4, worker.log
    line = readable_line(worker)
    assert says in line
    assert len(line) < 500
    assert wrong not in worker.log
