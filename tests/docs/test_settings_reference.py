"""Every setting is documented, and the reference page is current."""

from __future__ import annotations

from click.testing import CliRunner

from stream.cli.commands.settings import reference, settings
from stream.cli.setting_references import setting_references
from stream.settings import Settings, _known_variables
from support.pages import ROOT


def test_the_page_is_current() -> None:
    page = (ROOT / "docs/reference/settings.md").read_text(encoding="utf-8")
    done = CliRunner().invoke(settings, ["--describe", "--markdown"])
    assert done.exit_code == 0
    assert page == done.output == reference(), (
        "run 'riskstream settings --describe --markdown > docs/reference/settings.md'"
    )


def test_every_setting_has_a_description() -> None:
    for item in setting_references():
        assert len(item.description.split()) >= 2, item.variable
        assert not item.description.endswith("."), item.variable


def test_every_variable_is_described() -> None:
    described = {item.variable for item in setting_references()}
    known = _known_variables()
    assert described <= known
    sections = {f"RISKSTREAM_{name.upper()}" for name in Settings.model_fields}
    others = {f"RISKSTREAM_{name}" for name in ("ENV_FILE", "CACHE_DIR", "TEST_FAULT", "BUNDLE_PASSPHRASE")}
    missing = {name for name in known - described - sections - others if "_REQUIRE_" not in name}
    assert not missing


def test_text_shows_the_same(monkeypatch) -> None:
    # Descriptions need no valid settings.
    monkeypatch.setenv("RISKSTREAM_TOPICS__PARTITIONS", "none")
    done = CliRunner().invoke(settings, ["--describe"])
    assert done.exit_code == 0
    for item in setting_references():
        assert item.variable in done.output
        assert item.description in done.output


def test_markdown_goes_with_describe() -> None:
    done = CliRunner().invoke(settings, ["--markdown"])
    assert done.exit_code == 2
    assert "--describe" in done.output
