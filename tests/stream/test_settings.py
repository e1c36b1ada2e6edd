"""Settings from the environment: what is taken, what is refused and how, what is shown."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from stream.errors import ConfigError
from stream.settings import Settings, load_settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of this machine, and no .env file."""
    for name in list(os.environ):
        if name.upper().startswith("RISKSTREAM_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def refusal() -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_defaults_need_nothing() -> None:
    settings = load_settings()
    assert settings.kafka.bootstrap_servers == "127.0.0.1:9092"
    assert settings.topics.transactions == "transactions"
    assert settings == Settings()


def test_nested_names_reach_their_section(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISKSTREAM_APP_ID", "fraud.eu-1")
    monkeypatch.setenv("RISKSTREAM_KAFKA__BOOTSTRAP_SERVERS", "a:1,b:2")
    monkeypatch.setenv("RISKSTREAM_TOPICS__PARTITIONS", "12")
    monkeypatch.setenv("riskstream_topics__retention_days", "0.5")
    monkeypatch.setenv("RISKSTREAM_DECISIONS__ENABLED", "false")
    settings = load_settings()
    assert settings.app_id == "fraud.eu-1"
    assert settings.kafka.bootstrap_servers == "a:1,b:2"
    assert (settings.topics.partitions, settings.topics.retention_days) == (12, 0.5)
    assert settings.decisions.enabled is False
    assert settings.kafka.session_timeout_seconds == 6.0


def test_a_section_may_be_json_and_one_name_wins_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISKSTREAM_TOPICS", '{"partitions": 3, "alerts": "a"}')
    monkeypatch.setenv("RISKSTREAM_TOPICS__PARTITIONS", "5")
    settings = load_settings()
    assert (settings.topics.partitions, settings.topics.alerts) == (5, "a")


def test_a_file_is_read_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "other.env").write_text(
        "# a comment\nRISKSTREAM_APP_ID=from-file\nRISKSTREAM_TOPICS__PARTITIONS=7\n", encoding="utf-8"
    )
    monkeypatch.setenv("RISKSTREAM_ENV_FILE", str(tmp_path / "other.env"))
    monkeypatch.setenv("RISKSTREAM_TOPICS__PARTITIONS", "8")
    settings = load_settings()
    assert (settings.app_id, settings.topics.partitions) == ("from-file", 8)


def test_dot_env_is_read_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("RISKSTREAM_MAX_REASONS=2\nSOMETHING_ELSE=1\n", encoding="utf-8")
    assert load_settings().max_reasons == 2


def test_an_unknown_name_in_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("RISKSTREAM_MAX_RAISINS=2\n", encoding="utf-8")
    assert "RISKSTREAM_MAX_RAISINS" in refusal()


def test_a_file_that_is_asked_for_must_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RISKSTREAM_ENV_FILE", str(tmp_path / "none.env"))
    assert f"RISKSTREAM_ENV_FILE: {tmp_path / 'none.env'}" in refusal()


def test_the_reasons_are_english_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().language == "en"
    monkeypatch.setenv("RISKSTREAM_LANGUAGE", "zh")
    assert load_settings().language == "zh"


def test_overrides_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISKSTREAM_MAX_REASONS", "2")
    assert load_settings(max_reasons=3).max_reasons == 3


@pytest.mark.parametrize(
    "name", ["RISKSTREAM_APPID", "RISKSTREAM_KAFKA__BOOTSTRAP", "RISKSTREAM_KAFKA_BOOTSTRAP_SERVERS"]
)
def test_an_unknown_variable_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "x")
    assert name in refusal()


@pytest.mark.parametrize("name", ["RISKSTREAM_CACHE_DIR", "RISKSTREAM_REQUIRE_KAFKA"])
def test_variables_that_are_not_settings_are_known(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RISKSTREAM_APP_ID", "two words"),
        ("RISKSTREAM_APP_ID", ""),
        ("RISKSTREAM_LOG_LEVEL", "loud"),
        ("RISKSTREAM_ALERT_LEVEL", "high"),
        ("RISKSTREAM_MAX_RECORD_BYTES", "many"),
        ("RISKSTREAM_MAX_RECORD_BYTES", "10"),
        ("RISKSTREAM_MAX_REASONS", "0"),
        ("RISKSTREAM_LANGUAGE", "fr"),
        ("RISKSTREAM_TOPICS__PARTITIONS", "0"),
        ("RISKSTREAM_TOPICS__PARTITIONS", "1.5"),
        ("RISKSTREAM_TOPICS__RETENTION_DAYS", "0"),
        ("RISKSTREAM_METRICS__PORT", "70000"),
        ("RISKSTREAM_HISTORY__ALLOWED_LATENESS_DAYS", "-1"),
        ("RISKSTREAM_KAFKA__SECURITY_PROTOCOL", "TLS"),
        ("RISKSTREAM_KAFKA__SASL_MECHANISM", "GSSAPI"),
        ("RISKSTREAM_DECISIONS__ENABLED", "perhaps"),
    ],
)
def test_a_wrong_value_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert refusal().startswith(f"{name}: ")


