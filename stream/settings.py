"""Settings from environment variables: ``RISKSTREAM_`` and the name, sections separated by ``__``.

The file named by ``RISKSTREAM_ENV_FILE`` (or ``.env`` if it exists) is read first; environment variables take
precedence. Secrets can also be read from files: ``RISKSTREAM_KAFKA__SASL_PASSWORD_FILE``. They are never
printed.
"""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from dotenv import dotenv_values
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from stream.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

__all__ = [
    "DecisionSettings",
    "DriftSettings",
    "HistorySettings",
    "KafkaSettings",
    "MetricsSettings",
    "Partitioner",
    "RocksDBSettings",
    "ScoringSettings",
    "Settings",
    "TopicSettings",
    "TracingSettings",
    "WatchdogSettings",
    "load_settings",
    "setting_fields",
]


#: How producers choose the partition of a key.
Partitioner = Literal["murmur2", "crc32", "any"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KafkaSettings(_Section):
    """Connection to the Kafka brokers, consumer group and producer timeouts."""

    bootstrap_servers: str = Field(
        default="127.0.0.1:9092", description="Addresses of brokers as host:port, separated by commas"
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="Protocol of the connections: with or without TLS and SASL"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="PLAIN", description="SASL mechanism, used with a SASL protocol"
    )
    sasl_username: str | None = Field(
        default=None, description="SASL user name, required with a SASL protocol"
    )
    sasl_password: SecretStr | None = Field(
        default=None, description="SASL password; takes precedence over sasl_password_file"
    )
    sasl_password_file: Path | None = Field(default=None, description="File that contains the SASL password")
    ssl_ca_file: Path | None = Field(
        default=None,
        description="PEM file of the authorities that verify the brokers' certificates; without it the "
        "system's authorities",
    )
    ssl_cert_file: Path | None = Field(
        default=None, description="PEM file with the client certificate for mutual TLS"
    )
    ssl_key_file: Path | None = Field(
        default=None, description="PEM file with the client certificate's key for mutual TLS"
    )
    session_timeout_seconds: float = Field(
        default=6.0, ge=1, description="The group reassigns the partitions of a worker silent for this long"
    )
    rebalance_timeout_seconds: float = Field(
        default=6.0, ge=1, description="How long the group waits for members to rejoin during a rebalance"
    )
    request_timeout_seconds: float = Field(
        default=15.0, ge=1, description="How long a client waits for the response to a request"
    )
    delivery_timeout_seconds: float = Field(
        default=30.0, ge=1, description="A worker exits if a record is not acknowledged within this time"
    )
    group_instance_id: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9._-]{1,200}$",
        description="Permanent name of this worker in the group; a restart within the session then causes no "
        "rebalance",
    )
    fetch_max_wait_ms: int = Field(
        default=20, ge=1, le=10_000, description="How long the broker may hold a fetch that has no records"
    )
    max_poll_records: int = Field(
        default=2000, ge=1, le=100_000, description="Maximum number of records of a partition in a batch"
    )
    max_batch_mib: int = Field(
        default=32,
        ge=1,
        le=1024,
        description="Record batches with more uncompressed MiB are decompressed in pieces and read record by "
        "record, which is slower and bounds the worker's memory",
    )
    isolation_level: Literal["read_committed", "read_uncommitted"] = Field(
        default="read_committed",
        description="Whether consumers leave out records of aborted and open transactions",
    )

    @model_validator(mode="after")
    def _check(self) -> KafkaSettings:
        if self.security_protocol.startswith("SASL"):
            if not self.sasl_username:
                msg = "sasl_username: is required with security_protocol=" + self.security_protocol
                raise ValueError(msg)
            if self.sasl_password is None and self.sasl_password_file is None:
                msg = "sasl_password (or sasl_password_file): is required with SASL"
                raise ValueError(msg)
        if (self.ssl_cert_file is None) != (self.ssl_key_file is None):
            msg = "ssl_cert_file and ssl_key_file: require each other"
            raise ValueError(msg)
        for name in ("sasl_password_file", "ssl_ca_file", "ssl_cert_file", "ssl_key_file"):
            path: Path | None = getattr(self, name)
            if path is not None and not path.is_file():
                msg = f"{name}: {path} is not a readable file"
                raise ValueError(msg)
        return self

    def password(self) -> str | None:
        """Return the SASL password, from the setting or its file."""
        if self.sasl_password is not None:
            return self.sasl_password.get_secret_value()
        if self.sasl_password_file is not None:
            return self.sasl_password_file.read_text(encoding="utf-8").strip()
        return None


