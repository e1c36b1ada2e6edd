"""Class imbalance: ways to resample or weight the training part of a fold, and no other part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from stream.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

__all__ = ["IMBALANCES", "RATIO", "Balanced", "Imbalance", "as_imbalance", "balance"]


#: ``none``; ``class_weight``: frauds weigh as much as all others together (LightGBM's ``scale_pos_weight``);
#: ``smote``, ``smotenc``: made-up frauds between neighbours (Chawla et al., 2002); ``undersample``: a random
#: part of the legitimate rows.
Imbalance: TypeAlias = Literal["none", "class_weight", "smote", "smotenc", "undersample"]

IMBALANCES: Final[tuple[Imbalance, ...]] = get_args(Imbalance)

#: Frauds for each legitimate row that resampling aims at: enough to matter, not most of them made up.
RATIO: Final = 0.05

_NEIGHBOURS: Final = 5


def as_imbalance(name: str) -> Imbalance:
    """Return the name, checked.

    Raises
    ------
    ConfigError
        It is none of ``IMBALANCES``.
    """
    for known in IMBALANCES:
        if name == known:
            return known
    raise ConfigError(f"imbalance: must be one of {', '.join(IMBALANCES)}, not {name!r}")


class Balanced(NamedTuple):
    """A training part: float64[n, features], float64[n] of 0 and 1, and float64[n] or None (all the same)."""

    matrix: npt.NDArray[np.float64]
    labels: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64] | None


def balance(
    kind: Imbalance,
    matrix: npt.NDArray[np.float64],
    labels: npt.NDArray[Any],
    *,
    categorical: Sequence[int] = (),
    ratio: float = RATIO,
    seed: int = 7,
) -> Balanced:
    """Return a training part with its classes brought nearer to each other.

    The caller passes training rows only: a validation or test part keeps the rates of real life.

    Parameters
    ----------
    matrix : float64[n, features]
        NaN stands for an unknown value. The search for neighbours uses the median instead and scales every
        column to the same spread; real rows keep their NaN, synthetic rows have none.
    categorical
        Columns of codes; only ``smotenc`` respects them, ``smote`` makes codes between two codes.
    ratio
        Frauds for each legitimate row; a part that has as many already stays unchanged.

    Raises
    ------
    ConfigError
        The ratio is not in (0, 1].
    DataError
        There are too few frauds to find neighbours.
    """
    if not 0 < ratio <= 1:
        raise ConfigError(f"imbalance ratio: must lie above 0 and up to 1, not {ratio}")
    truth = np.asarray(labels, np.float64)
    frauds = int(truth.sum())
    others = len(truth) - frauds
    if kind == "class_weight":
        return Balanced(matrix, truth, np.where(truth == 1, others / max(1, frauds), 1.0))
    if kind == "none" or frauds >= others * ratio:
        return Balanced(matrix, truth, None)
    if kind == "undersample":
        rng = np.random.default_rng(seed)
        legitimate = np.flatnonzero(truth == 0)
        kept = rng.choice(legitimate, round(frauds / ratio), replace=False)
        # In the order of time, as they came.
        rows = np.sort(np.concatenate([kept, np.flatnonzero(truth == 1)]))
        return Balanced(matrix[rows], truth[rows], None)
    if frauds <= _NEIGHBOURS:
        raise DataError(
            f"imbalance {kind} needs more than {_NEIGHBOURS} frauds in the training part; it has {frauds}"
        )
    made = _made_up(kind, matrix, truth, round(others * ratio) - frauds, categorical, seed)
    return Balanced(np.concatenate([matrix, made]), np.concatenate([truth, np.ones(len(made))]), None)


def _made_up(
    kind: Imbalance,
    matrix: npt.NDArray[np.float64],
    truth: npt.NDArray[np.float64],
    count: int,
    categorical: Sequence[int],
    seed: int,
) -> npt.NDArray[np.float64]:
    """Return ``count`` rows between neighbouring frauds: float64[count, features]."""
    from imblearn.over_sampling import SMOTE, SMOTENC  # noqa: PLC0415 - takes a second to load

    known = np.isfinite(matrix)
    whole = matrix[:, known.any(axis=0)]
    codes = np.isin(np.flatnonzero(known.any(axis=0)), categorical)
    middle = np.nanmedian(np.where(np.isfinite(whole), whole, np.nan), axis=0)
    whole = np.where(np.isfinite(whole), whole, middle)
    centre = np.where(codes, 0.0, whole.mean(axis=0))
    spread = np.where(codes, 1.0, whole.std(axis=0))
    spread[spread == 0] = 1.0
    scaled = (whole - centre) / spread
    # Synthetic rows lie between frauds: of the others the library needs only its minimum.
    frauds = scaled[truth == 1]
    others = scaled[truth == 0]
    wanted = len(frauds) + count
    stand_ins = others[
        np.random.default_rng(seed).choice(len(others), min(len(others), wanted), replace=False)
    ]
    rows = np.concatenate([frauds, stand_ins])
    kinds = np.r_[np.ones(len(frauds), np.int64), np.zeros(len(stand_ins), np.int64)]
    options: dict[str, Any] = {
        "sampling_strategy": {1: wanted},
        "k_neighbors": _NEIGHBOURS,
        "random_state": seed,
    }
    if kind == "smotenc" and codes.any():
        sampler = SMOTENC(categorical_features=np.flatnonzero(codes).tolist(), **options)
    else:
        sampler = SMOTE(**options)
    found, _ = sampler.fit_resample(rows, kinds)
    made = np.asarray(found, np.float64)[len(rows) :] * spread + centre
    result = np.full((len(made), matrix.shape[1]), np.nan)
    result[:, known.any(axis=0)] = made
    return result
