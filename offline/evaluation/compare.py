"""Several models on one split, judged alike: the value of history, tuning and resampling.

Every model learns from the training part, chooses its threshold (and, with early stopping, its trees) on the
validation part, and scores the test part once; see :func:`offline.training.split.split_by_time`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import lightgbm
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from offline.evaluation.baselines import raw_columns, three_sigma_scores
from offline.evaluation.prequential import card_precision
from offline.metrics import best_f1_threshold, binary_metrics, precision_threshold
from offline.training.train import TrainingOptions, fit, prepare
from stream.events.fields import MS_PER_DAY

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from offline.data.table import TransactionTable
    from offline.training.split import TimeSplit
    from stream.features.spec import FeatureSpec

__all__ = ["MODELS", "Comparison", "compare_models"]


_ROUNDS: Final = 100
_SHARE: Final = 0.95

#: Rows scored at a time when the cost of a score is measured: a busy worker's batch.
_BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class Comparison:
    """How to compare.

    Attributes
    ----------
    training:
        The split, and the shipped recipe's parameters.
    bootstrap:
        Samples of users for the confidence intervals; 0 for none.
    review_cost:
        Cost of reviewing an alert, in the data's currency; a missed fraud costs its amount.
    trials:
        Trials of the tuned model.
    precision_target:
        Each model's threshold is the lowest that reaches this precision on validation; None: that of the best
        F1.
    """

    training: TrainingOptions
    bootstrap: int = 200
    review_cost: float = 5.0
    trials: int = 30
    precision_target: float | None = None


@dataclass(frozen=True, slots=True)
class _Model:
    """A scorer of a matrix's rows, and the matrix's name."""

    score: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
    matrix: str = "features"


@dataclass(frozen=True, slots=True)
class _Data:
    spec: FeatureSpec
    split: TimeSplit
    labels: npt.NDArray[np.int8]
    matrices: dict[str, npt.NDArray[np.float64]]
    options: Comparison

    @property
    def codes(self) -> list[int]:
        return [index for index, name in enumerate(self.spec.names) if name in self.spec.categorical]


def compare_models(
    table: TransactionTable,
    comparison: Comparison,
    *,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Return each model's figures on the test part, and a description of the run, as JSON values.

    ``progress`` is called with 1 whenever a model is done; there are ``len(MODELS)``.

    Raises
    ------
    DataError
        The file has no labels, or too few rows for the split.
    """
    split, spec, built, labels = prepare(table, comparison.training)
    matrices = {
        "features": built.matrix,
        "raw": raw_columns(table),
        "rule": three_sigma_scores(table)[:, None],
    }
    data = _Data(spec, split, labels, matrices, comparison)
    figures = {}
    for name, make in MODELS.items():
        begun = time.perf_counter()
        model = make(data)
        seconds = time.perf_counter() - begun
        figures[name] = _judge(table, data, model) | {"training_seconds": round(seconds, 3)}
        if progress is not None:
            progress(1)
    return {
        "models": figures,
        "config": {
            "rows": {part: int(getattr(split, part).sum()) for part in ("train", "validation", "test")},
            "bootstrap_samples_of_users": comparison.bootstrap,
            "confidence": _SHARE,
            "review_cost": comparison.review_cost,
            "trials": comparison.trials,
            "precision_target": comparison.precision_target,
            "profiles": [profile.entity for profile in spec.entities],
            "seed": comparison.training.seed,
            "feature_spec": spec.hash,
        },
    }


def _judge(table: TransactionTable, data: _Data, model: _Model) -> dict[str, Any]:
    matrix = data.matrices[model.matrix]
    validation, test = data.split.validation, data.split.test
    known = model.score(matrix[validation])
    target = data.options.precision_target
    threshold = (
        best_f1_threshold(data.labels[validation], known)
        if target is None
        else precision_threshold(data.labels[validation], known, target)
    )
    scores = model.score(matrix[test])
    truth = data.labels[test]
    fraud = truth == 1
    false_positives, recalls, _ = roc_curve(fraud, scores)
    amounts = table.amount_minor[test] / table.minor_units[test]
    flagged = scores >= threshold
    users = np.unique(table.user_id[test].astype(str), return_inverse=True)[1]
    figures = binary_metrics(truth, scores, threshold)
    figures["recall_at_1_percent_false_positives"] = float(
        recalls[np.searchsorted(false_positives, 0.01, side="right") - 1]
    )
    figures["precision_at_recall_85_percent"] = _precision_at(fraud, scores, 0.85)
    figures["card_precision_100"] = card_precision(
        table.event_time_ms[test] // MS_PER_DAY, users, fraud, scores
    )
    figures["expected_cost"] = float(
        amounts[fraud & ~flagged].sum() + data.options.review_cost * flagged.sum()
    )
    figures["cost_of_doing_nothing"] = float(amounts[fraud].sum())
    figures["confidence"] = _intervals(fraud, scores, flagged, users, data.options)
    figures["score_microseconds"] = round(_score_microseconds(model, matrix[test]), 2)
    return figures


