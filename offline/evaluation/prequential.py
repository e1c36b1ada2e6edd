"""Prequential evaluation: week after week, a model of the data known by then, judged on the next week.

The protocol is that of the *Reproducible Machine Learning for Credit Card Fraud Detection - Practical
Handbook* (Le Borgne, Siblini, Lebichot, Bontempi; ULB), made exact for any file of transactions. For each
test week that begins at ``s``, with the label delay ``d``:

1. The training part are the transactions older than ``s - d`` whose labels were known before ``s``, as far
   back as the recipe allows. Between it and the test week lies a gap of the delay.
2. The features of each transaction, including those in the test week, use the data known at its own time.
3. Each test day leaves out the transactions of users who had a fraud between ``s - 2 d`` and the delay before
   the day begins: their cards are known to be compromised, and are blocked.
4. AUC and average precision cover the week; card precision at 100 is the mean over its days of the share of
   compromised cards among the 100 highest scores; a card that was found is not counted again.

Nothing is chosen here: no parameter, no threshold, no stopping round.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from offline.features.build import SCORED, build_features, fit_spec
from offline.training.profiles import present
from offline.training.recipes import fit_booster
from stream.errors import DataError
from stream.events.fields import MS_PER_DAY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import lightgbm
    import numpy.typing as npt

    from offline.data.table import TransactionTable
    from offline.features.build import FeatureTable
    from offline.training.recipes import Recipe
    from stream.features.spec import FeatureSpec

__all__ = [
    "Fold",
    "Protocol",
    "card_precision",
    "evaluate_weeks",
    "first_week",
    "fold_metrics",
    "knowledge_scores",
    "known_compromised",
    "summarise",
    "week_fold",
    "weekly_features",
]


_WEEK_MS: Final = 7 * MS_PER_DAY
_CARDS: Final = 100

#: False-positive rate at which the recall of each scenario is reported.
_FALSE_POSITIVES: Final = 0.01


@dataclass(frozen=True, slots=True)
class Protocol:
    """The test weeks, and when labels became known; times in milliseconds since the epoch, UTC.

    With ``retrain`` false the first week's model scores all weeks: the cost of never retraining.
    """

    first_week_ms: int
    folds: int
    label_delay_ms: int = _WEEK_MS
    allowed_lateness_ms: int = 3 * MS_PER_DAY
    retrain: bool = True


@dataclass(frozen=True, slots=True)
class Fold:
    """A test week: masks of shape ``(n,)``."""

    start_ms: int
    train: npt.NDArray[np.bool_]
    test: npt.NDArray[np.bool_]

    @property
    def week(self) -> str:
        """The day on which the week begins."""
        return datetime.fromtimestamp(self.start_ms / 1000, UTC).date().isoformat()


def week_fold(
    table: TransactionTable,
    start_ms: int,
    *,
    label_delay_ms: int,
    training_days: float | None,
    without_blocked: bool = False,
) -> Fold:
    """Return the training part and the test week that begins at ``start_ms``; see the module's docstring.

    With ``without_blocked`` the training part leaves out the transactions of :func:`known_compromised`.

    Raises
    ------
    DataError
        The file has no labels, or a part does not have both classes.
    """
    if table.is_fraud is None:
        raise DataError("the file has no labels: it needs is_fraud, or a mapping with a [label] section")
    times = table.event_time_ms
    labelled = table.valid & (table.is_fraud >= 0)
    fraud = table.is_fraud == 1
    train = labelled & (times < start_ms - label_delay_ms)
    if table.label_time_ms is not None:
        train &= table.label_time_ms < start_ms
    if training_days is not None:
        train &= times >= start_ms - label_delay_ms - round(training_days * MS_PER_DAY)
    test = np.zeros(len(table), np.bool_)
    users = np.unique(table.user_id.astype(str), return_inverse=True)[1]
    for day_ms in range(start_ms, start_ms + _WEEK_MS, MS_PER_DAY):
        known = fraud & (times >= start_ms - 2 * label_delay_ms) & (times < day_ms - label_delay_ms)
        compromised = np.bincount(users[known], minlength=users.max(initial=0) + 1) > 0
        test |= labelled & (times >= day_ms) & (times < day_ms + MS_PER_DAY) & ~compromised[users]
    if without_blocked:
        train &= ~known_compromised(users, times, fraud & train, start_ms, label_delay_ms)
    fold = Fold(start_ms, train, test)
    for name, mask in (("training part", train), ("test part", test)):
        frauds, rows = int(fraud[mask].sum()), int(mask.sum())
        if frauds in (0, rows):
            raise DataError(
                f"week {fold.week}: the {name} has {rows:,} rows, {frauds:,} of them fraud; it needs "
                "both kinds: choose another --first-test-week or fewer --folds"
            )
    return fold


def known_compromised(
    users: npt.NDArray[np.int64],
    times_ms: npt.NDArray[np.int64],
    fraud: npt.NDArray[np.bool_],
    start_ms: int,
    label_delay_ms: int,
) -> npt.NDArray[np.bool_]:
    """Return which transactions before ``start_ms`` were of users whose card was known to be compromised.

    These have a fraud of the user between two delays and one delay before the transaction's day, with days
    counted from ``start_ms``. It is the test weeks' own rule, applied to each day of the past: without it a
    model would learn from rows of a kind that it never scores.

    Parameters
    ----------
    users, times_ms : int64[n]
        ``users`` are numbered from 0.
    fraud : bool[n]
        The frauds known at ``start_ms``.
    """
    if not fraud.any():
        return np.zeros(len(users), np.bool_)
    # Each user's frauds in order of time, all users in one sorted array: a span of time for each.
    since = int(times_ms[fraud].min())
    span = int(times_ms[fraud].max()) - since + 1
    found = np.sort(users[fraud] * span + times_ms[fraud] - since)
    day = (times_ms - start_ms) // MS_PER_DAY * MS_PER_DAY + start_ms - since
    first, last = (
        np.searchsorted(found, users * span + np.clip(day - age_ms, 0, span))
        for age_ms in (2 * label_delay_ms, label_delay_ms)
    )
    return np.asarray((last > first) & (times_ms < start_ms))


def card_precision(
    day: npt.NDArray[np.int64],
    card: npt.NDArray[np.int64],
    fraud: npt.NDArray[np.bool_],
    scores: npt.NDArray[np.float64],
    *,
    cards: int = _CARDS,
) -> float:
    """Return the mean over the days of the share of compromised cards among the ``cards`` highest.

    A card's score of a day is its highest score; a card is compromised on a day with a fraud of its own, and
    is found once: later days leave it out. Of equal scores the card with the lower number comes first. All
    arrays have the shape ``(n,)``.
    """
    found = np.zeros(int(card.max(initial=-1)) + 1, np.bool_)
    shares = []
    for today in np.unique(day):
        rows = (day == today) & ~found[card]
        names, index = np.unique(card[rows], return_inverse=True)
        highest = np.full(len(names), -np.inf)
        np.maximum.at(highest, index, scores[rows])
        compromised = np.zeros(len(names), np.bool_)
        np.logical_or.at(compromised, index, fraud[rows])
        first = np.argsort(-highest, kind="stable")[:cards]
        caught = names[first[compromised[first]]]
        found[caught] = True
        shares.append(len(caught) / cards)
    return float(np.mean(shares))


def fold_metrics(
    table: TransactionTable,
    fold: Fold,
    scores: npt.NDArray[np.float64],
    scenario: npt.NDArray[np.object_] | None = None,
) -> dict[str, Any]:
    """Return a fold's figures, as JSON values.

    Parameters
    ----------
    scores : float64[rows of the test part]
    scenario : object[n] or None
        The kind of fraud of each row: for the report only.
    """
    test = fold.test
    fraud = np.asarray(table.is_fraud)[test] == 1
    day = (table.event_time_ms[test] - fold.start_ms) // MS_PER_DAY
    card = np.unique(table.user_id[test].astype(str), return_inverse=True)[1]
    by_scenario = {}
    if scenario is not None:
        false_positives, _, thresholds = roc_curve(fraud, scores, drop_intermediate=False)
        index = int(np.searchsorted(false_positives, _FALSE_POSITIVES, side="right")) - 1
        flagged = scores >= thresholds[index]
        kinds = scenario[test]
        by_scenario = {
            str(kind): float(flagged[fraud & (kinds == kind)].mean())
            for kind in sorted({str(kind) for kind in kinds[fraud].tolist() if kind is not None})
        }
    return {
        "week": fold.week,
        "auc": float(roc_auc_score(fraud, scores)),
        "average_precision": float(average_precision_score(fraud, scores)),
        "card_precision_100": card_precision(day, card, fraud, scores),
        "card_precision_100_ceiling": card_precision(day, card, fraud, fraud.astype(np.float64)),
        "recall_by_scenario": by_scenario,
        "rows": int(test.sum()),
        "frauds": int(fraud.sum()),
        "training_rows": int(fold.train.sum()),
        "training_frauds": int((np.asarray(table.is_fraud)[fold.train] == 1).sum()),
    }


def summarise(folds: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return mean and standard deviation (of the population of folds) of every figure that is a share."""
    mean: dict[str, Any] = {}
    std: dict[str, Any] = {}
    for name in ("auc", "average_precision", "card_precision_100", "card_precision_100_ceiling"):
        values = [fold[name] for fold in folds]
        mean[name], std[name] = float(np.mean(values)), float(np.std(values))
    kinds = sorted({kind for fold in folds for kind in fold["recall_by_scenario"]})
    for summary, of in ((mean, np.mean), (std, np.std)):
        summary["recall_by_scenario"] = {
            kind: float(of([f["recall_by_scenario"][kind] for f in folds if kind in f["recall_by_scenario"]]))
            for kind in kinds
        }
    return mean, std


