"""Settings, from the environment: ``RISKSTREAM_`` and the name, nested with ``__``.

A file named by ``RISKSTREAM_ENV_FILE`` (or ``.env`` where there is one) is read first; the environment
wins. Secrets may also lie in files: ``RISKSTREAM_KAFKA__SASL_PASSWORD_FILE``. They are never printed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from dotenv import dotenv_values
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from stream.errors import ConfigError

__all__ = [
    "DecisionSettings",
    "DriftSettings",
    "HistorySettings",
    "KafkaSettings",
    "MetricsSettings",
    "RocksDBSettings",
    "ScoringSettings",
    "Settings",
    "TopicSettings",
    "TracingSettings",
    "WatchdogSettings",
    "load_settings",
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KafkaSettings(_Section):
    """How to reach the broker."""

    bootstrap_servers: str = Field(default="127.0.0.1:9092", description="host:port, several with commas")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    sasl_password_file: Path | None = Field(default=None, description="A file whose text is the password")
    ssl_ca_file: Path | None = Field(
        default=None, description="Authorities that the broker's certificate is checked by"
    )
    ssl_cert_file: Path | None = Field(default=None, description="This client's certificate, for mutual TLS")
    ssl_key_file: Path | None = Field(default=None, description="This client's key, for mutual TLS")
    session_timeout_seconds: float = Field(
        default=6.0, ge=1, description="A silent worker is given up after this"
    )
    rebalance_timeout_seconds: float = Field(
        default=6.0, ge=1, description="Others wait this long for a join"
    )
    request_timeout_seconds: float = Field(default=15.0, ge=1)
    delivery_timeout_seconds: float = Field(
        default=30.0, ge=1, description="A record that no broker has taken after this ends the worker"
    )
    group_instance_id: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9._-]{1,200}$",
        description="A name that stays with this worker over restarts: it gets its partitions back at once",
    )
    fetch_max_wait_ms: int = Field(
        default=20, ge=1, le=10_000, description="How long the broker may hold a fetch without records"
    )
    max_poll_records: int = Field(
        default=2000, ge=1, le=100_000, description="Largest batch of one partition"
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
            msg = "ssl_cert_file and ssl_key_file: go together"
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
    """Names and shapes of the topics; :mod:`stream.kafka.topics` makes them from this."""

    transactions: str = "transactions"
    alerts: str = "risk-alerts"
    decisions: str = "risk-decisions"
    labels: str = "labels"
    dead_letters: str = "transactions-dlq"
    control: str = "risk-control"
    partitions: int = Field(default=4, ge=1, le=10_000, description="Of every keyed topic")
    replication_factor: int = Field(default=1, ge=1, le=10)
    create: bool = Field(default=True, description="Whether a worker creates missing topics when it starts")
    retention_days: float = Field(
        default=7, gt=0, description="Of the transactions, alerts, decisions and labels"
    )
    dead_letter_retention_days: float = Field(default=30, gt=0)


class DecisionSettings(_Section):
    """What is written to ``risk-decisions``."""

    enabled: bool = True
    features: bool = Field(default=False, description="Put every feature's value into each decision")


class _GuardedSection(_Section):
    """An HTTP endpoint that may ask for a token."""

    token: SecretStr | None = Field(
        default=None,
        min_length=8,
        description="Wanted as a bearer token by everything but health and readiness",
    )
    token_file: Path | None = Field(default=None, description="A file whose text is the token")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.token_file is not None and not self.token_file.is_file():
            msg = f"token_file: {self.token_file} is not a readable file"
            raise ValueError(msg)
        return self

    def wanted_token(self) -> str | None:
        """Return the token, from the setting or its file; None where none is wanted."""
        if self.token is not None:
            return self.token.get_secret_value()
        if self.token_file is not None:
            return self.token_file.read_text(encoding="utf-8").strip() or None
        return None


class MetricsSettings(_GuardedSection):
    """The HTTP endpoint with ``/metrics``, ``/healthz`` and ``/readyz``."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: int = Field(default=9108, ge=0, le=65_535, description="0 picks a free one")


