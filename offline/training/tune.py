"""Tuning: Optuna searches for parameters on the validation part; it never sees the test part.

The objective is average precision, or the share of the loss that is saved (the amounts of missed frauds and
the cost of reviewing alerts, against doing nothing, at the best threshold), minus a price for the model's
cost in service: its leaves. Every transaction walks a path of each tree, and every alert needs an explanation
over all of them. A study in an SQLite file continues after a stop; the same seed and number of trials in one
run give the same result.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
import optuna
from sklearn.metrics import average_precision_score

from offline.training.train import fit, prepare
from stream.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from offline.data.table import TransactionTable
    from offline.training.split import TimeSplit
    from offline.training.train import TrainingOptions
    from stream.features.spec import FeatureSpec

__all__ = ["Objective", "Tuned", "Tuning", "saved_share", "tune", "tune_matrix"]


Objective: TypeAlias = Literal["average-precision", "money"]

#: Rounds between two checks of a trial's validation score.
_REPORT_EVERY: Final = 25


@dataclass(frozen=True, slots=True)
class Tuning:
    """How long and where to search.

    Attributes
    ----------
    trials:
        Number of trials, including those of a study that continues.
    study:
        SQLite file that stores the study; None: in memory.
    size_price:
        Gain of the objective that 10,000 leaves (400 trees of 25, for example) must bring.
    review_cost:
        Cost of reviewing an alert, in the data's currency; for the objective ``money`` only.
    """

    trials: int = 30
    study: Path | None = None
    size_price: float = 0.005
    objective: Objective = "average-precision"
    review_cost: float = 5.0

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ConfigError(f"trials: must be at least 1, not {self.trials}")
        if not self.size_price >= 0:
            raise ConfigError(f"size price: must be at least 0, not {self.size_price}")
        if not self.review_cost >= 0:
            raise ConfigError(f"review cost: must be at least 0, not {self.review_cost}")


@dataclass(frozen=True, slots=True)
class Tuned:
    """The result of a search.

    Attributes
    ----------
    options:
        The given options with the best trial's parameters.
    objective, average_precision, leaves:
        The best trial's, on validation; ``leaves`` counts the leaves of all its trees.
    trials, pruned:
        Number of finished and of pruned trials.
    history:
        Of every finished trial ``number``, ``objective``, ``parameters``.
    importances:
        The share of the objective's spread that each parameter explains; empty with less than two trials.
    """

    options: TrainingOptions
    objective: float
    average_precision: float
    leaves: int
    trials: int
    pruned: int
    history: list[dict[str, Any]] = field(default_factory=list)
    importances: dict[str, float] = field(default_factory=dict)


def tune(
    table: TransactionTable,
    options: TrainingOptions,
    tuning: Tuning,
    *,
    progress: Callable[[int], None] | None = None,
) -> Tuned:
    """Return the best parameters for a table, by the validation part of its split in time.

    ``progress`` is called with the number of trials ended since its last call.

    Raises
    ------
    DataError
        The file has no labels, too few rows for the split, or the study was of something else.
    """
    split, spec, built, labels = prepare(table, options)
    amounts = table.amount_minor / np.maximum(table.minor_units, 1)
    return tune_matrix(built.matrix, labels, split, spec, options, tuning, amounts=amounts, progress=progress)


def saved_share(
    fraud: npt.NDArray[np.bool_],
    scores: npt.NDArray[np.float64],
    amounts: npt.NDArray[np.float64],
    review_cost: float,
) -> float:
    """Return the most of the frauds' amounts that alerts from some score on save, less the alerts' cost.

    All arrays have the shape ``(n,)``; 1 is all of the loss at no cost, 0 is doing nothing.
    """
    order = np.argsort(-scores, kind="stable")
    gained = np.cumsum(np.where(fraud[order], amounts[order], 0.0) - review_cost)
    # Equal scores are alerts together.
    ends = np.append(np.diff(scores[order]) != 0, np.True_)
    loss = float(amounts[fraud].sum())
    return max(0.0, float(gained[ends].max())) / loss if loss > 0 else 0.0


def tune_matrix(
    matrix: npt.NDArray[np.float64],
    labels: npt.NDArray[Any],
    split: TimeSplit,
    spec: FeatureSpec,
    options: TrainingOptions,
    tuning: Tuning,
    *,
    amounts: npt.NDArray[np.float64] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tuned:
    """Return the best parameters for features of a whole table; see :func:`tune`.

    ``amounts`` (float64[n], in the data's currency) are needed for the objective ``money``.
    """
    if tuning.objective == "money" and amounts is None:
        msg = "the objective money requires the amounts"
        raise ValueError(msg)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = _open_study(tuning, _subject(split, spec, labels, options, tuning), options.seed)
    validation = split.validation
    truth = labels[validation]

    def worth(scores: npt.NDArray[np.float64]) -> float:
        if tuning.objective == "money" and amounts is not None:
            return saved_share(truth == 1, scores, amounts[validation], tuning.review_cost)
        return float(average_precision_score(truth, scores))

    def objective(trial: optuna.Trial) -> float:
        chosen = replace(options, **_suggest(trial))

        def report(env: Any) -> None:
            if (env.iteration + 1) % _REPORT_EVERY == 0:
                scores = env.model.predict(matrix[validation], num_threads=options.threads)
                trial.report(worth(np.asarray(scores, np.float64)), env.iteration)
                if trial.should_prune():
                    raise optuna.TrialPruned

        booster = fit(matrix, labels, split, spec, chosen, callbacks=[report])
        scores = np.asarray(booster.predict(matrix[validation], num_threads=options.threads))
        leaves = sum(int(tree["num_leaves"]) for tree in booster.dump_model()["tree_info"])
        trial.set_user_attr("average_precision", float(average_precision_score(truth, scores)))
        trial.set_user_attr("leaves", int(leaves))
        return worth(scores) - tuning.size_price * float(leaves) / 10_000

    ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    left = tuning.trials - len(study.get_trials(deepcopy=False, states=ended))
    if left > 0:
        study.optimize(
            objective,
            n_trials=left,
            callbacks=[] if progress is None else [lambda _study, _trial: progress(1)],
        )
    best = study.best_trial
    finished = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    # Without a spread there is nothing to explain.
    weights = (
        optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=options.seed)
        )
        if len({trial.value for trial in finished}) > 1
        else {}
    )
    return Tuned(
        options=replace(options, **best.params),
        objective=float(best.value or 0.0),
        average_precision=float(best.user_attrs["average_precision"]),
        leaves=int(best.user_attrs["leaves"]),
        trials=states.count(optuna.trial.TrialState.COMPLETE),
        pruned=states.count(optuna.trial.TrialState.PRUNED),
        history=[
            {"number": trial.number, "objective": trial.value, "parameters": dict(trial.params)}
            for trial in finished
        ],
        importances={name: float(weight) for name, weight in weights.items()},
    )


def _suggest(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "leaves": trial.suggest_int("leaves", 4, 64, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 0.02, 0.2, log=True),
        "min_leaf_rows": trial.suggest_int("min_leaf_rows", 5, 300, log=True),
        "feature_fraction": trial.suggest_float("feature_fraction", 0.2, 1.0),
        "bagging_fraction": trial.suggest_float("bagging_fraction", 0.4, 1.0),
        "lambda_l2": trial.suggest_float("lambda_l2", 1e-3, 50.0, log=True),
    }


def _subject(
    split: TimeSplit, spec: FeatureSpec, labels: npt.NDArray[Any], options: TrainingOptions, tuning: Tuning
) -> dict[str, Any]:
    """Return the subject of a study; a study with another subject must not continue."""
    return {
        "feature_spec": spec.hash,
        "rows": [int(split.train.sum()), int(split.validation.sum())],
        "frauds": [int(labels[split.train].sum()), int(labels[split.validation].sum())],
        "validation_start_ms": split.validation_start_ms,
        "imbalance": options.imbalance,
        "trees": options.trees,
        "size_price": tuning.size_price,
        "objective": tuning.objective,
        "review_cost": tuning.review_cost if tuning.objective == "money" else None,
    }


def _open_study(tuning: Tuning, subject: dict[str, Any], seed: int) -> optuna.Study:
    storage = None
    if tuning.study is not None:
        if not tuning.study.parent.is_dir():
            raise ConfigError(f"study: folder {tuning.study.parent} does not exist")
        storage = f"sqlite:///{tuning.study}"
    try:
        study = optuna.create_study(
            study_name="riskstream",
            storage=storage,
            load_if_exists=True,
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2 * _REPORT_EVERY),
        )
    except Exception as error:  # SQLAlchemy's, of which Optuna lets many kinds through
        raise DataError(f"study {tuning.study} cannot be opened: {error}") from error
    # A study that continues must not draw its first trials again.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.get_trials(deepcopy=False)))
    known = study.user_attrs.get("subject")
    if known is not None and known != subject:
        changed = ", ".join(name for name, value in subject.items() if known.get(name) != value)
        raise DataError(
            f"study {tuning.study} was made with different inputs ({changed} differ): choose another file"
        )
    study.set_user_attr("subject", subject)
    return study