def evaluate_weeks(
    table: TransactionTable,
    recipe: Recipe,
    protocol: Protocol,
    *,
    scenario: npt.NDArray[np.object_] | None = None,
    ceiling: Sequence[npt.NDArray[np.float64]] = (),
    threads: int = 1,
    features: tuple[FeatureSpec, FeatureTable] | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Return the figures of each week, their mean and spread, and a description of the run, as JSON values.

    Parameters
    ----------
    scenario
        See :func:`fold_metrics`.
    ceiling : float64[n] each
        Further scores for the same weeks, such as :func:`knowledge_scores` of several seeds; their mean is
        reported.
    features
        Features of the whole table and their spec, if the caller has them already; the spec's categories must
        be those of rows whose labels were known before the first test week.
    progress
        Called with the number of folds done since its last call.

    Raises
    ------
    DataError
        See :func:`week_fold`.
    """
    folds = [_fold(table, recipe, protocol, number) for number in range(protocol.folds)]
    spec, built = features or weekly_features(table, recipe, protocol)
    figures = []
    ceilings = []
    booster = None
    for whole in folds:
        fold = _scored(whole, built)
        if booster is None or protocol.retrain:
            booster = _learn(table, recipe, fold, (spec, built), threads)
        figures.append(
            fold_metrics(table, fold, _scores(booster, built.matrix[fold.test], threads), scenario)
        )
        ceilings += [fold_metrics(table, fold, scores[fold.test]) for scores in ceiling]
        if progress is not None:
            progress(1)
    mean, std = summarise(figures)
    result = {
        "folds": figures,
        "mean": mean,
        "std": std,
        "config": {
            "first_test_week": folds[0].week,
            "folds": protocol.folds,
            "retrain": protocol.retrain,
            "label_delay_days": protocol.label_delay_ms / MS_PER_DAY,
            "recall_by_scenario_at_false_positive_rate": _FALSE_POSITIVES,
            "recipe": recipe.to_json(),
            "feature_spec": spec.hash,
        },
    }
    if ceilings:
        result["knowledge_ceiling"] = {
            name: value for name, value in summarise(ceilings)[0].items() if isinstance(value, float)
        }
    return result


def first_week(
    table: TransactionTable,
    recipe: Recipe,
    protocol: Protocol,
    features: tuple[FeatureSpec, FeatureTable],
    *,
    threads: int = 1,
) -> tuple[Fold, lightgbm.Booster]:
    """Return the first week's fold, as far as its rows are scored, and the model that judges it.

    Both are those of :func:`evaluate_weeks`, of which ``features`` and errors are too.
    """
    fold = _scored(_fold(table, recipe, protocol, 0), features[1])
    return fold, _learn(table, recipe, fold, features, threads)


def weekly_features(
    table: TransactionTable,
    recipe: Recipe,
    protocol: Protocol,
    *,
    progress: Callable[[int], None] | None = None,
) -> tuple[FeatureSpec, FeatureTable]:
    """Return features of the whole table, and their spec with the first training part's categories."""
    before = table.event_time_ms < protocol.first_week_ms - protocol.label_delay_ms
    wanted = tuple(
        profile.delayed(protocol.label_delay_ms / MS_PER_DAY) for profile in present(table, recipe.entities)
    )
    spec = fit_spec(table, before, wanted)
    return spec, build_features(
        table, spec, allowed_lateness_ms=protocol.allowed_lateness_ms, progress=progress
    )


def knowledge_scores(
    table: TransactionTable, scenario: npt.NDArray[np.object_], delay_ms: int, *, seed: int = 0
) -> npt.NDArray[np.float64]:
    """Return the scores of an oracle that knows the Handbook's scenarios, a ceiling: float64[n].

    The oracle knows every fraud of scenarios 1 and 3, and a fraud of scenario 2 from the first confirmed
    fraud of its terminal's four compromised weeks on. Everything else is in random order, whose luck moves
    the AUC of some weeks by 0.005: take the mean over several seeds.
    """
    scores = np.random.default_rng(seed).random(len(table))
    scores[(scenario == "1") | (scenario == "3")] = 2.0
    rows = np.flatnonzero(scenario == "2")
    names = np.asarray(table.merchant_id)
    since: dict[str, int] = {}
    for row in rows[np.argsort(table.event_time_ms[rows], kind="stable")].tolist():
        now = int(table.event_time_ms[row])
        first = since.get(names[row])
        if first is None or now - first > 28 * MS_PER_DAY:
            since[names[row]] = now
        elif now - first >= delay_ms:
            scores[row] = 2.0
    return scores


def _fold(table: TransactionTable, recipe: Recipe, protocol: Protocol, number: int) -> Fold:
    return week_fold(
        table,
        protocol.first_week_ms + number * _WEEK_MS,
        label_delay_ms=protocol.label_delay_ms,
        training_days=recipe.training_days,
        without_blocked=recipe.without_blocked,
    )


def _scored(fold: Fold, built: FeatureTable) -> Fold:
    scored = built.outcome == SCORED
    return Fold(fold.start_ms, fold.train & scored, fold.test & scored)


def _learn(
    table: TransactionTable,
    recipe: Recipe,
    fold: Fold,
    features: tuple[FeatureSpec, FeatureTable],
    threads: int,
) -> lightgbm.Booster:
    spec, built = features
    labels = np.asarray(table.is_fraud)
    return fit_booster(recipe, spec, built.matrix[fold.train], labels[fold.train], threads=threads)


def _scores(
    booster: lightgbm.Booster, matrix: npt.NDArray[np.float64], threads: int
) -> npt.NDArray[np.float64]:
    return np.asarray(booster.predict(matrix, num_threads=threads), np.float64)
