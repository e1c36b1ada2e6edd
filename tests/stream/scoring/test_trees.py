"""Compiled trees against LightGBM: the same scores to the last bit, the same SHAP values but for rounding."""

from __future__ import annotations

from functools import cache
from typing import Any

import lightgbm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.scoring.lightgbm_text import UnsupportedModelError
from stream.scoring.trees import CompiledTrees

FEATURES = 9
CATEGORICAL = [3, 4]
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "large": {"num_leaves": 60, "min_data_in_leaf": 3},
    "deep": {"num_leaves": 40, "min_data_in_leaf": 2, "learning_rate": 0.5},
    "stumps": {"num_leaves": 2},
    "one leaf": {"min_data_in_leaf": 3_000},
    "nothing missing": {"use_missing": False},
    "dart": {"boosting": "dart"},
    "sigmoid": {"sigmoid": 2.5},
    "one-hot": {"max_cat_to_onehot": 100},
}
REFUSED: dict[str, dict[str, Any]] = {
    "zero is missing": {"zero_as_missing": True},
    "averaged": {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
    "linear": {"linear_tree": True},
    "not binary": {"objective": "regression"},
}


@cache
def model(name: str) -> tuple[lightgbm.Booster, str]:
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(2_000, FEATURES))
    rows[:, 3] = rng.integers(0, 70, len(rows))
    rows[:, 4] = rng.integers(-1, 5, len(rows))
    rows[:, 5] = np.round(rows[:, 5])
    rows[rng.random(rows.shape) < 0.1] = np.nan
    labels = ((rows[:, 0] > 0) ^ (rows[:, 3] % 3 == 0) ^ (rows[:, 5] > 0)).astype(float)
    parameters = {"objective": "binary", "verbose": -1, "num_threads": 1, "seed": 3}
    parameters |= MODELS.get(name) or REFUSED.get(name) or {}
    data = lightgbm.Dataset(rows, labels, categorical_feature=CATEGORICAL)
    text = lightgbm.train(parameters, data, 12).model_to_string()
    return lightgbm.Booster(model_str=text), text


VALUES = st.one_of(
    st.sampled_from(
        [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-36, -1.0, -0.5, 2.5, 31.0, 32.0, 69.0, 1e10, 3e9]
    ),
    st.floats(-3, 3),
    st.integers(0, 80).map(float),
)


@pytest.mark.parametrize("name", MODELS)
@given(rows=st.lists(st.lists(VALUES, min_size=FEATURES, max_size=FEATURES), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_scores_are_lightgbms(name: str, rows: list[list[float]]) -> None:
    booster, text = model(name)
    matrix = np.array(rows)
    assert np.array_equal(CompiledTrees(text).scores(matrix), booster.predict(matrix, num_threads=1))


@pytest.mark.parametrize("name", MODELS)
def test_contributions_are_lightgbms(name: str) -> None:
    booster, text = model(name)
    trees = CompiledTrees(text)
    assert trees.explains
    rows = trees.trial_rows(150)
    found = trees.contributions(rows)
    np.testing.assert_allclose(
        found, booster.predict(rows, pred_contrib=True, num_threads=1), rtol=1e-9, atol=1e-9
    )
    # They add up to the log-odds, and do not depend on which rows are explained together.
    np.testing.assert_allclose(found.sum(axis=1), booster.predict(rows, raw_score=True), rtol=1e-9, atol=1e-9)
    assert np.array_equal(found[77:78], trees.contributions(rows[77:78]))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_compiled_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedModelError):
        CompiledTrees(model(name)[1])


def test_a_tree_too_large_to_explain_is_scored() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(3_000, 4))
    data = lightgbm.Dataset(rows, (rows[:, 0] * rows[:, 1] > rows[:, 2]).astype(float))
    text = lightgbm.train(
        {"objective": "binary", "verbose": -1, "num_leaves": 90, "num_threads": 1}, data, 3
    ).model_to_string()
    trees = CompiledTrees(text)
    assert not trees.explains
    assert np.array_equal(trees.scores(rows), lightgbm.Booster(model_str=text).predict(rows, num_threads=1))


@pytest.mark.parametrize("text", ["", "tree\n", "tree\nobjective=binary sigmoid:1\n"])
def test_an_unknown_text_is_refused(text: str) -> None:
    with pytest.raises(UnsupportedModelError):
        CompiledTrees(text)