class ScoringSettings(_GuardedSection):
    """The HTTP endpoint with ``/predict``, against the live histories; workers ask each other."""

    enabled: bool = False
    host: str = "127.0.0.1"
    port: int = Field(default=9109, ge=0, le=65_535, description="0 picks a free one")
    advertised_host: str | None = Field(
        default=None,
        description="Where other workers reach this one; without it host, or this machine's name where that "
        "is every address",
    )
    max_batch: int = Field(default=100, ge=1, le=500, description="Most transactions of one request")
    partitioner: Literal["murmur2", "crc32"] = Field(
        default="murmur2",
        description="By which hash of the key producers choose the partition: murmur2 as Kafka's own client, "
        "crc32 as librdkafka's",
    )
    forward_timeout_seconds: float = Field(
        default=2.0, gt=0, le=60, description="How long another worker may take to answer"
    )


class TracingSettings(_Section):
    """Spans of the transactions that a producer traces; needs the extra ``tracing``."""

    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s/]+",
        description="An OTLP collector, such as http://127.0.0.1:4318; without it no spans are made",
    )


class DriftSettings(_Section):
    """How what is scored is compared with what the model was trained on."""

    enabled: bool = True
    window_transactions: int = Field(
        default=10_000, ge=100, description="Scored by one worker, compared with the training in one piece"
    )


class HistorySettings(_Section):
    """How much of a user's past is kept, and which times are believed."""

    allowed_lateness_days: float = Field(
        default=3, ge=0, le=365, description="Scored exactly up to this late"
    )
    max_future_seconds: float = Field(
        default=300, ge=0, description="A later event time than this is a dead letter"
    )
    cache_mib: int = Field(
        default=512, ge=1, description="Memory for long histories that stay unpacked between rounds"
    )


class WatchdogSettings(_Section):
    """When a worker takes itself for stuck."""

    stall_seconds: float = Field(
        default=60, ge=1, description="Work without progress: unhealthy after this, ended after twice this"
    )
    broker_gone_seconds: float = Field(
        default=60, ge=1, description="A broker that does not answer for so long ends the worker"
    )


class RocksDBSettings(_Section):
    """Memory of the store; both are shared by all partitions of a worker."""

    block_cache_mib: int = Field(default=256, ge=1)
    write_buffer_mib: int = Field(default=128, ge=4)


class Settings(BaseSettings):
    """Everything that a RiskStream process can be told."""

    model_config = SettingsConfigDict(
        env_prefix="RISKSTREAM_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    app_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")] = "riskstream"
    state_dir: Path = Path("var/state")
    bundle: Path = Field(default=Path("var/bundle"), description="Folder of the model bundle to serve")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = Field(
        default="console", description="Lines for people, or a JSON object a line"
    )
    core: int | None = Field(
        default=None, ge=0, description="A worker's own core: its threads stay on it, but for RocksDB's"
    )
    max_record_bytes: int = Field(default=65_536, ge=1024, le=16 * 1024 * 1024)
    alert_level: Literal["HIGH", "MEDIUM", "LOW"] = Field(
        default="MEDIUM", description="Alerts are sent for this level and above"
    )
    max_reasons: int = Field(default=5, ge=1, le=50)
    language: Literal["en", "zh"] = Field(default="en", description="Of the reasons' sentences")
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
        raise ConfigError(f"unknown setting {unknown[0]}; see 'riskstream settings' for those there are")
    try:
        return Settings(_env_file=env_file, **overrides)  # type: ignore[call-arg, arg-type]
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False, include_input=False):
            name = "RISKSTREAM_" + "__".join(str(part).upper() for part in item["loc"])
            problems.append(f"{name}: {item['msg'].removeprefix('Value error, ')}")
        raise ConfigError("; ".join(problems)) from error
    except ValueError as error:  # pydantic-settings: a nested value that is not JSON
        raise ConfigError(str(error)) from error


def _known_variables() -> set[str]:
    """Return every environment variable that means something."""
    names = {
        "RISKSTREAM_ENV_FILE",
        "RISKSTREAM_CACHE_DIR",
        "RISKSTREAM_REQUIRE_KAFKA",
        "RISKSTREAM_REQUIRE_PROMETHEUS",
        "RISKSTREAM_TEST_FAULT",
    }

    def add(prefix: str, model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            variable = f"{prefix}{name.upper()}"
            names.add(variable)
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                add(f"{variable}__", field.annotation)

    add("RISKSTREAM_", Settings)
    return names
