"""Figures of a scored set of transactions. Pure functions: labels and scores in, numbers out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["best_f1_threshold", "binary_metrics", "precision_threshold"]


def binary_metrics(
    labels: npt.NDArray[Any], scores: npt.NDArray[np.float64], threshold: float
) -> dict[str, Any]:
    """Return the figures of scores against labels.

    Parameters
    ----------
    labels:
        Shape ``(n,)``, 1 fraud and 0 legitimate.
    scores:
        Shape ``(n,)``, a higher score is more suspicious; not-a-number is an error.
    threshold:
        Scores from here on are predicted frauds.

    Returns
    -------
    dict
        ``rows``, ``frauds``, ``auc`` and ``average_precision`` (None with one class only), ``threshold``,
        ``precision``, ``recall`` and ``f1`` (0 if undefined) and ``confusion`` with ``true_positive``,
        ``false_positive``, ``true_negative``, ``false_negative``. JSON values only.

    Raises
    ------
    ValueError
        Shapes differ, a label is neither 0 nor 1, or a score is not a number.
    """
    truth = np.asarray(labels)
    if truth.shape != scores.shape or truth.ndim != 1:
        msg = f"labels and scores must have one shape (n,), not {truth.shape} and {scores.shape}"
        raise ValueError(msg)
    if not np.isin(truth, (0, 1)).all():
        msg = "labels must be 0 or 1; leave out rows without a label"
        raise ValueError(msg)
    if not np.isfinite(scores).all():
        msg = "scores must be finite"
        raise ValueError(msg)
    fraud = truth == 1
    flagged = scores >= threshold
    true_positive = int((fraud & flagged).sum())
    false_positive = int((~fraud & flagged).sum())
    false_negative = int((fraud & ~flagged).sum())
    true_negative = int((~fraud & ~flagged).sum())
    precision = true_positive / max(1, true_positive + false_positive)
    recall = true_positive / max(1, true_positive + false_negative)
    both = bool(fraud.any() and (~fraud).any())
    return {
        "rows": len(truth),
        "frauds": int(fraud.sum()),
        "auc": float(roc_auc_score(fraud, scores)) if both else None,
        "average_precision": float(average_precision_score(fraud, scores)) if both else None,
        "threshold": float(threshold),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "confusion": {
            "true_positive": true_positive,
            "false_positive": false_positive,
            "true_negative": true_negative,
            "false_negative": false_negative,
        },
    }


def best_f1_threshold(labels: npt.NDArray[Any], scores: npt.NDArray[np.float64]) -> float:
    """Return the threshold with the highest F1; the highest such threshold where several share it.

    0.5 where there is no fraud to choose by.
    """
    fraud = np.asarray(labels) == 1
    if not fraud.any():
        return 0.5
    precision, recall, thresholds = precision_recall_curve(fraud, scores)
    total = precision[:-1] + recall[:-1]
    f1 = np.divide(2 * precision[:-1] * recall[:-1], total, out=np.zeros_like(total), where=total > 0)
    return float(thresholds[np.flatnonzero(f1 == f1.max())[-1]])


def precision_threshold(labels: npt.NDArray[Any], scores: npt.NDArray[np.float64], target: float) -> float:
    """Return the lowest threshold with a precision of ``target``, or the best-F1 threshold if none has it."""
    fraud = np.asarray(labels) == 1
    if not fraud.any():
        return 0.5
    precision, _, thresholds = precision_recall_curve(fraud, scores)
    reached = np.flatnonzero(precision[:-1] >= target)
    return float(thresholds[reached[0]]) if len(reached) else best_f1_threshold(labels, scores)
