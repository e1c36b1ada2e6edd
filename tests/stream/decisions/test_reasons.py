"""Reasons: the strongest first, each in a sentence, whatever the value."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from stream.decisions.reasons import Explainer
from stream.features.spec import HISTORY_FEATURES, FeatureSpec
from support.bundles import made_bundle, model_text, trained_bundle
from support.pipelines import FEATURES, parsed, record, run, simulated_records, transaction

if TYPE_CHECKING:
    from stream.scoring.bundle import Bundle

# --- reasons -------------------------------------------------------------------------------------------

SPEC = FeatureSpec(
    {"channel": ("web", "pos"), "transaction_type": ("purchase",), "device": ("ios",)},
    ("age", "velocity_24h", "merchant_code", "amount_sum_7d"),
    ("device",),
)


def rows_of_a_file() -> list[dict[str, float]]:
    """Return real rows: first transactions, busy users and everything between, and doctored ones."""
    effects = run(simulated_records(range(1_500)), trained_bundle())
    rows = []
    for body in parsed(effects.decisions)[::37]:
        features = {name: math.nan if value is None else value for name, value in body["features"].items()}
        rows.append({name: features.get(name, 1.5) for name in SPEC.names})
    for value in (math.nan, 0.0, 1.0, 1e13, 0.004):
        rows += [dict.fromkeys(SPEC.names, value) | {"day_of_week": 6.0, "channel_code": -1.0}]
        rows += [row | dict.fromkeys(HISTORY_FEATURES, value) for row in rows[:1]]
    return rows


@pytest.fixture(scope="module")
def rows() -> list[dict[str, float]]:
    return rows_of_a_file()


def explain(row: dict[str, float], contributions: dict[str, float], most: int = 5) -> list[dict[str, Any]]:
    moved = np.array([*(contributions.get(name, 0.0) for name in SPEC.names), -3.0])
    return Explainer(SPEC, most).reasons(np.array([row[name] for name in SPEC.names]), moved)


@pytest.mark.parametrize("name", SPEC.names)
def test_every_feature_has_a_sentence(name: str, rows: list[dict[str, float]]) -> None:
    values = [row[name] for row in rows] + [math.nan, 0.0, 1.0, 2.0, 12.345, 3_700.0, 200_000.0, 1e13, -1.0]
    if name == "day_of_week":
        values = [float(day) for day in range(7)]
    if name.startswith(("transaction_count", "merchant_distinct", "amount_", "lifetime", "balance")):
        values = [value for value in values if not value < 0 or "zscore" in name or "balance" in name]
    for row in rows:
        for value in values:
            (reason,) = explain(row | {name: value}, {name: 0.25})
            assert set(reason) == {"feature", "value", "usual", "contribution", "sentence"}
            assert (reason["feature"], reason["contribution"]) == (name, 0.25)
            assert len(reason["sentence"]) > 5
            assert not re.search(r"\b(nan|inf|None)\b", reason["sentence"]), reason["sentence"]
            assert "_" not in reason["sentence"] or math.isnan(value), reason["sentence"]
            json.dumps(reason, allow_nan=False)
            if name not in SPEC.categorical:
                assert reason["value"] == (None if math.isnan(value) else round(value, 6))


def test_reasons_are_the_strongest_first(rows: list[dict[str, float]]) -> None:
    moved = {"amount": 0.1, "hour": 0.4, "lifetime_count": -2.0, "amount_sum_1h": 0.3, "is_weekend": 0.0}
    reasons = explain(rows[0], moved)
    assert [reason["feature"] for reason in reasons] == ["hour", "amount_sum_1h", "amount"]
    assert [reason["feature"] for reason in explain(rows[0], moved, most=2)] == ["hour", "amount_sum_1h"]
    assert explain(rows[0], {}) == []


def test_alerts_carry_reasons_in_order_that_move_the_score(bundle: Bundle) -> None:
    alerts = parsed(
        run(simulated_records(range(2_000)), bundle, dataclasses.replace(FEATURES, max_reasons=4)).alerts
    )
    counts = set()
    for alert in alerts:
        moved = [reason["contribution"] for reason in alert["reasons"]]
        assert moved == sorted(moved, reverse=True)
        assert all(value >= 0 for value in moved)
        counts.add(len(moved))
    assert max(counts) == 4


def test_a_text_that_training_never_saw_is_called_that(rows: list[dict[str, float]]) -> None:
    (reason,) = explain(rows[0] | {"attributes.device_code": -1.0}, {"attributes.device_code": 1.0})
    assert reason["sentence"] == "device is a value that training never saw"
    (reason,) = explain(rows[0] | {"attributes.device_code": 0.0}, {"attributes.device_code": 1.0})
    assert (reason["sentence"], reason["value"]) == ("device is ios", "ios")


@pytest.mark.parametrize("name", ["velocity_24h", "amount_sum_7d"])
def test_an_attribute_named_like_a_window_is_not_taken_for_one(
    name: str, rows: list[dict[str, float]]
) -> None:
    (reason,) = explain(rows[0] | {f"attributes.{name}": 3.0}, {f"attributes.{name}": 1.0})
    assert reason["sentence"] == f"{name.replace('_', ' ')} is 3"


def test_an_amount_of_nothing_does_not_hide_the_others(bundle: Bundle) -> None:
    """The mean is 0 and no ratio to it is defined; there are other transactions all the same."""
    effects = run([record(at, transaction(at, amount=0)) for at in range(3)], bundle)
    features = parsed(effects.decisions)[-1]["features"]
    row = {name: math.nan if features.get(name) is None else features[name] for name in SPEC.names}
    assert row["transaction_count_30d"] == 3.0
    for name in ("amount", "amount_to_mean_7d", "amount_to_mean_30d"):
        (reason,) = explain(row, {name: 1.0})
        assert "no other transaction" not in reason["sentence"]


def test_a_model_that_looks_at_a_number_named_like_a_code_explains_it() -> None:
    made = made_bundle(("merchant_code",))
    rng = np.random.default_rng(2)
    import lightgbm

    rows = rng.normal(size=(300, len(made.spec.names)))
    place = made.spec.names.index("attributes.merchant_code")
    data = lightgbm.Dataset(rows, (rows[:, place] > 0).astype(int))
    params = {"objective": "binary", "verbose": -1, "num_threads": 1}
    looking = dataclasses.replace(made, model_text=lightgbm.train(params, data, 20).model_to_string())
    assert looking.model_text != model_text(len(made.spec.names))
    effects = run([record(0, transaction(attributes={"merchant_code": 3}))], looking)
    (alert,) = parsed(effects.alerts)
    assert alert["reasons"][0]["sentence"] == "merchant code is 3"