def test_every_wrong_value_is_in_the_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISKSTREAM_MAX_REASONS", "0")
    monkeypatch.setenv("RISKSTREAM_TOPICS__PARTITIONS", "0")
    text = refusal()
    assert "RISKSTREAM_MAX_REASONS: " in text
    assert "RISKSTREAM_TOPICS__PARTITIONS: " in text


def test_a_section_that_is_not_json_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISKSTREAM_TOPICS", "{partitions")
    assert "topics" in refusal().lower()


def test_sasl_asks_for_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISKSTREAM_KAFKA__SECURITY_PROTOCOL", "SASL_SSL")
    assert "sasl_username: is required" in refusal()
    monkeypatch.setenv("RISKSTREAM_KAFKA__SASL_USERNAME", "worker")
    assert "sasl_password (or sasl_password_file): is required" in refusal()
    monkeypatch.setenv("RISKSTREAM_KAFKA__SASL_PASSWORD", "hunter2")
    assert load_settings().kafka.password() == "hunter2"


def test_a_password_file_is_read_without_its_last_line_break(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("hunter2\n", encoding="utf-8")
    monkeypatch.setenv("RISKSTREAM_KAFKA__SASL_PASSWORD_FILE", str(tmp_path / "password"))
    settings = load_settings()
    assert settings.kafka.password() == "hunter2"
    assert "hunter2" not in settings.describe()
    monkeypatch.setenv("RISKSTREAM_KAFKA__SASL_PASSWORD_FILE", str(tmp_path / "none"))
    assert f"sasl_password_file: {tmp_path / 'none'} is not a readable file" in refusal()


def test_a_certificate_goes_with_its_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("", encoding="utf-8")
    monkeypatch.setenv("RISKSTREAM_KAFKA__SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    assert "ssl_cert_file and ssl_key_file: require each other" in refusal()


def test_no_secret_is_ever_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISKSTREAM_KAFKA__SASL_PASSWORD", "hunter2")
    settings = load_settings()
    lines = settings.describe().splitlines()
    assert "kafka.sasl_password = (hidden)" in lines
    for shown in (settings.describe(), repr(settings), str(settings), settings.model_dump_json()):
        assert "hunter2" not in shown
    monkeypatch.setenv("RISKSTREAM_KAFKA__SECURITY_PROTOCOL", "SASL_SSL")
    assert "hunter2" not in refusal()


def test_describe_has_a_line_for_every_setting() -> None:
    lines = Settings().describe().splitlines()
    assert "app_id = riskstream" in lines
    assert "topics.partitions = 4" in lines
    names = [line.split(" = ")[0] for line in lines]
    assert len(names) == len(set(names))
    sections = {
        "kafka",
        "topics",
        "decisions",
        "metrics",
        "drift",
        "history",
        "rocksdb",
        "card_numbers",
        "scoring",
        "watchdog",
        "tracing",
    }
    assert {name.partition(".")[0] for name in names if "." in name} == sections


def test_settings_cannot_be_changed_afterwards() -> None:
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.topics.partitions = 9  # type: ignore[misc]


def test_a_child_gets_exactly_these_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of this process's environment stay behind, and a secret goes along as it is."""
    kafka = {"security_protocol": "SASL_SSL", "sasl_username": "u", "sasl_password": "secret"}
    mine = Settings(app_id="mine", kafka=kafka, metrics={"port": 0})  # type: ignore[arg-type]
    monkeypatch.setenv("RISKSTREAM_MAX_REASONS", "7")
    monkeypatch.setenv("UNRELATED", "stays")
    given = mine.child_environment()
    assert given["UNRELATED"] == "stays"
    for name in [name for name in os.environ if name.startswith("RISKSTREAM_")]:
        monkeypatch.delenv(name)
    for name, value in given.items():
        if name.startswith("RISKSTREAM_"):
            monkeypatch.setenv(name, value)
    assert load_settings() == mine
