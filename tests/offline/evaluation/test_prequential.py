from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from click.testing import CliRunner

from offline.data.writers import write_table
from offline.evaluation.prequential import (
    Protocol,
    card_precision,
    evaluate_weeks,
    first_week,
    fold_metrics,
    knowledge_scores,
    week_fold,
    weekly_features,
)
from offline.features.build import build_features, fit_spec
from offline.simulation.simulator import Simulation, simulate
from offline.training.imbalance import IMBALANCES, balance
from offline.training.recipes import CARDS, fit_booster
from stream.cli.commands.evaluate import evaluate
from stream.errors import ConfigError, DataError

DAY_MS = 86_400_000
RECIPE = dataclasses.replace(CARDS, trees=40)


@pytest.fixture(scope="module")
def table():
    return simulate(Simulation(transactions=12_000, seed=3, fraud_rate=0.04, days=60))


@pytest.fixture(scope="module")
def first_week_ms(table):
    return int(table.event_time_ms.min()) // DAY_MS * DAY_MS + 42 * DAY_MS


def test_a_fold_is_that_of_the_handbook(table, first_week_ms):
    """Against the protocol's rules taken row by row."""
    delay_ms = 7 * DAY_MS
    fold = week_fold(table, first_week_ms, label_delay_ms=delay_ms, training_days=20)
    frauds = [
        (user, when)
        for user, when, fraud in zip(
            table.user_id.tolist(), table.event_time_ms.tolist(), table.is_fraud.tolist(), strict=True
        )
        if fraud
    ]
    for row in range(len(table)):
        when, user = int(table.event_time_ms[row]), table.user_id[row]
        learnt = (
            first_week_ms - 27 * DAY_MS <= when < first_week_ms - delay_ms
            and table.label_time_ms[row] < first_week_ms
        )
        assert fold.train[row] == learnt
        day = (when - first_week_ms) // DAY_MS
        blocked = any(
            who == user and first_week_ms - 14 * DAY_MS <= at and (at - first_week_ms) // DAY_MS <= day - 8
            for who, at in frauds
        )
        assert fold.test[row] == (0 <= day < 7 and not blocked)


def test_a_training_part_without_blocked_cards_lacks_what_the_test_weeks_lack(table, first_week_ms):
    """Against the rule taken row by row: a fraud of the user between 14 and 8 days before the row's day."""
    options = {"label_delay_ms": 7 * DAY_MS, "training_days": None}
    whole = week_fold(table, first_week_ms, **options)
    without = week_fold(table, first_week_ms, without_blocked=True, **options)
    np.testing.assert_array_equal(without.test, whole.test)
    day = (table.event_time_ms - first_week_ms) // DAY_MS
    known = whole.train & (table.is_fraud == 1)
    frauds = {}
    for row in np.flatnonzero(known).tolist():
        frauds.setdefault(table.user_id[row], []).append(int(day[row]))
    expected = whole.train.copy()
    for row in np.flatnonzero(whole.train).tolist():
        ages = [int(day[row]) - at for at in frauds.get(table.user_id[row], ())]
        expected[row] = not any(8 <= age <= 14 for age in ages)
    np.testing.assert_array_equal(without.train, expected)
    assert 0 < without.train.sum() < whole.train.sum()


def test_card_precision_is_that_of_the_handbook():
    """Two days, two cards looked at a day: a card that was found is not looked at again."""
    day = np.array([0, 0, 0, 0, 1, 1, 1])
    card = np.array([0, 0, 1, 2, 0, 1, 2])
    fraud = np.array([True, False, False, True, True, True, False])
    scores = np.array([0.9, 0.1, 0.8, 0.2, 0.9, 0.3, 0.4])
    # Day 0: cards 0 (found) and 1; day 1: 0 is gone, so 2 and 1 (found).
    assert card_precision(day, card, fraud, scores, cards=2) == pytest.approx((0.5 + 0.5) / 2)
    # A card is judged by its highest score, and compromised by any fraud of the day.
    assert card_precision(day[:4], card[:4], fraud[:4], np.array([0.0, 1.0, 0.5, 0.4]), cards=1) == 1.0


def test_the_knowing_one_waits_for_the_terminals_first_label(table):
    scenario = np.full(len(table), "0", dtype=np.object_)
    rows = np.flatnonzero(table.merchant_id == next(m for m in table.merchant_id if m))[:1]
    scenario[rows] = "2"
    scenario[5] = "3"
    scores = knowledge_scores(table, scenario, 7 * DAY_MS)
    assert scores[5] == 2.0
    assert scores[rows[0]] < 1.0


def test_the_future_changes_no_fold_before_it(table, first_week_ms):
    """Labels and amounts of the second week on are turned round: the first week's figures stay."""
    protocol = Protocol(first_week_ms, 1)
    before = evaluate_weeks(table, RECIPE, protocol)
    later = table.event_time_ms >= first_week_ms + 7 * DAY_MS
    assert later.any()
    other = dataclasses.replace(
        table,
        is_fraud=np.where(later, 1 - table.is_fraud, table.is_fraud).astype(np.int8),
        amount_minor=np.where(later, table.amount_minor * 3 + 1, table.amount_minor),
    )
    assert evaluate_weeks(other, RECIPE, protocol)["folds"] == before["folds"]
    assert before["mean"]["auc"] > 0.85


