"""Training: from a file of transactions to a model bundle, in order of time.

1. The rows are split by :func:`offline.training.split.split_by_time`.
2. The feature spec (the categories' codes) is fitted on the training part only.
3. The stream's own kernel computes the features of the whole file in arrival order; each row sees its past.
4. LightGBM learns from the training part and stops early on the validation part.
5. The validation part chooses the prediction threshold.
6. The test part is scored once, at the end.

The score is the booster's own probability, without calibration, so that the stream's score, the SHAP values
and the thresholds all refer to the same number.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import lightgbm
import numpy as np
import sklearn

from offline.features.build import SCORED, build_features, fit_spec
from offline.metrics import best_f1_threshold, binary_metrics, precision_threshold
from offline.training.drift_reference import reference_statistics
from offline.training.imbalance import balance
from offline.training.profiles import present
from offline.training.recipes import column_names
from offline.training.split import split_by_time
from stream._version import __version__
from stream.errors import ConfigError
from stream.events.fields import MS_PER_DAY, format_event_time
from stream.features.refunds import REFUND_TYPES
from stream.features.windows.events import HistoryConfig
from stream.scoring.bundle import Bundle, Thresholds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from pathlib import Path

    import numpy.typing as npt

    from offline.data.table import TransactionTable
    from offline.features.build import FeatureTable
    from offline.training.imbalance import Imbalance
    from offline.training.split import TimeSplit
    from stream.features.profiles.spec import EntityProfile
    from stream.features.spec import FeatureSpec

__all__ = ["TrainingOptions", "TrainingResult", "fit", "load_parameters", "prepare", "train"]


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """How to train; durations in milliseconds.

    Attributes
    ----------
    train_until_ms:
        Begin of the test part; None: by ``test_fraction``.
    user_ttl_ms:
        A user's history begins anew after this long without a transaction; 0 for never.
    trees:
        Most trees; early stopping may end with fewer.
    precision_target:
        Choose the lowest threshold that reaches this precision on validation instead of the best F1.
    imbalance:
        How to resample the training part, see :mod:`offline.training.imbalance`.
    entities:
        Entity profiles in addition to the user's own windows; profiles of entities that the file lacks are
        left out.
    refund_types:
        Transaction types that are refunds.
    """

    train_until_ms: int | None = None
    test_fraction: float = 0.2
    validation_fraction: float = 0.15
    label_delay_ms: int = 7 * MS_PER_DAY
    allowed_lateness_ms: int = 3 * MS_PER_DAY
    user_ttl_ms: int = 0
    trees: int = 500
    leaves: int = 31
    learning_rate: float = 0.05
    min_leaf_rows: int = 50
    early_stopping_rounds: int = 50
    seed: int = 7
    threads: int = 1
    precision_target: float | None = None
    feature_fraction: float = 0.8
    bagging_fraction: float = 0.8
    lambda_l2: float = 1.0
    imbalance: Imbalance = "none"
    entities: tuple[EntityProfile, ...] = ()
    refund_types: tuple[str, ...] = REFUND_TYPES

    def __post_init__(self) -> None:
        if not (0 < self.test_fraction < 1 and 0 < self.validation_fraction < 1):
            raise ConfigError("test and validation fraction must lie between 0 and 1")
        if self.test_fraction + self.validation_fraction >= 1:
            raise ConfigError("test and validation fraction together must leave rows to train on")
        if self.trees < 1 or self.leaves < 2 or self.threads < 1:
            raise ConfigError("trees and threads must be at least 1, leaves at least 2")
        if self.label_delay_ms < 0 or self.allowed_lateness_ms < 0:
            raise ConfigError("label delay and allowed lateness must not be negative")
        if 0 < self.user_ttl_ms < HistoryConfig(self.allowed_lateness_ms).horizon_ms:
            raise ConfigError("the time to live of users must be 30 days and the allowed lateness at least")


#: Options that tuning chooses, with the range that each may have.
_TUNABLE: Final[dict[str, tuple[type, float, float]]] = {
    "leaves": (int, 2, 1024),
    "learning_rate": (float, 1e-4, 1.0),
    "min_leaf_rows": (int, 1, 1_000_000),
    "feature_fraction": (float, 0.01, 1.0),
    "bagging_fraction": (float, 0.01, 1.0),
    "lambda_l2": (float, 0.0, 1e6),
}


def load_parameters(path: Path) -> dict[str, Any]:
    """Return the options in a JSON file that ``riskstream tune`` wrote.

    Raises
    ------
    ConfigError
        The file cannot be read, or a parameter is unknown or out of range; the text names it.
    """
    try:
        found = json.loads(path.read_bytes())["parameters"]
        items = dict(found).items()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"parameters {path} cannot be read: {error!r}") from error
    for name, value in items:
        if name not in _TUNABLE:
            raise ConfigError(f"parameters {path}: {name} is not one of {', '.join(_TUNABLE)}")
        kind, least, most = _TUNABLE[name]
        if type(value) not in (int, kind) or not least <= value <= most:
            raise ConfigError(f"parameters {path}: {name} must lie in {least:g} to {most:g}, not {value!r}")
    return dict(items)


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The result of a training run.

    Attributes
    ----------
    bundle:
        Ready to be saved.
    split:
        The part of each row.
    gains:
        Features and the loss that they removed in training, largest first.
    matrix:
        float64[n, features], of the whole table.
    """

    bundle: Bundle
    split: TimeSplit
    gains: list[tuple[str, float]]
    matrix: npt.NDArray[np.float64]