class TopicSettings(_Section):
    """Names, partitions and retention of the topics."""

    transactions: str = Field(default="transactions", description="Topic of the transactions to score")
    alerts: str = Field(default="risk-alerts", description="Topic of the alerts")
    decisions: str = Field(default="risk-decisions", description="Topic of the decisions")
    labels: str = Field(default="labels", description="Topic of the labels, used with entity profiles")
    dead_letters: str = Field(default="transactions-dlq", description="Topic of the rejected records")
    control: str = Field(default="risk-control", description="Compacted topic of control messages")
    partitions: int = Field(
        default=4, ge=1, le=10_000, description="Partitions of every keyed topic; fixed once there is state"
    )
    partitioner: Partitioner = Field(
        default="murmur2",
        description="Hash by which all producers choose the partition of a key: murmur2 (Kafka's own "
        "clients), crc32 (librdkafka's default), or any if producers choose partitions themselves",
    )
    replication_factor: int | None = Field(
        default=None,
        ge=1,
        le=10,
        description="Replicas of each topic; by default 3, or one on each broker if there are fewer",
    )
    min_insync_replicas: int | None = Field(
        default=None,
        ge=1,
        le=10,
        description="Replicas that must have a record before it is acknowledged (min.insync.replicas); by "
        "default one less than the replicas, and at least 1",
    )
    create: bool = Field(default=True, description="Whether a worker creates missing topics at its start")
    retention_days: float = Field(
        default=7, gt=0, description="Retention of transactions, alerts, decisions and labels"
    )
    dead_letter_retention_days: float = Field(default=30, gt=0, description="Retention of dead letters")

    @model_validator(mode="after")
    def _check(self) -> Self:
        replicas, needed = self.replication_factor, self.min_insync_replicas
        if replicas is not None and needed is not None and needed > replicas:
            msg = f"min_insync_replicas: {needed} replicas cannot have a record if there are {replicas}"
            raise ValueError(msg)
        return self


class DecisionSettings(_Section):
    """Content of the topic ``risk-decisions``."""

    enabled: bool = Field(default=True, description="Whether to write a decision for every transaction")
    features: bool = Field(
        default=False, description="Whether each decision contains the values of all features"
    )


#: Characters of the shortest token: 16 random letters and digits have 95 bits.
_MIN_TOKEN: Final = 16


class _GuardedSection(_Section):
    """An HTTP endpoint with an optional bearer token."""

    token: SecretStr | None = Field(
        default=None,
        description="Bearer token of at least 16 characters, required by every route except /healthz and "
        "/readyz",
    )
    token_file: Path | None = Field(default=None, description="File that contains the bearer token")

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.wanted_token()
        return self

    def wanted_token(self) -> str | None:
        """Return the token from the setting or its file, None if no token is required.

        Raises
        ------
        ValueError
            There should be a token, and there is none or a short one; nobody may be let in then.
        """
        if self.token is not None:
            name, token = "token", self.token.get_secret_value().strip()
        elif self.token_file is not None:
            name = f"token_file: {self.token_file}"
            try:
                token = self.token_file.read_text(encoding="utf-8").strip()
            except OSError as error:
                msg = f"{name} is not a readable file: {error.strerror or error}"
                raise ValueError(msg) from error
        else:
            return None
        if len(token) < _MIN_TOKEN:
            msg = f"{name}: must have at least {_MIN_TOKEN} characters, not {len(token)}"
            raise ValueError(msg)
        return token


class MetricsSettings(_GuardedSection):
    """The HTTP endpoint with ``/metrics``, ``/healthz`` and ``/readyz``."""

    enabled: bool = Field(default=True, description="Whether a worker serves metrics and health")
    host: str = Field(default="127.0.0.1", description="Address to listen on")
    port: int = Field(default=9108, ge=0, le=65_535, description="Port to listen on; 0 chooses a free port")


