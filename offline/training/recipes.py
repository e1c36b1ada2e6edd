"""Recipes: everything that was chosen about a model before the data that it is judged on was looked at."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import lightgbm
import numpy as np

from offline.training.imbalance import RATIO, balance
from stream.features.profiles.spec import LABEL_RECENCY, EntityProfile

if TYPE_CHECKING:
    import numpy.typing as npt

    from offline.training.imbalance import Imbalance
    from stream.features.spec import FeatureSpec

__all__ = ["ACCOUNTS", "CARDS", "Recipe", "column_names", "fit_booster"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train a model.

    Attributes
    ----------
    training_days:
        Length of the rolling training part; None: everything that is known.
    trees, parameters:
        Boosting rounds, and LightGBM's parameters in addition to the fixed ones of :func:`fit_booster`.
    entities:
        Entity profiles in addition to the user's own windows.
    ratio:
        Frauds for each legitimate row that resampling aims at, see
        :func:`offline.training.imbalance.balance`.
    unused:
        Features that the model must not split on, as regular expressions of their whole names.
    without_blocked:
        Leave out of the training part the rows that the test weeks leave out: transactions of cards that were
        known to be compromised, see :func:`offline.evaluation.prequential.known_compromised`.
    """

    name: str
    training_days: float | None
    trees: int
    parameters: dict[str, Any]
    entities: tuple[EntityProfile, ...] = ()
    imbalance: Imbalance = "none"
    ratio: float = RATIO
    unused: tuple[str, ...] = ()
    without_blocked: bool = False
    seed: int = 7

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON values."""
        return {
            "name": self.name,
            "training_days": self.training_days,
            "trees": self.trees,
            "parameters": self.parameters,
            "entities": [profile.to_json() for profile in self.entities],
            "imbalance": self.imbalance,
            "ratio": self.ratio,
            "unused": list(self.unused),
            "without_blocked": self.without_blocked,
            "seed": self.seed,
        }


def column_names(spec: FeatureSpec) -> list[str]:
    """Return unique names that LightGBM's text format accepts; the spec has the real names."""
    names = [re.sub(r"[^A-Za-z0-9_.]", "_", name) for name in spec.names]
    return [name if names.count(name) == 1 else f"{name}_{index}" for index, name in enumerate(names)]


def fit_booster(
    recipe: Recipe,
    spec: FeatureSpec,
    matrix: npt.NDArray[np.float64],
    labels: npt.NDArray[Any],
    *,
    threads: int = 1,
) -> lightgbm.Booster:
    """Return the recipe's booster, trained on a training part only.

    Parameters
    ----------
    matrix : float64[n, features], labels : 0 and 1 of shape ``(n,)``
        The training part.
    """
    used = np.array([not any(re.fullmatch(part, name) for part in recipe.unused) for name in spec.names])
    codes = [index for index, name in enumerate(spec.names) if name in spec.categorical and used[index]]
    part = balance(recipe.imbalance, matrix, labels, categorical=codes, ratio=recipe.ratio, seed=recipe.seed)
    # LightGBM never splits a constant column, and the model keeps the spec's number of columns.
    learnt = part.matrix if used.all() else np.where(used, part.matrix, 0.0)
    parameters = {
        "objective": "binary",
        # With rare frauds the average is an extreme start (log-odds near -4) from which the first trees'
        # leaves overshoot.
        "boost_from_average": False,
        **recipe.parameters,
        "seed": recipe.seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": threads,
        "verbose": -1,
    }
    data = lightgbm.Dataset(
        learnt,
        part.labels,
        weight=part.weights,
        feature_name=column_names(spec),
        categorical_feature=codes,
        params={"verbose": -1},
    )
    return lightgbm.train(parameters, data, num_boost_round=recipe.trees)


#: Profiles for accounts with channels and devices. Chosen on the simulator's worlds 101 and 102, see
#: docs/explanation/modelling.md.
ACCOUNTS: Final = (
    EntityProfile(
        "user",
        windows_days=(1.0, 7.0, 30.0, 90.0),
        aggregates=("amount_to_median", "max_to_usual", "large_count"),
        usual_days=90.0,
    ),
    EntityProfile(
        "device",
        windows_days=(1.0, 30.0, 90.0),
        aggregates=("count", "amount_sum", "user_distinct"),
    ),
    EntityProfile(
        "merchant",
        windows_days=(1.0, 7.0, 30.0),
        aggregates=("count", "amount_mean", "user_distinct"),
        label_windows_days=(7.0, 30.0, 90.0),
        label_aggregates=("fraud_count", "label_count", "fraud_share"),
        label_recency=("days_since_last_fraud",),
    ),
)

#: For payments by card at terminals. Chosen on the Handbook's weeks before 2018-08-08, see
#: docs/explanation/modelling.md.
CARDS: Final = Recipe(
    name="cards",
    training_days=84.0,
    trees=400,
    parameters={
        "learning_rate": 0.03,
        "num_leaves": 12,
        "min_data_in_leaf": 50,
        "feature_fraction": 0.5,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "lambda_l2": 5.0,
    },
    entities=(
        EntityProfile(
            "user",
            windows_days=(1.0, 3.0, 7.0, 14.0, 30.0, 90.0),
            aggregates=("amount_mean", "amount_to_mean", "amount_to_median", "max_to_usual", "large_count"),
            usual_days=150.0,
        ),
        EntityProfile(
            "merchant",
            windows_days=(1.0, 7.0, 30.0),
            aggregates=("count",),
            label_windows_days=(1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 14.0, 21.0, 28.0),
            label_aggregates=("fraud_count", "fraud_share", "fraud_to_usual_min"),
            label_recency=LABEL_RECENCY,
        ),
    ),
    # Also makes training several times faster; see docs/explanation/modelling.md.
    imbalance="undersample",
    ratio=0.02,
    without_blocked=True,
    unused=(
        "(transaction_count|amount_sum|amount_std|merchant_distinct)_.*",
        "(channel|transaction_type)_code",
        "balance_.*",
        "is_.*",
        "day_of_week",
    ),
)
