"""Scores and their explanations, from the bundle's booster.

One thread, rows as float64: with two threads on a busy machine a single prediction's p99 was a hundred
times higher, and a DataFrame costs ten times more than the prediction.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import lightgbm as lgb
import numpy as np

from stream.errors import BundleError

if TYPE_CHECKING:
    import numpy.typing as npt

    from stream.scoring.bundle import Bundle

__all__ = ["Predictor"]


class Predictor:
    """The booster of a bundle.

    Raises
    ------
    BundleError
        LightGBM cannot read the model, or it was made for other features.
    """

    def __init__(self, bundle: Bundle) -> None:
        if (
            not bundle.model_text.startswith("tree\n")
            or re.search(r"^objective=binary", bundle.model_text, re.MULTILINE) is None
        ):
            raise BundleError(f"model {bundle.model_version} is not a LightGBM model of a binary objective")
        try:
            self._booster = lgb.Booster(model_str=bundle.model_text)
        except lgb.basic.LightGBMError as error:
            raise BundleError(f"model {bundle.model_version} cannot be read: {error}") from error
        expected = len(bundle.spec.names)
        if self._booster.num_feature() != expected:
            raise BundleError(
                f"model {bundle.model_version} takes {self._booster.num_feature()} features, "
                f"but its feature spec has {expected}"
            )

    def scores(self, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return each row's probability of fraud, not rounded: float64[n] of float64[n, features]."""
        if not len(rows):
            return np.empty(0)
        scores: npt.NDArray[np.float64] = self._booster.predict(rows, num_threads=1)
        return scores

    def contributions(self, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return SHAP contributions to the log-odds: float64[n, features + 1], the last the expectation.

        Source: TreeSHAP (Lundberg et al., 2020) as LightGBM implements it. Milliseconds a row, so it is
        for alerts only.
        """
        if not len(rows):
            return np.empty((0, rows.shape[1] + 1))
        values: npt.NDArray[np.float64] = self._booster.predict(rows, pred_contrib=True, num_threads=1)
        return values
