"""How hard a labelled file is: weak baselines next to a model with history.

A simulated file is useful only if no simple rule solves it and history helps; this module measures both. It
scores the last fifth of the rows; everything is fitted on rows whose labels were known before that fifth
began.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import lightgbm
import numpy as np

from offline.features.build import build_features, fit_spec
from offline.metrics import binary_metrics
from stream.features.spec import MISSING

if TYPE_CHECKING:
    import numpy.typing as npt

    from offline.data.table import TransactionTable

__all__ = ["measure_difficulty", "raw_columns", "three_sigma_scores"]


_TEST_FRACTION: Final = 0.2
_HOUR_MS: Final = 3_600_000


def three_sigma_scores(table: TransactionTable) -> npt.NDArray[np.float64]:
    """Return each amount's distance from the mean of the user's earlier amounts, in standard deviations.

    Shape ``(n,)``; 0 if the user has fewer than two earlier amounts or they are all the same. The 3-sigma
    rule flags distances above 3.
    """
    scores = np.zeros(len(table))
    amounts = table.amount_minor / table.minor_units
    _, users = np.unique(table.user_id.astype(str), return_inverse=True)
    order = np.argsort(users, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(users[order]) != 0]) if len(order) else np.zeros(0, np.int64)
    for rows in np.split(order, starts[1:]):
        own = amounts[rows]
        count = np.arange(len(own))
        total = np.cumsum(own) - own
        squares = np.cumsum(own**2) - own**2
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = total / count
            deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
            distance = np.abs(own - mean) / deviation
        scores[rows] = np.where((count >= 2) & (deviation > 1e-9), distance, 0.0)
    return scores


def raw_columns(table: TransactionTable) -> npt.NDArray[np.float64]:
    """Return amount, balances, codes of channel and type, and hour (UTC): shape ``(n, 6)``, no history."""

    def codes(column: npt.NDArray[np.object_]) -> npt.NDArray[np.float64]:
        return np.unique(column.astype(str), return_inverse=True)[1].astype(np.float64)

    def balance(minor: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return np.where(minor == MISSING, np.nan, minor / table.minor_units)

    return np.column_stack(
        [
            table.amount_minor / table.minor_units,
            balance(table.pre_balance_minor),
            balance(table.post_balance_minor),
            codes(table.channel),
            codes(table.transaction_type),
            table.event_time_ms // _HOUR_MS % 24,
        ]
    )


def measure_difficulty(
    table: TransactionTable, *, allowed_lateness_ms: int, threads: int = 1, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Return AUC and average precision on the last fifth by baseline, weakest first.

    ``three_sigma`` is the per-user rule, ``raw_columns`` XGBoost with its defaults on :func:`raw_columns`,
    ``history`` LightGBM with its defaults on every feature of the stream.

    Raises
    ------
    ValueError
        The table has no labels, or one class only.
    """
    import xgboost  # noqa: PLC0415 - for this comparison only

    if table.is_fraud is None:
        msg = "the table has no labels"
        raise ValueError(msg)
    known = (table.is_fraud >= 0) & table.valid
    times = table.event_time_ms
    start = int(np.sort(times[known])[int(known.sum() * (1 - _TEST_FRACTION))])
    label_times = times if table.label_time_ms is None else table.label_time_ms
    fit = known & (times < start) & (label_times < start)
    test = known & (times >= start)
    features = build_features(table, fit_spec(table, fit), allowed_lateness_ms=allowed_lateness_ms)
    scored = features.outcome == 0
    fit &= scored
    test &= scored
    truth = table.is_fraud
    raw = raw_columns(table)
    plain = xgboost.XGBClassifier(n_jobs=threads, random_state=seed).fit(raw[fit], truth[fit])
    params = {
        "objective": "binary",
        "verbose": -1,
        "num_threads": threads,
        "seed": seed,
        "deterministic": True,
    }
    data = lightgbm.Dataset(features.matrix[fit], truth[fit].astype(np.float64))
    history = lightgbm.train(params, data, num_boost_round=100)
    scores = {
        "three_sigma": three_sigma_scores(table)[test],
        "raw_columns": np.asarray(plain.predict_proba(raw[test])[:, 1], np.float64),
        "history": np.asarray(history.predict(features.matrix[test], num_threads=threads)),
    }
    return {
        name: binary_metrics(truth[test], values, 3.0 if name == "three_sigma" else 0.5)
        for name, values in scores.items()
    }
