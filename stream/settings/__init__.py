"""Settings from environment variables: ``RISKSTREAM_`` and the name, sections separated by ``__``.

The file named by ``RISKSTREAM_ENV_FILE`` (or ``.env`` if it exists) is read first; environment variables take
precedence. Secrets can also be read from files: ``RISKSTREAM_KAFKA__SASL_PASSWORD_FILE``. They are never
printed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from dotenv import dotenv_values
from pydantic import BaseModel, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from stream.errors import ConfigError
from stream.settings.card_numbers import CardNumberSettings
from stream.settings.http import MetricsSettings, ScoringSettings
from stream.settings.kafka import KafkaSettings, Partitioner, TopicSettings
from stream.settings.worker import (
    DecisionSettings,
    DriftSettings,
    HistorySettings,
    RocksDBSettings,
    TracingSettings,
    WatchdogSettings,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

__all__ = [
    "CardNumberSettings",
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
    mapping: Path | None = Field(
        default=None,
        description="TOML file that maps the members of the transactions' JSON messages to fields, as for "
        "files; without it, producers use RiskStream's names",
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
    card_numbers: CardNumberSettings = Field(default_factory=CardNumberSettings)
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
    names |= {f"RISKSTREAM_REQUIRE_{name}" for name in ("KAFKA", "PROMETHEUS", "TOOLS")}  # of the tests
    for section, variable, _ in setting_fields(Settings):
        names.add(variable)
        if section:
            names.add(f"RISKSTREAM_{section.upper()}")  # a whole section, as JSON
    return names
