"""Reference statistics for drift: the distribution of each feature and of the score at training time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy.typing as npt

__all__ = ["reference_statistics"]


_BINS: Final = 10


def reference_statistics(
    matrix: npt.NDArray[np.float64],
    names: Sequence[str],
    categorical: Collection[str],
    scores: npt.NDArray[np.float64],
) -> dict[str, Any]:
    """Return the distribution of each column of ``matrix`` (shape ``(n, len(names))``) and of ``scores``.

    Returns
    -------
    dict
        ``rows``; ``score``: one distribution; ``features``: one by name. A numeric distribution has ``kind``
        "numeric", ``edges``, ``shares``, ``missing``, ``mean``, ``std``. ``edges`` are the k distinct inner
        quantiles; ``shares`` has k + 1 members, bin i holds the values in ``(edges[i - 1], edges[i]]``, the
        first and last bin are open. A categorical distribution has ``kind`` "categorical", ``codes``,
        ``shares`` and ``missing``, where codes below 0 count as a code. Shares are of the values that exist
        and sum to 1; ``missing`` is of all rows. ``mean`` and ``std`` are None without any value.
    """
    features: dict[str, Any] = {}
    for index, name in enumerate(names):
        column = matrix[:, index]
        features[name] = _categorical(column) if name in categorical else _numeric(column)
    return {"rows": len(matrix), "score": _numeric(scores), "features": features}


def _numeric(column: npt.NDArray[np.float64]) -> dict[str, Any]:
    values = column[np.isfinite(column)]
    missing = 1.0 - len(values) / len(column) if len(column) else 0.0
    if not len(values):
        return {
            "kind": "numeric",
            "edges": [],
            "shares": [0.0],
            "missing": missing,
            "mean": None,
            "std": None,
        }
    # Quantiles that are values themselves, so that a value met often does not fall between two edges.
    inner = np.quantile(values, np.arange(1, _BINS) / _BINS, method="lower")
    edges = np.unique(inner)
    edges = edges[edges < values.max()]
    counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
    return {
        "kind": "numeric",
        "edges": edges.tolist(),
        "shares": (counts / len(values)).tolist(),
        "missing": missing,
        "mean": float(values.mean()),
        "std": float(values.std()),
    }


def _categorical(column: npt.NDArray[np.float64]) -> dict[str, Any]:
    values = column[np.isfinite(column)]
    codes, counts = np.unique(values.astype(np.int64), return_counts=True)
    return {
        "kind": "categorical",
        "codes": codes.tolist(),
        "shares": (counts / max(1, len(values))).tolist(),
        "missing": 1.0 - len(values) / len(column) if len(column) else 0.0,
    }
