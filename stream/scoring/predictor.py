"""Scores and their explanations, from the bundle's booster.

The trees are compiled (:mod:`stream.scoring.trees`). When a model is loaded, their scores are compared with
LightGBM's and must be equal to the last bit. If they differ, or the model has a part that is not compiled,
LightGBM itself scores, with one thread and rows as float64. With two threads on a busy machine a single
prediction's p99 was a hundred times higher, and a DataFrame costs ten times more than the prediction.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Final

import lightgbm as lgb
import numpy as np

from stream.errors import BundleError
from stream.scoring.lightgbm_text import UnsupportedModelError
from stream.scoring.model_check import MalformedModelError, checked_model_text
from stream.scoring.trees import CompiledTrees

if TYPE_CHECKING:
    import numpy.typing as npt

    from stream.scoring.bundle import Bundle

__all__ = ["Predictor"]


logger = logging.getLogger(__name__)

#: Rows on which the compiled trees are compared with LightGBM.
_TRIAL_ROWS: Final = 256

#: How far compiled SHAP values may lie from LightGBM's, which adds in another order.
_TOLERANCE: Final = 1e-9


class Predictor:
    """The booster of a bundle.

    Raises
    ------
    BundleError
        LightGBM cannot read the model, or it was made for other features.
    """

    def __init__(self, bundle: Bundle) -> None:
        if re.search(r"^objective=binary\b", bundle.model_text, re.MULTILINE) is None:
            raise BundleError(f"model {bundle.model_version} is not a LightGBM model of a binary objective")
        try:
            text = checked_model_text(bundle.model_text, len(bundle.spec.names))
            self._booster = lgb.Booster(model_str=text)
        except (MalformedModelError, lgb.basic.LightGBMError) as error:
            raise BundleError(f"model {bundle.model_version} cannot be used: {error}") from error
        self._trees, self._explaining = self._compile(bundle, text)

    def _compile(self, bundle: Bundle, text: str) -> tuple[CompiledTrees | None, CompiledTrees | None]:
        """Return the compiled trees as far as they agree with LightGBM: for scores, and for contributions."""
        try:
            trees = CompiledTrees(text)
        except UnsupportedModelError as error:
            logger.info("model %s is not compiled: %s", bundle.model_version, error)
            return None, None
        rows = trees.trial_rows(_TRIAL_ROWS)
        if not np.array_equal(trees.scores(rows), self._booster.predict(rows, num_threads=1)):
            logger.warning("model %s is not compiled: LightGBM's scores differ", bundle.model_version)
            return None, None
        if not trees.explains:
            return trees, None
        few = rows[: _TRIAL_ROWS // 8]
        found, expected = (
            trees.contributions(few),
            self._booster.predict(few, pred_contrib=True, num_threads=1),
        )
        if not np.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE):
            logger.warning(
                "explanations of model %s are not compiled: LightGBM's differ", bundle.model_version
            )
            return trees, None
        return trees, trees

    def scores(self, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return each row's probability of fraud, not rounded: float64[n] of float64[n, features]."""
        if not len(rows):
            return np.empty(0)
        if self._trees is not None:
            return self._trees.scores(rows)
        scores: npt.NDArray[np.float64] = self._booster.predict(rows, num_threads=1)
        return scores

    def contributions(self, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return SHAP contributions to the log-odds: float64[n, features + 1], the last the expectation.

        Source: TreeSHAP (Lundberg et al., 2020). Compiled trees take tens of microseconds a row and LightGBM
        milliseconds, so compute them for alerts only.
        """
        if not len(rows):
            return np.empty((0, rows.shape[1] + 1))
        if self._explaining is not None:
            return self._explaining.contributions(rows)
        values: npt.NDArray[np.float64] = self._booster.predict(rows, pred_contrib=True, num_threads=1)
        return values
