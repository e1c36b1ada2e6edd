"""A predictor scores alike by compiled trees and by LightGBM itself."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import lightgbm
import numpy as np
import pytest

from stream.scoring.predictor import Predictor
from support.bundles import made_bundle, model_text
from support.checks import check_scorer

if TYPE_CHECKING:
    from stream.scoring.bundle import Bundle


@cache
def of(kind: str) -> Bundle:
    """Return a model that is compiled, one that is not, or one whose explanations are not."""
    bundle = made_bundle()
    features = len(bundle.spec.names)
    if kind == "LightGBM":
        return replace(bundle, model_text=model_text(features, {"zero_as_missing": True}))
    if kind == "compiled scores, LightGBM's explanations":
        rng = np.random.default_rng(1)
        rows = rng.normal(size=(3_000, features))
        data = lightgbm.Dataset(rows, (rows[:, 0] * rows[:, 1] > rows[:, 2]).astype(float))
        params = {"objective": "binary", "verbose": -1, "num_leaves": 90, "num_threads": 1}
        return replace(bundle, model_text=lightgbm.train(params, data, 3).model_to_string())
    return bundle


#: Whether scores and explanations come from compiled trees.
KINDS = {
    "compiled": (True, True),
    "compiled scores, LightGBM's explanations": (True, False),
    "LightGBM": (False, False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_predictor_is_a_scorer(kind: str) -> None:
    bundle = of(kind)
    predictor = Predictor(bundle)
    assert (predictor._trees is not None, predictor._explaining is not None) == KINDS[kind]
    check_scorer(predictor, len(bundle.spec.names))


def test_a_trained_model_is_a_scorer(bundle: Bundle) -> None:
    check_scorer(Predictor(bundle), len(bundle.spec.names))