def prepare(
    table: TransactionTable, options: TrainingOptions, *, progress: Callable[[int], None] | None = None
) -> tuple[TimeSplit, FeatureSpec, FeatureTable, npt.NDArray[Any]]:
    """Return a table's split in time, the spec fitted on its training part, all features and the labels.

    ``progress`` is called with the number of rows whose features were computed since its last call.

    Raises
    ------
    DataError
        There are no labels, or too few rows for the split.
    """
    split = split_by_time(
        table,
        train_until_ms=options.train_until_ms,
        test_fraction=options.test_fraction,
        validation_fraction=options.validation_fraction,
        label_delay_ms=options.label_delay_ms,
    )
    spec = fit_spec(table, split.train, present(table, options.entities), options.refund_types)
    features = build_features(
        table,
        spec,
        allowed_lateness_ms=options.allowed_lateness_ms,
        user_ttl_ms=options.user_ttl_ms,
        progress=progress,
    )
    labels = np.asarray(table.is_fraud)
    # Late and duplicate rows get no score in the stream, so they teach and judge nothing here.
    return split.restricted_to(features.outcome == SCORED, labels), spec, features, labels


def train(
    table: TransactionTable,
    options: TrainingOptions,
    *,
    now: datetime,
    progress: Callable[[int], None] | None = None,
) -> TrainingResult:
    """Return a model for ``table``, whose rows are in arrival order.

    ``now`` is the time, with its zone, in the model's version; ``progress`` is called with the number of rows
    whose features were computed since its last call.

    Raises
    ------
    DataError
        There are no labels, or too few rows for the split.
    """
    split, spec, features, labels = prepare(table, options, progress=progress)
    booster = fit(features.matrix, labels, split, spec, options)
    model_text: str = booster.model_to_string()
    scores = {
        part: _predict(booster, features.matrix[getattr(split, part)], options.threads)
        for part in ("validation", "test")
    }
    validation_labels = labels[split.validation]
    if options.precision_target is None:
        threshold = best_f1_threshold(validation_labels, scores["validation"])
    else:
        threshold = precision_threshold(validation_labels, scores["validation"], options.precision_target)
    metrics = {
        part: binary_metrics(labels[getattr(split, part)], scores[part], threshold)
        for part in ("validation", "test")
    }
    gains = sorted(
        zip(spec.names, booster.feature_importance("gain").tolist(), strict=True),
        key=lambda item: (-item[1], item[0]),
    )
    digest = hashlib.sha256(model_text.encode()).hexdigest()
    bundle = Bundle(
        model_text=model_text,
        model_version=f"{now:%Y%m%dT%H%M%SZ}-{digest[:8]}",
        spec=spec,
        thresholds=Thresholds(prediction=threshold),
        allowed_lateness_ms=options.allowed_lateness_ms,
        user_ttl_ms=options.user_ttl_ms,
        # Not of the training part: a model is more certain about its training data, and the windows of the
        # first rows were not full yet. Both would look like drift from the first transaction on.
        reference=reference_statistics(
            features.matrix[split.validation], spec.names, spec.categorical, scores["validation"]
        ),
        metrics=metrics,
        training=_describe(table, split, spec, options, booster)
        | {"trained_at": now.isoformat(timespec="seconds")}
        | {"gains": [[name, gain] for name, gain in gains]},
    )
    return TrainingResult(bundle=bundle, split=split, gains=gains, matrix=features.matrix)


