"""The topics on a broker: create them, compare them with the settings, and read their ids."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import (
    AuthorizationError,
    IllegalSaslStateError,
    InvalidRequestError,
    KafkaError,
    KafkaTimeoutError,
    SaslAuthenticationFailedError,
    TopicAlreadyExistsError,
    UnknownError,
    UnknownTopicOrPartitionError,
    UnsupportedSaslMechanismError,
    UnsupportedVersionError,
    for_code,
)
from kafka.net.compat import KafkaNetClient

from stream.errors import BrokerError, TopicMismatchError
from stream.kafka.clients import client_config
from stream.kafka.durability import impossible_writes, weaknesses
from stream.kafka.topics import TopicSpec, topic_specs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from stream.settings import KafkaSettings, Settings

__all__ = [
    "TopicState",
    "administration",
    "broker_configs",
    "check_topics",
    "compression_types",
    "create_topics",
    "probe",
    "require_topics",
    "topic_ids",
    "topic_states",
]

logger = logging.getLogger(__name__)


_MISSING: Final = for_code(UnknownTopicOrPartitionError.errno)
_EXISTS: Final = for_code(TopicAlreadyExistsError.errno)
_NO_ERROR: Final = 0

#: Most problems of topics that an error names: it is one line, for a person.
_MAX_SHOWN: Final = 4

#: First and longest pause between two tries to connect; the defaults would wait up to 30 s.
_BACKOFF_MS: Final = (50, 1000)

#: The first slice of the time to connect; a slower handshake succeeds in a later slice.
_FIRST_SLICE_SECONDS: Final = 1.0

#: kafka-python's message about a refusal if the broker closes the connection together with the response: its
#: transport drops the bytes that it read along with the end.
_CLOSED: Final = "socket disconnected"

_REFUSALS: Final = (SaslAuthenticationFailedError, UnsupportedSaslMechanismError, IllegalSaslStateError)


def probe(kafka: KafkaSettings, timeout_seconds: float) -> None:
    """Return once the broker has answered a metadata request.

    Raises
    ------
    BrokerError
        The broker did not answer within ``timeout_seconds``, or refuses this client.
    """
    with administration(kafka, timeout_seconds) as admin:
        admin.describe_cluster()


def create_topics(settings: Settings) -> list[str]:
    """Create the topics that are missing and return their names; those that exist are left as they are.

    Raises
    ------
    BrokerError
        The broker cannot be reached, or refuses a topic.
    """
    with administration(settings.kafka, settings.kafka.request_timeout_seconds) as admin:
        specs = _specs(admin, settings)
        found = _describe(admin, specs)
        wanted = [spec for spec in specs.values() if found[spec.name]["error_code"] == _MISSING.errno]
        if not wanted:
            return []
        response = admin.create_topics(
            {
                spec.name: {
                    "num_partitions": spec.partitions,
                    "replication_factor": spec.replication_factor,
                    "configs": {**spec.config, **spec.durability},
                }
                for spec in wanted
            },
            raise_errors=False,
        )
        created = []
        for topic in response["topics"]:
            if topic["error_code"] == _NO_ERROR:
                created.append(topic["name"])
            elif topic["error_code"] != _EXISTS.errno:  # another process may have been first
                reason = topic["error_message"] or for_code(topic["error_code"]).description
                raise BrokerError(f"topic {topic['name']} cannot be created: {reason}")
        # The response only confirms the request; a client that connects now may not find the topic yet.
        admin.wait_for_topics(list(specs), timeout_ms=int(settings.kafka.request_timeout_seconds * 1000))
        return sorted(created)


class TopicState(NamedTuple):
    """A topic compared with the settings.

    Attributes
    ----------
    spec
        The shape that it should have on this cluster.
    problems
        How it differs from the settings. A configuration value that the broker does not report is no
        difference: the embedded broker reports only the values that a topic was created with.
    weaknesses
        Through what an existing topic would lose acknowledged records.
    """

    spec: TopicSpec
    problems: list[str]
    weaknesses: list[str]


def topic_states(settings: Settings) -> dict[str, TopicState]:
    """Return each topic that this deployment needs, by name, compared with the settings.

    Raises
    ------
    BrokerError
        The broker cannot be reached.
    """
    with administration(settings.kafka, settings.kafka.request_timeout_seconds) as admin:
        specs = _specs(admin, settings)
        found = _describe(admin, specs)
        configs = _configs(admin, found)
    topics = settings.topics
    states = {}
    for name, spec in specs.items():
        values = configs.get(name)
        problems = _differences(spec, topics.replication_factor, found[name], values or {})
        weak = [] if values is None else weaknesses(topics, spec, _replicas(found[name]), _values(values))
        states[name] = TopicState(spec, problems, weak)
    return states


def broker_configs(settings: Settings, name: str) -> dict[int, str]:
    """Return a value of each broker's configuration, by the broker's id.

    Empty if the brokers do not report it, or do not allow this user to read it (DescribeConfigs).

    Raises
    ------
    BrokerError
        The broker cannot be reached.
    """
    with administration(settings.kafka, settings.kafka.request_timeout_seconds) as admin:
        ids = _broker_ids(admin)
        resources = [ConfigResource(ConfigResourceType.BROKER, str(number)) for number in ids]
        try:
            described = admin.describe_configs(resources, config_filter="all").get("broker", {})
        except (AuthorizationError, UnsupportedVersionError, UnknownError, InvalidRequestError):
            return {}
    found = {number: _values(described.get(str(number), {})).get(name) for number in ids}
    return {number: value for number, value in found.items() if value is not None}


def compression_types(settings: Settings, names: Iterable[str]) -> dict[str, str]:
    """Return the ``compression.type`` of each existing topic; ``producer`` if the broker does not report it.

    Raises
    ------
    BrokerError
        The broker cannot be reached.
    """
    with administration(settings.kafka, settings.kafka.request_timeout_seconds) as admin:
        configs = _configs(admin, _describe(admin, names))
    return {
        name: values.get("compression.type", {}).get("value") or "producer"
        for name, values in configs.items()
    }


def check_topics(settings: Settings) -> list[str]:
    """Return one readable line for each difference between the topics and the settings.

    Raises
    ------
    BrokerError
        The broker cannot be reached.
    """
    return _problem_lines(topic_states(settings))


def _problem_lines(states: Mapping[str, TopicState]) -> list[str]:
    return [f"topic {name} {problem}" for name, state in states.items() for problem in state.problems]


def require_topics(settings: Settings) -> None:
    """Return if every topic agrees with the settings; log the topics that would lose acknowledged records.

    Raises
    ------
    TopicMismatchError
        A topic differs; the text has every difference and what to do.
    BrokerError
        The broker cannot be reached.
    """
    states = topic_states(settings)
    problems = _problem_lines(states)
    if problems:
        shown = "; ".join(problems[:_MAX_SHOWN])
        if len(problems) > _MAX_SHOWN:
            shown += f"; and {len(problems) - _MAX_SHOWN} more: run 'riskstream topics check' to list them"
        raise TopicMismatchError(
            f"{shown}. Create missing topics with 'riskstream topics create'; for the others, "
            "change the topic, or RISKSTREAM_TOPICS__*, so that both agree"
        )
    weak = sorted(name for name, state in states.items() if state.weaknesses)
    if weak:
        logger.warning(
            "topics may lose acknowledged records: %s; 'riskstream check' lists the reasons", ", ".join(weak)
        )


def topic_ids(settings: Settings, names: Iterable[str]) -> dict[str, str]:
    """Return the UUID that Kafka gave each topic when it was made (KIP-516), by name.

    The text is empty where the topic does not exist or the broker gives no ids.

    Raises
    ------
    BrokerError
        The broker cannot be reached.
    """
    with administration(settings.kafka, settings.kafka.request_timeout_seconds) as admin:
        found = _describe(admin, names)
    return {name: str(topic["topic_id"] or "") for name, topic in found.items()}


def _describe(admin: KafkaAdminClient, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return each topic's metadata by name; a topic that does not exist has ``_MISSING``'s code."""
    wanted = list(names)
    if not wanted:
        return {}
    absent = {"error_code": _MISSING.errno, "topic_id": None, "partitions": []}
    answered = {topic["name"]: topic for topic in admin.describe_topics(wanted)}
    return {name: answered.get(name, absent) for name in wanted}


