"""Another generator's data by a mapping alone: ``tests/data/synccfd.parquet``, made with synccfd 0.1.0.

It holds the first 70 days of 50 of 600 customers, of
``DatasetGenerator(n_customers=600, n_terminals=1200, nb_days=90, start_date="2025-01-01", random_state=5)``.
"""

from __future__ import annotations

import json

import lightgbm
import numpy as np
import pytest
from click.testing import CliRunner

from offline.data.readers import read_transactions
from offline.features.build import build_features
from stream.cli.commands.evaluate import evaluate
from stream.cli.commands.inspect import inspect
from stream.cli.commands.train import train
from stream.scoring.bundle import Bundle
from support.paths import ROOT, TESTS

DATA = TESTS / "data" / "synccfd.parquet"
MAPPING = ROOT / "docs" / "examples" / "synccfd.toml"
OPTIONS = ["--data", str(DATA), "--mapping", str(MAPPING)]


def test_extra_columns_are_features_and_the_report_is_about_them(tmp_path):
    done = CliRunner().invoke(
        train,
        [
            *OPTIONS,
            *("--profiles", "accounts", "--trees", "40", "--output", str(tmp_path / "bundle")),
            *("--report", str(tmp_path / "report.html")),
        ],
    )
    assert done.exit_code == 0, done.output
    # It has no devices, which the profile of that name would be of.
    assert "The file has no column for device: this profile is left out." in done.output
    assert "The model uses profiles of user, merchant; workers" in " ".join(done.output.split())
    bundle = Bundle.load(tmp_path / "bundle")
    assert [profile.entity for profile in bundle.spec.entities] == ["user", "merchant"]
    assert {"attributes.terminal_latitude", "attributes.shipping_longitude"} < set(bundle.spec.names)
    assert "SCENARIO" not in "".join(bundle.spec.names).upper()
    assert bundle.metrics["test"]["auc"] > 0.75
    assert "attributes.terminal_latitude" in (tmp_path / "report.html").read_text()
    table = read_transactions(DATA, mapping=MAPPING)
    assert table.attributes["terminal_latitude"].shape == (len(table),)
    rows = build_features(table, bundle.spec, allowed_lateness_ms=bundle.allowed_lateness_ms or 0)
    scores = lightgbm.Booster(model_str=bundle.model_text).predict(rows.matrix[rows.outcome == 0])
    assert np.isfinite(scores).all()


def test_evaluate_tells_its_scenarios(tmp_path):
    done = CliRunner().invoke(
        evaluate,
        [
            *OPTIONS,
            *("--first-test-week", "2025-02-19", "--folds", "2"),
            *("--json", str(tmp_path / "figures.json")),
        ],
    )
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "figures.json").read_bytes())
    # Most of the few frauds of so small a part are at terminals that nobody else here knows.
    assert found["mean"]["average_precision"] > 3 * sum(f["frauds"] / f["rows"] for f in found["folds"]) / 2
    assert found["mean"]["recall_by_scenario"]["4"] > 0.5
    # The ceiling is of the Handbook's scenarios only.
    assert "knowledge_ceiling" not in found


def test_what_is_odd_about_it_is_told():
    done = CliRunner().invoke(inspect, OPTIONS)
    assert done.exit_code == 0, done.output
    # Its frauds of some scenarios are moved in time and stay where they were in the file.
    assert "is older than the previous row of the same user" in done.output
    with pytest.raises(SystemExit, match="2"):
        inspect([*OPTIONS, "--nonsense"])
