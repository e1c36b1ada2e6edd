"""``riskstream check`` without a broker: model and state folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stream.cli.commands.check import Finding, findings
from stream.kafka.local.base import free_port
from stream.settings import Settings
from support.bundles import trained_bundle

if TYPE_CHECKING:
    from pathlib import Path


def looked(tmp_path: Path, now_ms: int | None = None, **settings: object) -> list[Finding]:
    chosen = {
        "bundle": tmp_path / "bundle",
        "state_dir": tmp_path / "state",
        "kafka": {"bootstrap_servers": f"127.0.0.1:{free_port()}", "request_timeout_seconds": 1},
        **settings,
    }
    return list(findings(Settings(**chosen), now_ms))


def one(found: list[Finding], name: str) -> Finding:
    [chosen] = [finding for finding in found if finding.name == name]
    return chosen


def test_no_model(tmp_path: Path) -> None:
    found = one(looked(tmp_path), "model")
    assert (found.state, found.exit_code) == ("FAIL", 3)
    assert "riskstream train" in found.text


def test_a_model_before_whose_training_the_clock_stands(tmp_path: Path) -> None:
    bundle = trained_bundle()
    bundle.save(tmp_path / "bundle")
    assert bundle.trained_at_seconds is not None
    trained_ms = int(bundle.trained_at_seconds * 1000)
    assert one(looked(tmp_path, trained_ms - 1000), "clock").state == "FAIL"
    found = looked(tmp_path, trained_ms + 10 * 86_400_000)
    assert "10.0 days old" in one(found, "model").text
    assert not [finding for finding in found if finding.name == "clock"]


def test_another_lateness_than_in_training_is_a_note(tmp_path: Path) -> None:
    trained_bundle().save(tmp_path / "bundle")
    found = [
        finding
        for finding in looked(tmp_path, history={"allowed_lateness_days": 9})
        if finding.name == "model"
    ]
    assert [finding.state for finding in found] == ["ok", "note"]


def test_a_state_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = one(looked(tmp_path, state_dir=tmp_path / "file" / "state"), "state")
    assert (found.state, found.exit_code) == ("FAIL", 6)


def test_a_mapping_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "mapping.toml"
    text = """
        [columns]
        transaction_id = "id"
        user_id = "payer"
        event_time = "booked"
        amount = "value"
        [constants]
        currency = "EUR"
        channel = "web"
        transaction_type = "purchase"
    """
    path.write_text(text)
    found = one(looked(tmp_path, mapping=path), "mapping")
    assert found.state == "ok"
    assert "id, payer, booked, value" in found.text
    path.write_text(text.replace("amount", "sum"))
    assert one(looked(tmp_path, mapping=path), "mapping").state == "FAIL"
