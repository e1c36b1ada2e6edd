from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner

from offline.data.writers import write_table
from offline.reporting.report import stability_index
from offline.simulation.simulator import Simulation, simulate
from offline.training.drift_reference import reference_statistics
from offline.training.profiles import SHIPPED, load_profiles
from stream.cli.commands.train import train
from stream.cli.commands.tune import tune
from stream.errors import ConfigError
from stream.scoring.bundle import Bundle

VOID = {"meta", "img", "br", "hr", "link", "input"}
PROFILES = """
[[entities]]
entity = "device"
windows_days = [1, 30]
aggregates = ["count"]
[[entities]]
entity = "merchant"
label_windows_days = [30]
label_aggregates = ["fraud_count"]
label_delay_days = 9
"""


class Page(HTMLParser):
    """Every tag closed, nothing fetched from anywhere, no script."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.captions: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.fetched += [
            value
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "data")
            and value
            and not value.startswith(("#", "data:"))
        ]
        if tag == "script":
            self.fetched.append("a script")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if self.open and self.open[-1] == "figcaption":
            self.captions.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tuned model with profiles and its report, made by the commands."""
    folder = tmp_path_factory.mktemp("report")
    write_table(simulate(Simulation(transactions=8_000, seed=21, fraud_rate=0.05)), folder / "data.parquet")
    (folder / "profiles.toml").write_text(PROFILES)
    data = [
        "--data",
        str(folder / "data.parquet"),
        "--profiles",
        str(folder / "profiles.toml"),
        "--trees",
        "30",
    ]
    tuned = CliRunner().invoke(
        tune, [*data, "--trials", "2", "--objective", "money", "--output", str(folder / "best.json")]
    )
    assert tuned.exit_code == 0, tuned.output
    done = CliRunner().invoke(
        train,
        [
            *data,
            *("--parameters", str(folder / "best.json")),
            *("--output", str(folder / "bundle")),
            *("--report", str(folder / "report.html")),
        ],
    )
    assert done.exit_code == 0, done.output
    return folder


def test_the_report_is_one_page_that_needs_nothing_else(run):
    text = (run / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.fetched == []
    assert "url(" not in re.sub(r"url\(#[^)]*\)", "", text)
    assert page.headings == [
        "Data",
        "Protocol",
        "Figures",
        "Curves",
        "Feature importance",
        "Single decisions",
        "Tuning",
        "Drift of the test part against validation",
        "Limits",
    ]
    for wanted in (
        "Receiver operating",
        "Precision and recall",
        "Calibration",
        "Alert budget",
        "SHAP values",
        "Dependence on",
        "Fraud with the highest score",
        "Missed fraud with the lowest score",
        "Objective by trial",
    ):
        assert any(caption.startswith(wanted) for caption in page.captions), wanted
    # One drawing to each caption, and every figure of the bundle's test part is told.
    assert text.count("<svg") == len(page.captions)
    assert f"{Bundle.load(run / 'bundle').metrics['test']['auc']:.4f}" in text


def test_the_card_lies_in_the_bundle_and_tells_its_figures(run):
    card = (run / "bundle" / "model-card.md").read_text()
    bundle = Bundle.load(run / "bundle")
    assert bundle.model_version in card
    assert f"AUC {bundle.metrics['test']['auc']:.4f}" in card
    assert "Out of scope" in card
    assert "Limits" in card


def test_profiles_travel_in_the_bundle(run):
    bundle = Bundle.load(run / "bundle")
    assert [profile.entity for profile in bundle.spec.entities] == ["device", "merchant"]
    assert bundle.spec.entities[1].label_delay_days == 9.0
    assert {"device_count_1d", "device_count_30d", "merchant_fraud_count_30d"} < set(bundle.spec.names)
    # 7 and 7.0 days are the same profile, with the same hash.
    (run / "floats.toml").write_text(PROFILES.replace("[1, 30]", "[1.0, 30.0]").replace("[30]", "[30.0]"))
    assert load_profiles(str(run / "floats.toml"), label_delay_days=7.0) == bundle.spec.entities


def test_wrong_profiles_are_refused_by_name(tmp_path):
    assert set(SHIPPED) == {"accounts", "cards"}
    for text, reason in (
        ("x = 1", "must contain"),
        ("[[entities]]\nentity = 'shop'", "number 1: entity 'shop'"),
        ("[[entities]]\nentity = 'device'\nwindow = [1]", "number 1: entities"),
        (PROFILES.replace("= 9", "= 3"), "number 2: label_delay_days 3 is shorter"),
        ("[[", "cannot be read"),
    ):
        (tmp_path / "p.toml").write_text(text)
        with pytest.raises(ConfigError, match=reason):
            load_profiles(str(tmp_path / "p.toml"), label_delay_days=7.0)
    with pytest.raises(ConfigError, match="the shipped profiles are accounts, cards"):
        load_profiles(str(tmp_path / "nowhere"), label_delay_days=7.0)


def test_the_study_is_told_in_the_parameters(run):
    found = json.loads((run / "best.json").read_bytes())
    assert [trial["number"] for trial in found["study"]["trials"]] == [0, 1]
    assert found["study"]["objective"] == "money"
    assert found["study"]["value"] == max(trial["objective"] for trial in found["study"]["trials"])
    assert sum(found["study"]["importances"].values()) == pytest.approx(1.0)


def test_the_stability_index_tells_a_shift():
    rng = np.random.default_rng(0)
    column = rng.normal(size=2_000)
    known = reference_statistics(column[:, None], ("x",), (), column)["features"]["x"]
    assert stability_index(known, rng.normal(size=2_000)) < 0.05
    assert stability_index(known, rng.normal(1.5, size=2_000)) > 0.5
    assert stability_index(known, np.where(rng.random(2_000) < 0.5, np.nan, column)) > 0.5
