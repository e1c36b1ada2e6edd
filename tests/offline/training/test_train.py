from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import lightgbm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.features.build import build_features
from offline.metrics import best_f1_threshold, binary_metrics, precision_threshold
from offline.simulation.simulator import Simulation, simulate
from offline.training.drift_reference import reference_statistics
from offline.training.split import split_by_time
from offline.training.train import TrainingOptions, train
from stream.errors import ConfigError, DataError
from stream.scoring.bundle import Bundle

DAY_MS = 86_400_000
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
OPTIONS = TrainingOptions(trees=60, leaves=15)


@pytest.fixture(scope="module")
def table():
    return simulate(Simulation(transactions=15_000, seed=11, fraud_rate=0.03))


@pytest.fixture(scope="module")
def result(table):
    return train(table, OPTIONS, now=NOW)


def test_the_bundle_comes_back_and_scores_the_same(tmp_path, table, result):
    result.bundle.save(tmp_path / "bundle")
    loaded = Bundle.load(tmp_path / "bundle")
    assert loaded == result.bundle
    assert loaded.model_version.startswith("20260601T120000Z-")
    matrix = build_features(table, loaded.spec, allowed_lateness_ms=loaded.allowed_lateness_ms).matrix
    scores = lightgbm.Booster(model_str=loaded.model_text).predict(matrix[result.split.test], num_threads=1)
    again = binary_metrics(table.is_fraud[result.split.test], scores, loaded.thresholds.prediction)
    assert again == loaded.metrics["test"]


def test_the_bundle_has_nothing_pickled(tmp_path, result):
    result.bundle.save(tmp_path / "bundle")
    assert sorted(path.name for path in (tmp_path / "bundle").iterdir()) == [
        "bundle.json",
        "manifest.json",
        "model.txt",
    ]
    for path in (tmp_path / "bundle").iterdir():
        path.read_text(encoding="utf-8")


def test_training_is_reproducible(table, result):
    again = train(table, OPTIONS, now=NOW)
    assert again.bundle == result.bundle


def test_it_learns(result):
    assert result.bundle.metrics["test"]["auc"] > 0.85
    assert result.bundle.training["seed"] == 7
    assert result.bundle.training["versions"]["lightgbm"] == lightgbm.__version__


@settings(deadline=None, max_examples=25)
@given(st.floats(0.1, 0.4), st.floats(0.05, 0.3), st.integers(0, 15))
def test_the_split_is_in_the_order_of_time_with_its_gaps(test_fraction, validation_fraction, delay_days):
    table = simulate(Simulation(transactions=3_000, seed=5, fraud_rate=0.1))
    delay_ms = delay_days * DAY_MS
    split = split_by_time(
        table, test_fraction=test_fraction, validation_fraction=validation_fraction, label_delay_ms=delay_ms
    )
    times = table.event_time_ms
    labels_known = table.label_time_ms
    assert not (split.train & split.validation).any()
    assert not (split.validation & split.test).any()
    assert times[split.train].max() < split.validation_start_ms - delay_ms
    assert labels_known[split.train].max() < split.validation_start_ms <= times[split.validation].min()
    assert times[split.validation].max() < split.test_start_ms - delay_ms
    assert labels_known[split.validation].max() < split.test_start_ms <= times[split.test].min()


def test_train_until_is_where_the_test_begins(table):
    moment = int(table.event_time_ms[9_000])
    split = split_by_time(table, train_until_ms=moment)
    assert split.test_start_ms == moment
    assert times_before(table, split.train | split.validation, moment)


def times_before(table, rows, moment):
    return bool((table.event_time_ms[rows] < moment).all())


def test_rows_without_a_label_are_in_no_part(table):
    labels = table.is_fraud.copy()
    labels[::3] = -1
    split = split_by_time(dataclasses.replace(table, is_fraud=labels))
    assert not (split.train | split.validation | split.test)[::3].any()


def test_a_file_without_labels_or_too_short_says_so(table):
    with pytest.raises(DataError, match="no labels"):
        split_by_time(dataclasses.replace(table, is_fraud=None))
    with pytest.raises(DataError, match="label-delay"):
        split_by_time(table, label_delay_ms=1000 * DAY_MS)
    with pytest.raises(DataError, match="needs both kinds"):
        split_by_time(dataclasses.replace(table, is_fraud=np.zeros(len(table), dtype=np.int8)))


