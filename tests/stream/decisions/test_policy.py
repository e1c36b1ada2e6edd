"""Levels, alerts and alert ids."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.decisions.policy import Policy, alert_id
from stream.events.models import RiskLevel
from stream.scoring.bundle import Thresholds


def test_alert_ids_are_those_of_user_and_transaction() -> None:
    assert re.fullmatch("[0-9a-f]{32}", alert_id("u", "t"))
    pairs = [
        ("u", "t"),
        ("t", "u"),
        ("ut", ""),
        ("", "ut"),
        ("u1", "1t"),
        ("u", "11t"),
        ("u11", "t"),
        ("ü", "t"),
    ]
    assert len({alert_id(*pair) for pair in pairs}) == len(pairs)
    assert alert_id("user-1", "tx-1") == "4fc9aa8c9c75c73bce9a5ee5fdab66a8"  # also in the next release


@settings(derandomize=True, database=None, deadline=None)
@given(st.text(max_size=9), st.text(max_size=9), st.text(max_size=9), st.text(max_size=9))
def test_two_transactions_have_two_alert_ids(user: str, one: str, other_user: str, other: str) -> None:
    assert (alert_id(user, one) == alert_id(other_user, other)) == ((user, one) == (other_user, other))


# --- policy --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "level", "prediction"),
    [
        (0.0, "LOW", 0),
        (0.3, "LOW", 0),
        (0.30004, "LOW", 0),
        (0.30006, "MEDIUM", 0),
        (0.49994, "MEDIUM", 0),
        (0.5, "MEDIUM", 1),
        (0.7, "MEDIUM", 1),
        (0.70004, "MEDIUM", 1),
        (0.7001, "HIGH", 1),
        (1.0, "HIGH", 1),
    ],
)
def test_levels_begin_above_their_threshold(score: float, level: str, prediction: int) -> None:
    verdict = Policy(Thresholds()).judge(score)
    assert (verdict.score, verdict.level, verdict.prediction) == (round(score, 4), level, prediction)
    assert verdict.alert == (level != "LOW")


@pytest.mark.parametrize(
    ("alert_level", "alerts"), [("LOW", [1, 1, 1, 1]), ("MEDIUM", [0, 1, 1, 1]), ("HIGH", [0, 0, 1, 1])]
)
def test_alerts_begin_at_their_level_and_at_a_predicted_fraud(alert_level: str, alerts: list[int]) -> None:
    policy = Policy(Thresholds(high=0.7, medium=0.3, prediction=0.6), RiskLevel(alert_level))
    assert [policy.judge(score).alert for score in (0.2, 0.5, 0.6, 0.8)] == alerts


def test_a_low_threshold_of_prediction_alerts_at_low_risk() -> None:
    verdict = Policy(Thresholds(prediction=0.1), RiskLevel.HIGH).judge(0.1)
    assert (verdict.level, verdict.prediction, verdict.alert) == (RiskLevel.LOW, 1, True)