class ScoringSettings(_GuardedSection):
    """The HTTP endpoint with ``/predict`` on live histories; workers forward requests to the owner."""

    enabled: bool = Field(default=False, description="Whether a worker serves scores on request")
    host: str = Field(default="127.0.0.1", description="Address to listen on")
    port: int = Field(default=9109, ge=0, le=65_535, description="Port to listen on; 0 chooses a free port")
    advertised_host: str | None = Field(
        default=None,
        description="Address at which other workers reach this worker; without it host, or the machine's "
        "name if the worker listens on every address",
    )
    max_batch: int = Field(
        default=100, ge=1, le=500, description="Maximum number of transactions in a request"
    )
    forward_timeout_seconds: float = Field(
        default=2.0, gt=0, le=60, description="How long a worker waits for another worker's response"
    )


class TracingSettings(_Section):
    """Spans of transactions sampled by their producer; needs the extra ``tracing``."""

    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s/]+",
        description="OTLP collector, such as http://127.0.0.1:4318; without it a worker creates no spans",
    )


class DriftSettings(_Section):
    """Comparison of the scored transactions with the training data."""

    enabled: bool = Field(default=True, description="Whether a worker detects drift")
    window_transactions: int = Field(
        default=10_000, ge=100, description="Transactions of a worker in each comparison with training"
    )


class HistorySettings(_Section):
    """Event times that a worker accepts, and memory for long histories."""

    allowed_lateness_days: float = Field(
        default=3, ge=0, le=365, description="Features are exact for events up to this late"
    )
    max_future_seconds: float = Field(
        default=300, ge=0, description="Events further ahead of the clock than this become dead letters"
    )
    min_event_time: date = Field(
        default=date(2000, 1, 1),
        description="Events before this day become dead letters, such as epoch seconds read as milliseconds",
    )
    cache_mib: int = Field(default=512, ge=1, description="Memory of a worker for unpacked long histories")


class WatchdogSettings(_Section):
    """When a worker considers itself stalled."""

    stall_seconds: float = Field(
        default=60,
        ge=1,
        description="A worker with lag but no progress is unhealthy after this time; exits after twice it",
    )
    broker_gone_seconds: float = Field(
        default=60, ge=1, description="A worker exits if no broker responds for this long"
    )


class RocksDBSettings(_Section):
    """Memory of RocksDB, shared by all partitions of a worker."""

    block_cache_mib: int = Field(default=256, ge=1, description="Memory for blocks read from files")
    write_buffer_mib: int = Field(default=128, ge=4, description="Memory for writes before a flush")


