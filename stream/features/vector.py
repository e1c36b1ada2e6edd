"""Feature vectors: a transaction's own values next to those of its history, in the spec's order.

This is the only place where a row of the model's input is assembled, for the worker's batches and for
training alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from stream.features.spec import (
    BALANCE_FEATURES,
    CALENDAR_FEATURES,
    CATEGORY_COLUMNS,
    HISTORY_FEATURES,
    MISSING,
    UNSEEN_CODE,
    FeatureSpec,
)
from stream.jit import jit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

__all__ = ["Columns", "VectorBuilder"]


_BALANCE: Final = 1 + len(CALENDAR_FEATURES)
_CATEGORY: Final = _BALANCE + len(BALANCE_FEATURES)
_HISTORY: Final = _CATEGORY + len(CATEGORY_COLUMNS)
_ATTRIBUTES: Final = _HISTORY + len(HISTORY_FEATURES)


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a batch of n transactions.

    Attributes
    ----------
    time_ms, amount_minor, minor_units, pre_balance_minor, post_balance_minor:
        int64[n]; an unknown balance is MISSING.
    categories:
        The n texts of each category column; None for an unknown one.
    numeric_attributes:
        float64[n] by name, NaN for an unknown value.
    categorical_attributes:
        n texts by name; None for an unknown one.
    """

    time_ms: npt.NDArray[np.int64]
    amount_minor: npt.NDArray[np.int64]
    minor_units: npt.NDArray[np.int64]
    pre_balance_minor: npt.NDArray[np.int64]
    post_balance_minor: npt.NDArray[np.int64]
    categories: Mapping[str, Sequence[str | None]]
    numeric_attributes: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    categorical_attributes: Mapping[str, Sequence[str | None]] = field(default_factory=dict)


class VectorBuilder:
    """Builds rows of a spec's features."""

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec
        self._codes = {
            column: {value: code for code, value in enumerate(values)}
            for column, values in spec.categories.items()
        }

    def empty(self, rows: int) -> npt.NDArray[np.float64]:
        """Return float64[rows, features] of NaN."""
        return np.full((rows, len(self.spec.names)), np.nan)

    def entities(self, matrix: npt.NDArray[np.float64], index: int) -> npt.NDArray[np.float64]:
        """Return the columns of the spec's entity profile number ``index``, a view."""
        return matrix[:, self.spec.entity_columns(index)]

    @staticmethod
    def history(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the columns of a matrix that the history's kernel fills: float64[n, 35], a view."""
        return matrix[:, _HISTORY:_ATTRIBUTES]

    def fill(self, columns: Columns, matrix: npt.NDArray[np.float64]) -> None:
        """Write all but the history's columns."""
        _fill(
            columns.time_ms,
            columns.amount_minor,
            columns.minor_units,
            columns.pre_balance_minor,
            columns.post_balance_minor,
            matrix,
        )
        for index, column in enumerate(CATEGORY_COLUMNS, _CATEGORY):
            matrix[:, index] = self._encode(column, columns.categories[column])
        index = _ATTRIBUTES
        for name in self.spec.numeric_attributes:
            matrix[:, index] = columns.numeric_attributes[name]
            index += 1
        for name in self.spec.categorical_attributes:
            matrix[:, index] = self._encode(name, columns.categorical_attributes[name])
            index += 1

    def _encode(self, column: str, values: Sequence[str | None]) -> npt.NDArray[np.float64]:
        codes: dict[str | None, int] = self._codes[column]  # type: ignore[assignment]  # None is in no spec
        return np.fromiter((codes.get(value, UNSEEN_CODE) for value in values), np.float64, len(values))


@jit
def _is_month_end(days: int) -> bool:
    """Return whether a day (since 1970-01-01) is its month's last.

    The next day's day of the month, by the civil calendar's arithmetic on years that begin in March.
    """
    shifted = days + 1 + 719_468
    era_day = shifted % 146_097
    era_year = (era_day - era_day // 1460 + era_day // 36_524 - era_day // 146_096) // 365
    year_day = era_day - (365 * era_year + era_year // 4 - era_year // 100)
    month = (5 * year_day + 2) // 153
    return year_day - (153 * month + 2) // 5 == 0


@jit
def _fill(
    time_ms: npt.NDArray[np.int64],
    amount_minor: npt.NDArray[np.int64],
    minor_units: npt.NDArray[np.int64],
    pre_balance: npt.NDArray[np.int64],
    post_balance: npt.NDArray[np.int64],
    matrix: npt.NDArray[np.float64],
) -> None:
    for row in range(len(time_ms)):
        days = time_ms[row] // 86_400_000
        weekday = (days + 3) % 7  # 1970-01-01 was a Thursday
        matrix[row, 0] = float(amount_minor[row]) / float(minor_units[row])
        matrix[row, 1] = float(time_ms[row] // 3_600_000 % 24)
        matrix[row, 2] = float(weekday)
        matrix[row, 3] = 1.0 if weekday >= 5 else 0.0  # noqa: PLR2004 - Saturday
        matrix[row, 4] = 1.0 if _is_month_end(days) else 0.0
        before = pre_balance[row]
        known = before not in (MISSING, 0)
        matrix[row, 5] = float(amount_minor[row]) / float(before) if known else math.nan
        after = post_balance[row]
        matrix[row, 6] = float(after) / float(before) if known and after != MISSING else math.nan