def _precision_at(fraud: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64], recall: float) -> float:
    """Return the best precision of any threshold that finds at least this share of the frauds."""
    precisions, recalls, _ = precision_recall_curve(fraud, scores)
    return float(precisions[recalls >= recall].max())


def _intervals(
    fraud: npt.NDArray[np.bool_],
    scores: npt.NDArray[np.float64],
    flagged: npt.NDArray[np.bool_],
    users: npt.NDArray[np.int64],
    options: Comparison,
) -> dict[str, list[float]]:
    """Return intervals by bootstrap over users: a user's transactions are not independent of each other.

    Precision and recall are at the threshold, which is not drawn anew.
    """
    rng = np.random.default_rng(options.training.seed)
    count = int(users.max()) + 1
    names = ("auc", "average_precision", "recall", "precision")
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(options.bootstrap):
        weight = np.bincount(rng.integers(0, count, count), minlength=count)[users].astype(np.float64)
        if weight[fraud].sum() in (0, weight.sum()):
            continue
        found["auc"].append(float(roc_auc_score(fraud, scores, sample_weight=weight)))
        found["average_precision"].append(float(average_precision_score(fraud, scores, sample_weight=weight)))
        caught = float(weight[fraud & flagged].sum())
        found["recall"].append(caught / float(weight[fraud].sum()))
        found["precision"].append(caught / max(1.0, float(weight[flagged].sum())))
    edges = ((1 - _SHARE) / 2, (1 + _SHARE) / 2)
    return {name: np.quantile(values, edges).tolist() for name, values in found.items() if values}


def _score_microseconds(model: _Model, rows: npt.NDArray[np.float64]) -> float:
    """Return the time of a row in a batch, the fastest of a few."""
    batch = rows[:_BATCH]
    fastest = np.inf
    for _ in range(5):
        begun = time.perf_counter()
        model.score(batch)
        fastest = min(fastest, time.perf_counter() - begun)
    return float(fastest / len(batch) * 1e6)


def _three_sigma(_: _Data) -> _Model:
    return _Model(lambda rows: rows[:, 0], matrix="rule")


def _logistic(data: _Data) -> _Model:
    train = data.matrices["features"][data.split.train]
    middle = np.nan_to_num(np.nanmedian(np.where(np.isfinite(train), train, np.nan), axis=0))

    def known(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.where(np.isfinite(rows), rows, middle)

    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000))
    pipeline.fit(known(train), data.labels[data.split.train])
    return _Model(lambda rows: np.asarray(pipeline.predict_proba(known(rows))[:, 1], np.float64))


def _xgboost(matrix: str) -> Callable[[_Data], _Model]:
    def make(data: _Data) -> _Model:
        import xgboost  # noqa: PLC0415 - for this comparison only

        booster = xgboost.XGBClassifier(
            n_jobs=data.options.training.threads, random_state=data.options.training.seed
        )
        booster.fit(data.matrices[matrix][data.split.train], data.labels[data.split.train])
        return _Model(lambda rows: np.asarray(booster.predict_proba(rows)[:, 1], np.float64), matrix)

    return make


def _lightgbm(booster: lightgbm.Booster, threads: int) -> _Model:
    return _Model(lambda rows: np.asarray(booster.predict(rows, num_threads=threads), np.float64))


def _default_lightgbm(data: _Data) -> _Model:
    options = data.options.training
    part = lightgbm.Dataset(
        data.matrices["features"][data.split.train], data.labels[data.split.train].astype(np.float64)
    )
    fixed = {
        "objective": "binary",
        "verbose": -1,
        "num_threads": options.threads,
        "seed": options.seed,
        "deterministic": True,
    }
    return _lightgbm(lightgbm.train(fixed, part, num_boost_round=_ROUNDS), options.threads)


def _smote_and_tuning(data: _Data) -> _Model:
    from offline.training.tune import Tuning, tune_matrix  # noqa: PLC0415 - loads Optuna

    options = replace(data.options.training, imbalance="smote")
    matrix, split = data.matrices["features"], data.split
    found = tune_matrix(matrix, data.labels, split, data.spec, options, Tuning(trials=data.options.trials))
    booster = fit(matrix, data.labels, split, data.spec, found.options)
    return _lightgbm(booster, options.threads)


def _shipped(data: _Data) -> _Model:
    options = data.options.training
    booster = fit(data.matrices["features"], data.labels, data.split, data.spec, options)
    return _lightgbm(booster, options.threads)


#: Weakest first; each makes a model of the training and validation part.
MODELS: Final[dict[str, Callable[[_Data], _Model]]] = {
    "3-sigma rule": _three_sigma,
    "logistic regression": _logistic,
    "XGBoost, raw columns": _xgboost("raw"),
    "XGBoost, all features": _xgboost("features"),
    "LightGBM, defaults": _default_lightgbm,
    "LightGBM, SMOTE and Optuna": _smote_and_tuning,
    "shipped recipe": _shipped,
}