def test_labels_that_are_not_known_yet_reach_neither_model_nor_features(table, first_week_ms):
    """Labels that become known after the test week begins: turning them round moves no score of its first day."""
    delay_ms = 7 * DAY_MS
    known = np.maximum(table.label_time_ms, table.event_time_ms + delay_ms) < first_week_ms
    other = dataclasses.replace(
        table, is_fraud=np.where(known, table.is_fraud, 1 - table.is_fraud).astype(np.int8)
    )
    protocol = Protocol(first_week_ms, 1)
    fold = week_fold(table, first_week_ms, label_delay_ms=delay_ms, training_days=None)
    first_minute = (table.event_time_ms >= first_week_ms - DAY_MS) & (table.event_time_ms < first_week_ms)
    scores = []
    for world in (table, other):
        spec, built = weekly_features(world, RECIPE, protocol)
        booster = fit_booster(RECIPE, spec, built.matrix[fold.train], world.is_fraud[fold.train])
        scores.append(booster.predict(built.matrix[first_minute], num_threads=1))
    assert first_minute.any()
    np.testing.assert_array_equal(scores[0], scores[1])


def test_shuffled_labels_teach_nothing(table, first_week_ms):
    shuffled = np.random.default_rng(1).permutation(table.is_fraud)
    result = evaluate_weeks(dataclasses.replace(table, is_fraud=shuffled), RECIPE, Protocol(first_week_ms, 2))
    assert result["mean"]["auc"] == pytest.approx(0.5, abs=0.08)


def test_a_signal_of_the_test_week_only_is_not_used(table, first_week_ms):
    planted = np.where(table.event_time_ms >= first_week_ms, table.is_fraud, 0).astype(np.float64)
    leaky = dataclasses.replace(table, attributes={"leak": planted})
    found = evaluate_weeks(leaky, RECIPE, Protocol(first_week_ms, 1))
    assert found["mean"]["auc"] < 0.995


def test_resampling_is_of_the_training_part_only_and_real_rows_stay(table, first_week_ms):
    fold = week_fold(table, first_week_ms, label_delay_ms=7 * DAY_MS, training_days=None)
    spec = fit_spec(table, fold.train)
    matrix = build_features(table, spec, allowed_lateness_ms=0).matrix[fold.train]
    labels = table.is_fraud[fold.train]
    codes = [place for place, name in enumerate(spec.names) if name in spec.categorical]
    for kind in IMBALANCES:
        part = balance(kind, matrix, labels, categorical=codes, ratio=0.1)
        frauds, others = int(part.labels.sum()), int((part.labels == 0).sum())
        if kind in ("smote", "smotenc"):
            np.testing.assert_array_equal(part.matrix[: len(matrix)], matrix)
            assert frauds == round(others * 0.1)
            made = part.matrix[len(matrix) :]
            real = matrix[labels == 1]
            assert (np.nanmax(made, axis=0) <= np.nanmax(matrix, axis=0) + 1e-6).all()
            if kind == "smotenc":
                for code in codes:
                    assert set(made[:, code]) <= set(real[:, code])
        elif kind == "undersample":
            assert frauds == int(labels.sum())
            assert others == round(frauds / 0.1)
        elif kind == "class_weight":
            assert part.weights[part.labels == 1].sum() == pytest.approx(part.weights[part.labels == 0].sum())
        else:
            assert part.matrix is matrix
        again = balance(kind, matrix, labels, categorical=codes, ratio=0.1)
        np.testing.assert_array_equal(part.matrix, again.matrix)
    with pytest.raises(DataError, match="needs more than 5 frauds"):
        balance("smote", matrix, np.where(np.arange(len(labels)) < 3, 1, 0))
    with pytest.raises(ConfigError, match="imbalance ratio"):
        balance("smote", matrix, labels, ratio=0)


def test_the_command_writes_the_figures(tmp_path, table):
    write_table(table, tmp_path / "data.parquet")
    day = datetime.fromtimestamp(int(table.event_time_ms.min()) / 1000, UTC).date() + timedelta(days=42)
    options = ["--data", str(tmp_path / "data.parquet"), "--first-test-week", day.isoformat(), "--folds", "2"]
    done = CliRunner().invoke(evaluate, [*options, "--json", str(tmp_path / "figures.json")])
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "figures.json").read_bytes())
    assert [fold["week"] for fold in figures["folds"]] == [str(day), str(day + timedelta(days=7))]
    names = {
        "auc",
        "average_precision",
        "card_precision_100",
        "card_precision_100_ceiling",
        "recall_by_scenario",
    }
    assert names < set(figures["folds"][0])
    assert names == set(figures["mean"]) == set(figures["std"])
    # The recipe as it was frozen, with its own way with imbalance, where no other is asked for.
    assert figures["config"]["recipe"] == json.loads(json.dumps(CARDS.to_json()))
    late = CliRunner().invoke(evaluate, [*options[:3], "2031-01-01"])
    assert isinstance(late.exception, DataError)
    assert "choose another --first-test-week" in str(late.exception)
    assert CliRunner().invoke(evaluate, [*options[:3], "soon"]).exit_code == 2


def test_the_first_weeks_model_is_the_one_that_is_judged(table, first_week_ms):
    protocol = Protocol(first_week_ms, 2)
    features = weekly_features(table, RECIPE, protocol)
    fold, booster = first_week(table, RECIPE, protocol, features)
    judged = fold_metrics(table, fold, booster.predict(features[1].matrix[fold.test], num_threads=1))
    assert judged == evaluate_weeks(table, RECIPE, protocol, features=features)["folds"][0]