def _configs(admin: KafkaAdminClient, topics: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the configuration of each existing topic by name, from the metadata of :func:`_describe`."""
    present = [name for name, topic in topics.items() if topic["error_code"] == _NO_ERROR]
    if not present:
        return {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in present]
    described = admin.describe_configs(resources, config_filter="all").get("topic", {})
    return {name: described.get(name, {}) for name in present}


def _broker_ids(admin: KafkaAdminClient) -> list[int]:
    return sorted(broker["broker_id"] for broker in admin.describe_cluster()["brokers"])


def _specs(admin: KafkaAdminClient, settings: Settings) -> dict[str, TopicSpec]:
    """Return the topics by name, for this cluster's number of brokers."""
    return {spec.name: spec for spec in topic_specs(settings, len(_broker_ids(admin)))}


def _values(configs: Mapping[str, Any]) -> dict[str, str]:
    """Return the values that the broker reports, by name."""
    return {name: item["value"] for name, item in configs.items() if item.get("value") is not None}


def _replicas(topic: Mapping[str, Any]) -> int:
    """Return the number of replicas of the partition with the fewest."""
    return min((len(partition["replica_nodes"]) for partition in topic["partitions"]), default=0)


def _differences(
    spec: TopicSpec, required_replicas: int | None, topic: Mapping[str, Any], configs: Mapping[str, Any]
) -> list[str]:
    code = topic["error_code"]
    if code == _MISSING.errno:
        return ["does not exist"]
    if code != _NO_ERROR:
        return [f"cannot be read: {for_code(code).description}"]
    problems = []
    partitions = len(topic["partitions"])
    if partitions != spec.partitions:
        problems.append(f"has {partitions} partitions, not {spec.partitions}")
    replicas, values = _replicas(topic), _values(configs)
    if required_replicas is not None and replicas < required_replicas:
        problems.append(f"has replication factor {replicas}, not {required_replicas}")
    problems += impossible_writes(replicas, values)
    for name, wanted in spec.config.items():
        value = values.get(name)
        # cleanup.policy is a list; its order has no meaning
        if value is not None and {part.strip() for part in value.split(",")} != set(wanted.split(",")):
            problems.append(f"has {name}={value}, not {wanted}")
    return problems


class _RefusedError(BrokerError):
    """The broker answered and refuses this client; trying again would not help."""


@contextmanager
def administration(kafka: KafkaSettings, timeout_seconds: float) -> Iterator[KafkaAdminClient]:
    """Connect within ``timeout_seconds``; every failure becomes one readable line."""
    address = kafka.bootstrap_servers
    with _quiet_log() as log:
        try:
            admin = _connect(kafka, timeout_seconds, log)
            try:
                yield admin
            finally:
                admin.close()
        except _REFUSALS as error:
            raise _RefusedError(
                f"the broker at {address} rejects {kafka.identity} with mechanism {kafka.sasl_mechanism}: "
                f"check {_credentials(kafka)} and the mechanism"
            ) from error
        except AuthorizationError as error:
            raise _RefusedError(
                f"the broker at {address} denies this request: {_one_line(error)}; its access rules "
                "must allow this user to describe and create the topics"
            ) from error
        except KafkaError as error:
            reason = _one_line(log.reason or error)
            if _CLOSED in reason and kafka.security_protocol.startswith("SASL"):
                raise BrokerError(
                    f"the broker at {address} closes the connection of {kafka.identity} with mechanism "
                    f"{kafka.sasl_mechanism}, as it does after wrong credentials: check "
                    f"{_credentials(kafka)}, the mechanism and the listener's protocol"
                ) from error
            raise BrokerError(
                f"no Kafka broker responds at {address} within {timeout_seconds:g} s ({reason}); "
                "check RISKSTREAM_KAFKA__BOOTSTRAP_SERVERS, or start a broker with 'riskstream "
                "broker start'"
            ) from error
        except (OSError, ValueError) as error:  # an address or certificate that cannot be used at all
            raise BrokerError(f"the broker at {address} cannot be used: {_one_line(error)}") from error


def _credentials(kafka: KafkaSettings) -> str:
    if kafka.sasl_mechanism == "OAUTHBEARER":
        return "RISKSTREAM_KAFKA__OAUTH_CLIENT_ID, what its tokens contain,"
    return "RISKSTREAM_KAFKA__SASL_USERNAME, its password"


def _connect(kafka: KafkaSettings, timeout_seconds: float, log: _Collector) -> KafkaAdminClient:
    """Return a connected client.

    kafka-python treats a refused password as a temporary failure and retries until its time is over. So the
    client gets the time in growing slices, and its log is checked after each slice.
    """
    config = client_config(kafka)
    if not config["bootstrap_servers"]:
        raise ValueError("the address is empty")
    if "sasl_oauth_token_provider" in config:
        config["sasl_oauth_token_provider"].token()  # the client would only say that its time is over
    nets: list[KafkaNetClient] = []

    def keep(**options: Any) -> KafkaNetClient:
        nets.append(KafkaNetClient(**options))
        return nets[-1]

    deadline = time.monotonic() + timeout_seconds
    slice_seconds = _FIRST_SLICE_SECONDS
    while True:
        left = deadline - time.monotonic()
        if left < 2 * slice_seconds:
            slice_seconds = left  # what would be over has no time for a handshake
        try:
            return KafkaAdminClient(
                **config,
                bootstrap_timeout_ms=int(max(slice_seconds, 0.05) * 1000),
                request_timeout_ms=int(timeout_seconds * 1000),
                reconnect_backoff_ms=_BACKOFF_MS[0],
                reconnect_backoff_max_ms=_BACKOFF_MS[1],
                kafka_client=keep,
            )
        except BaseException as error:
            # A client whose constructor failed cannot be closed, but its thread and sockets must be.
            while nets:
                nets.pop().close()
            if isinstance(log.reason, _REFUSALS):
                raise log.reason from error
            if not isinstance(error, KafkaTimeoutError) or left <= slice_seconds:
                raise
        slice_seconds *= 2


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


class _Collector(logging.Handler):
    """Keep the last reason for a failure, which kafka-python writes to its log only."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.reason: Exception | None = None

    def emit(self, record: logging.LogRecord) -> None:
        for cause in record.args if isinstance(record.args, tuple) else ():
            if isinstance(cause, _REFUSALS):
                self.reason = cause
            elif isinstance(cause, KafkaError) and not isinstance(cause, KafkaTimeoutError):
                # Errors after a refusal are only the closed connection.
                self.reason = self.reason if isinstance(self.reason, _REFUSALS) else cause


_quiet_lock = threading.Lock()
_quiet_users = 0


@contextmanager
def _quiet_log() -> Iterator[_Collector]:
    """Keep kafka-python's log lines off the program's log; yield the collector of its failures.

    kafka-python logs each of many tries; one error at the end is enough.
    """
    global _quiet_users  # noqa: PLW0603 - counted, so that the last of several threads restores it
    logger = logging.getLogger("kafka")
    collector = _Collector()
    with _quiet_lock:
        _quiet_users += 1
        logger.propagate = False
        logger.addHandler(collector)
    try:
        yield collector
    finally:
        with _quiet_lock:
            logger.removeHandler(collector)
            _quiet_users -= 1
            if _quiet_users == 0:
                logger.propagate = True