class Settings(BaseSettings):
    """All settings of a RiskStream process."""

    model_config = SettingsConfigDict(
        env_prefix="RISKSTREAM_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    app_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")] = Field(
        default="riskstream",
        description="Name of the consumer group and prefix of internal topics and transactional ids",
    )
    state_dir: Path = Field(
        default=Path("var/state"), description="Folder of the worker's state; each worker needs its own"
    )
    bundle: Path = Field(default=Path("var/bundle"), description="Folder of the model bundle")
    bundle_public_key: Path | None = Field(
        default=None,
        description="PEM file with the Ed25519 public keys that may sign bundles; other bundles are refused",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level of messages to log"
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="Log lines for people, or a JSON object per line"
    )
    core: int | None = Field(
        default=None,
        ge=0,
        description="CPU core to pin the worker's threads to; RocksDB's background threads are not pinned",
    )
    max_record_bytes: int = Field(
        default=65_536, ge=1024, le=16 * 1024 * 1024, description="Larger records become dead letters"
    )
    alert_level: Literal["HIGH", "MEDIUM", "LOW"] = Field(
        default="MEDIUM", description="Lowest risk level for which a worker sends alerts"
    )
    max_reasons: int = Field(default=5, ge=1, le=50, description="Maximum number of reasons in an alert")
    language: Literal["en", "zh"] = Field(default="en", description="Language of alert reasons")
    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    topics: TopicSettings = Field(default_factory=TopicSettings)
    decisions: DecisionSettings = Field(default_factory=DecisionSettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    scoring: ScoringSettings = Field(default_factory=ScoringSettings)
    tracing: TracingSettings = Field(default_factory=TracingSettings)
    drift: DriftSettings = Field(default_factory=DriftSettings)
    history: HistorySettings = Field(default_factory=HistorySettings)
    rocksdb: RocksDBSettings = Field(default_factory=RocksDBSettings)
    watchdog: WatchdogSettings = Field(default_factory=WatchdogSettings)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.scoring.enabled and self.topics.partitioner == "any":
            msg = (
                "RISKSTREAM_SCORING__ENABLED: scores on request need the partition of a user's history: set "
                "RISKSTREAM_TOPICS__PARTITIONER to murmur2 or crc32"
            )
            raise ValueError(msg)
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the library's signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave other programs' lines of a shared ``.env`` alone; they are not mistakes."""
        if isinstance(dotenv_settings, DotEnvSettingsSource):
            dotenv_settings.env_vars = {
                name: value
                for name, value in dotenv_settings.env_vars.items()
                if name.upper().startswith("RISKSTREAM_")
            }
        return init_settings, env_settings, dotenv_settings, file_secret_settings

    def child_environment(self) -> dict[str, str]:
        """Return this process's environment with exactly these settings in it, secrets too: for a child."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith("RISKSTREAM_")}

        def add(prefix: str, model: BaseModel) -> None:
            for name in type(model).model_fields:
                value = getattr(model, name)
                if isinstance(value, BaseModel):
                    add(f"{prefix}{name.upper()}__", value)
                elif value is not None:
                    secret = isinstance(value, SecretStr)
                    variables[f"{prefix}{name.upper()}"] = value.get_secret_value() if secret else str(value)

        add("RISKSTREAM_", self)
        return variables

    def describe(self) -> str:
        """Return the settings as lines of ``name = value``, secrets hidden."""
        lines: list[str] = []

        def add(prefix: str, model: BaseModel) -> None:
            for name in type(model).model_fields:
                value = getattr(model, name)
                if isinstance(value, BaseModel):
                    add(f"{prefix}{name}.", value)
                else:
                    shown = "(hidden)" if isinstance(value, SecretStr) else value
                    lines.append(f"{prefix}{name} = {shown}")

        add("", self)
        return "\n".join(lines)


def load_settings(**overrides: object) -> Settings:
    """Return the settings of the environment; ``overrides`` win.

    Raises
    ------
    ConfigError
        Naming each wrong variable and why, in one line.
    """
    env_file = os.environ.get("RISKSTREAM_ENV_FILE", ".env")
    if "RISKSTREAM_ENV_FILE" in os.environ and not Path(env_file).is_file():
        raise ConfigError(f"RISKSTREAM_ENV_FILE: {env_file} is not a readable file")
    known = _known_variables()
    unknown = sorted(
        name
        for name in [*os.environ, *dotenv_values(env_file)]
        if name.upper().startswith("RISKSTREAM_") and name.upper() not in known
    )
    if unknown:
        raise ConfigError(f"unknown setting {unknown[0]}; 'riskstream settings' lists all settings")
    try:
        return Settings(_env_file=env_file, **overrides)  # type: ignore[call-arg, arg-type]
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False, include_input=False):
            name = "RISKSTREAM_" + "__".join(str(part).upper() for part in item["loc"])
            reason = item["msg"].removeprefix("Value error, ")
            # An error of several sections names its settings itself.
            problems.append(f"{name}: {reason}" if item["loc"] else reason)
        raise ConfigError("; ".join(problems)) from error
    except ValueError as error:  # pydantic-settings: a nested value that is not JSON
        raise ConfigError(str(error)) from error


def setting_fields(
    model: type[BaseModel], section: str = "", prefix: str = "RISKSTREAM_"
) -> Iterator[tuple[str, str, FieldInfo]]:
    """Yield section, environment variable and field of every setting, the sections' last."""
    nested: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            nested.append((name, field.annotation))
        else:
            yield section, f"{prefix}{name.upper()}", field
    for name, inner in nested:
        yield from setting_fields(inner, name, f"{prefix}{name.upper()}__")


def _known_variables() -> set[str]:
    """Return every environment variable with a meaning."""
    names = {"RISKSTREAM_" + name for name in ("ENV_FILE", "CACHE_DIR", "TEST_FAULT", "BUNDLE_PASSPHRASE")}
    names |= {"RISKSTREAM_REQUIRE_KAFKA", "RISKSTREAM_REQUIRE_PROMETHEUS"}
    for section, variable, _ in setting_fields(Settings):
        names.add(variable)
        if section:
            names.add(f"RISKSTREAM_{section.upper()}")  # a whole section, as JSON
    return names
