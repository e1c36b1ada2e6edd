"""Drift: a stream that moved is seen and named; one that did not raises no alarm, however long it is."""

from __future__ import annotations

import numpy as np
import pytest

from offline.training.drift_reference import reference_statistics
from stream.monitoring.drift import PSI_THRESHOLD, Drift, Found, choose_watched
from stream.monitoring.metrics import Metrics
from stream.runtime.wiring import drift_of
from stream.settings import Settings
from support.bundles import made_bundle, trained_bundle

NAMES = ("amount", "amount_sum_7d", "amount_zscore_30d", "channel_code", "hour", "balance_change_ratio")
WATCHED = ("amount", "amount_sum_7d", "amount_zscore_30d", "balance_change_ratio")


def transactions(count: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Heavy tails, correlated columns, missing values, a category and a score: as a stream has them."""
    random = np.random.default_rng(seed)
    amount = random.lognormal(3.0 + shift, 1.2, count)
    features = np.column_stack(
        [
            amount,
            amount + random.lognormal(4, 1, count),
            random.standard_t(3, count),
            random.choice([-1.0, 0.0, 1.0, 2.0], count, p=[0.01, 0.6, 0.3, 0.09]),
            random.integers(0, 24, count),
            np.where(random.random(count) < 0.2, np.nan, random.normal(size=count)),
        ]
    )
    return features, random.beta(0.3, 6, count)


def made(window: int = 10_000) -> Drift:
    features, scores = transactions(20_000, 1)
    reference = reference_statistics(features, NAMES, ("channel_code",), scores)
    return Drift(reference, NAMES, WATCHED, window)


def observe(drift: Drift, features: np.ndarray, scores: np.ndarray, size: int = 2_000) -> list[Found]:
    return [
        found
        for start in range(0, len(scores), size)
        for found in drift.observe(features[start : start + size], scores[start : start + size])
    ]


def alarms(found: list[Found]) -> set[tuple[str, str]]:
    return {alarm for one in found for alarm in one.alarms}


def test_a_million_transactions_that_do_not_move_raise_no_alarm() -> None:
    drift = made()
    windows = 0
    for part in range(10):
        found = observe(drift, *transactions(100_000, 100 + part))
        assert not alarms(found)
        windows += sum(one.windows for one in found)
        assert max(max(one.psi.values()) for one in found if one.psi) < 0.02
    assert windows == 100


def test_a_shift_is_seen_and_named() -> None:
    drift = made()
    assert not alarms(observe(drift, *transactions(30_000, 2)))
    found = observe(drift, *transactions(20_000, 3, shift=0.8))
    seen = alarms(found)
    assert {("amount", "psi"), ("amount", "adwin"), ("amount", "page_hinkley")} <= seen
    assert not {name for name, _ in seen} - {"amount", "amount_sum_7d"}
    psi = next(one.psi for one in found if one.psi)
    assert psi["amount"] > PSI_THRESHOLD > psi["amount_zscore_30d"]


def test_a_moved_score_is_seen_within_two_thousand_transactions() -> None:
    drift = made()
    features, scores = transactions(30_000, 4)
    assert not alarms(observe(drift, features, scores))
    features, scores = transactions(2_000, 5)
    seen = alarms(observe(drift, features, np.sqrt(scores)))
    assert {("score", "adwin"), ("score", "page_hinkley")} & seen


def test_categories_and_missing_values_move_too() -> None:
    drift = made()
    features, scores = transactions(10_000, 6)
    features[:4_000, 3] = 7.0  # a code that training never saw
    features[:, 5] = np.nan
    seen = alarms(observe(drift, features, scores))
    assert {("channel_code", "psi"), ("balance_change_ratio", "psi")} <= seen


def test_what_moves_by_nature_is_told_but_is_no_alarm() -> None:
    drift = made()
    features, scores = transactions(10_000, 7)
    features[:, 4] = 3.0  # an hour's transactions
    found = observe(drift, features, scores)
    assert found[-1].psi["hour"] > PSI_THRESHOLD
    assert not alarms(found)


@pytest.mark.parametrize("size", [1, 7, 499, 5_000])
def test_the_size_of_rounds_changes_nothing(size: int) -> None:
    features, scores = transactions(4_000, 8)
    expected = observe(made(1_000), features, scores, 4_000)
    assert observe(made(1_000), features, scores, size) == expected
    assert sum(one.windows for one in expected) == 4


def test_psi_is_that_of_the_textbook() -> None:
    features, scores = transactions(50_000, 9)
    reference = reference_statistics(features, NAMES, ("channel_code",), scores)
    drift = Drift(reference, NAMES, (), 50_000)
    moved, scores = transactions(50_000, 10, shift=0.5)
    found = observe(drift, moved, scores)[-1]
    edges = reference["features"]["amount"]["edges"]
    expected = np.array(reference["features"]["amount"]["shares"])
    actual = np.bincount(np.searchsorted(edges, moved[:, 0]), minlength=len(expected)) / len(moved)
    textbook = float(((actual - expected) * np.log(actual / expected)).sum())
    assert found.psi["amount"] == pytest.approx(textbook, abs=1e-3)


def test_the_trained_bundle_says_what_to_watch() -> None:
    bundle = trained_bundle()
    watched = choose_watched(bundle.reference, bundle.training["gains"])
    assert len(watched) == 4
    assert not {"hour", "day_of_week", "lifetime_count", "channel_code"} & set(watched)
    assert drift_of(Settings(), bundle) is not None
    assert drift_of(Settings(drift={"enabled": False}), bundle) is None


def test_a_bundle_without_reference_is_served_all_the_same() -> None:
    assert drift_of(Settings(), made_bundle()) is None


def test_metrics_name_the_features_that_moved() -> None:
    metrics = Metrics("model", "spec", drift=made(1_000))
    features, scores = transactions(1_000, 11, shift=3.0)
    metrics.see(features, scores)
    text = metrics.render().decode()
    assert 'riskstream_drift_alarms_total{feature="amount",method="psi"} 1.0' in text
    assert 'riskstream_drift_alarms_total{feature="score",method="psi"} 0.0' in text
    assert 'riskstream_drift_psi{feature="amount"}' in text
    assert "riskstream_drift_windows_total 1.0" in text