def fit(
    matrix: npt.NDArray[np.float64],
    labels: npt.NDArray[Any],
    split: TimeSplit,
    spec: FeatureSpec,
    options: TrainingOptions,
    *,
    callbacks: Sequence[Callable[..., Any]] = (),
) -> lightgbm.Booster:
    """Return a booster trained on the training part with early stopping on the validation part.

    Parameters
    ----------
    matrix : float64[n, features], labels : 0 and 1 of shape ``(n,)``
        The whole table.
    callbacks
        LightGBM callbacks, called after each round.
    """
    parameters = {
        "objective": "binary",
        # Weights and made-up frauds move the probabilities, for which the log loss would stop at once.
        "metric": "binary_logloss" if options.imbalance == "none" else "average_precision",
        "learning_rate": options.learning_rate,
        "num_leaves": options.leaves,
        "min_data_in_leaf": options.min_leaf_rows,
        "feature_fraction": options.feature_fraction,
        "bagging_fraction": options.bagging_fraction,
        "bagging_freq": 1,
        "lambda_l2": options.lambda_l2,
        # With rare frauds the average is an extreme start (log-odds near -4) from which the first trees'
        # leaves overshoot; from 0 early stopping finds a better optimum.
        "boost_from_average": False,
        "seed": options.seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": options.threads,
        "verbose": -1,
    }
    # LightGBM takes a negative category, the code of unseen values, as missing: in training and serving.
    codes = [index for index, name in enumerate(spec.names) if name in spec.categorical]
    part = balance(
        options.imbalance, matrix[split.train], labels[split.train], categorical=codes, seed=options.seed
    )
    data = lightgbm.Dataset(
        part.matrix,
        part.labels,
        weight=part.weights,
        feature_name=column_names(spec),
        categorical_feature=codes,
        params={"verbose": -1},
    )
    validation = data.create_valid(matrix[split.validation], labels[split.validation].astype(np.float64))
    return lightgbm.train(
        parameters,
        data,
        num_boost_round=options.trees,
        valid_sets=[validation],
        callbacks=[lightgbm.early_stopping(options.early_stopping_rounds, verbose=False), *callbacks],
    )


def _predict(
    booster: lightgbm.Booster, matrix: npt.NDArray[np.float64], threads: int
) -> npt.NDArray[np.float64]:
    return np.asarray(booster.predict(matrix, num_threads=threads), dtype=np.float64)


def _describe(
    table: TransactionTable,
    split: TimeSplit,
    spec: FeatureSpec,
    options: TrainingOptions,
    booster: lightgbm.Booster,
) -> dict[str, Any]:
    """Return the seeds, versions, rows and times of a training, as JSON values."""

    def part(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
        times = table.event_time_ms[mask]
        return {
            "rows": int(mask.sum()),
            "frauds": int((np.asarray(table.is_fraud)[mask] == 1).sum()),
            "first": format_event_time(int(times.min())),
            "last": format_event_time(int(times.max())),
        }

    return {
        "seed": options.seed,
        "threads": options.threads,
        "label_delay_ms": options.label_delay_ms,
        "leaves": options.leaves,
        "learning_rate": options.learning_rate,
        "min_leaf_rows": options.min_leaf_rows,
        "feature_fraction": options.feature_fraction,
        "bagging_fraction": options.bagging_fraction,
        "lambda_l2": options.lambda_l2,
        "imbalance": options.imbalance,
        "trees": int(booster.num_trees()),
        "trees_at_most": options.trees,
        "rows": len(table),
        "invalid_rows": len(table.invalid),
        "train": part(split.train),
        "validation": part(split.validation),
        "test": part(split.test),
        "categorical_features": list(spec.categorical),
        "profiles": [profile.entity for profile in spec.entities],
        "versions": {
            "riskstream": __version__,
            "python": platform.python_version(),
            "lightgbm": lightgbm.__version__,
            "numpy": np.__version__,
            "scikit-learn": sklearn.__version__,
        },
    }