def test_a_signal_that_only_the_future_has_is_not_used(table, result):
    """Tell the truth in an attribute of the test part only: training must not notice, nor the spec."""
    truth = np.where(table.is_fraud == 1, "yes", "no").astype(object)
    numbers = table.is_fraud.astype(np.float64)
    truth[~result.split.test] = "no"
    numbers[~result.split.test] = 0.0
    leaky = dataclasses.replace(table, attributes={"leak": numbers, "told": truth})
    trained = train(leaky, OPTIONS, now=NOW)
    assert trained.bundle.spec.categories["told"] == ("no",)
    assert {name: gain for name, gain in trained.gains if name.startswith("attributes.")} == {
        "attributes.leak": 0.0,
        "attributes.told_code": 0.0,
    }
    assert trained.bundle.metrics["test"]["auc"] < 0.995


def test_changing_the_future_changes_neither_model_nor_threshold(table, result):
    labels = table.is_fraud.copy()
    labels[result.split.test] = np.random.default_rng(0).permutation(labels[result.split.test])
    amounts = table.amount_minor.copy()
    amounts[result.split.test] *= 3
    other = train(dataclasses.replace(table, is_fraud=labels, amount_minor=amounts), OPTIONS, now=NOW)
    assert other.bundle.model_text == result.bundle.model_text
    assert other.bundle.thresholds == result.bundle.thresholds
    assert other.bundle.spec == result.bundle.spec
    assert other.bundle.reference == result.bundle.reference
    assert other.bundle.metrics["test"] != result.bundle.metrics["test"]


def test_shuffled_labels_teach_nothing(table):
    shuffled = np.random.default_rng(3).permutation(table.is_fraud)
    trained = train(dataclasses.replace(table, is_fraud=shuffled), OPTIONS, now=NOW)
    assert abs(trained.bundle.metrics["test"]["auc"] - 0.5) < 0.12


def test_metrics_of_known_scores():
    figures = binary_metrics(np.array([1, 1, 0, 0, 0]), np.array([0.9, 0.4, 0.6, 0.1, 0.2]), 0.5)
    assert figures["confusion"] == {
        "true_positive": 1,
        "false_positive": 1,
        "true_negative": 2,
        "false_negative": 1,
    }
    assert (figures["precision"], figures["recall"], figures["f1"]) == (0.5, 0.5, 0.5)
    assert figures["auc"] == pytest.approx(5 / 6)
    assert binary_metrics(np.zeros(3), np.zeros(3), 0.5)["auc"] is None


@pytest.mark.parametrize(
    ("labels", "scores"),
    [([0, 2], [0.1, 0.2]), ([0, 1], [0.1, np.nan]), ([0, 1], [0.1]), ([0, -1], [0.1, 0.2])],
)
def test_metrics_refuse_nonsense(labels, scores):
    with pytest.raises(ValueError, match="must"):
        binary_metrics(np.array(labels), np.array(scores), 0.5)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=1, max_size=60))
def test_the_best_f1_threshold_is_the_best(pairs):
    labels = np.array([label for label, _ in pairs], dtype=np.int8)
    scores = np.array([score / 20 for _, score in pairs])
    best = binary_metrics(labels, scores, best_f1_threshold(labels, scores))["f1"]
    assert (
        best >= max(binary_metrics(labels, scores, score)["f1"] for score in scores) - 1e-12
        or not labels.any()
    )


def test_a_precision_target_is_reached():
    labels, scores = np.array([0, 1, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.8, 0.9])
    assert precision_threshold(labels, scores, 0.99) == 0.8
    assert precision_threshold(labels, scores, 0.7) == 0.2 or precision_threshold(labels, scores, 0.7) == 0.8


def test_the_reference_is_of_rows_that_were_not_learnt_from(result):
    """Newer ones, windows full, scores no surer than a stream's."""
    columns = result.matrix[result.split.validation]
    expected = reference_statistics(
        columns, result.bundle.spec.names, result.bundle.spec.categorical, columns[:, 0]
    )
    assert result.bundle.reference["features"] == expected["features"]
    assert result.bundle.reference["rows"] == result.split.validation.sum()


@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), min_size=1, max_size=80))
def test_reference_shares_sum_to_one(values):
    column = np.array(values)
    reference = reference_statistics(column[:, None], ("x",), (), np.zeros(len(column)))["features"]["x"]
    there = column[np.isfinite(column)]
    assert len(reference["shares"]) == len(reference["edges"]) + 1
    assert reference["missing"] == pytest.approx(1 - len(there) / len(column))
    if len(there):
        assert sum(reference["shares"]) == pytest.approx(1)
        counts = np.histogram(there, [-np.inf, *np.nextafter(reference["edges"], np.inf), np.inf])[0]
        assert reference["shares"] == pytest.approx((counts / len(there)).tolist())


@pytest.mark.parametrize(
    "wrong",
    [
        {"test_fraction": 0.9, "validation_fraction": 0.2},
        {"leaves": 1},
        {"label_delay_ms": -1},
        {"test_fraction": 0.0},
    ],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ConfigError):
        TrainingOptions(**wrong)
