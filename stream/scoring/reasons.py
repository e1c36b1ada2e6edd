"""Reasons: the features that moved a score most, against the user's own usual values, in a sentence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stream.features.spec import CATEGORY_COLUMNS, WINDOWS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from stream.features.spec import FeatureSpec

__all__ = ["Explainer"]

_WINDOW_TEXT: Final = {"1h": "hour", "24h": "24 hours", "7d": "7 days", "30d": "30 days"}
_DAYS: Final = {"1h": 1 / 24, "24h": 1.0, "7d": 7.0, "30d": 30.0}
_WEEKDAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MINUTE: Final = 60.0
_HOUR: Final = 3600.0
_DAY: Final = 86_400.0


class Explainer:
    """Makes the reasons of an alert from its feature row and SHAP contributions."""

    def __init__(self, spec: FeatureSpec, most: int) -> None:
        self._spec = spec
        self._names = spec.names
        self._categorical = frozenset(spec.categorical)
        self._most = most

    def reasons(
        self, row: npt.NDArray[np.float64], contributions: npt.NDArray[np.float64]
    ) -> list[dict[str, Any]]:
        """Return the features that raised the score most, strongest first, as ``Reason`` objects.

        Parameters
        ----------
        row : float64[features]
        contributions : float64[features + 1]
        """
        values = dict(zip(self._names, row.tolist(), strict=True))
        found = []
        for place in np.argsort(-contributions[:-1], kind="stable")[: self._most].tolist():
            contribution = float(contributions[place])
            if contribution <= 0:
                break
            name = self._names[place]
            value = values[name]
            usual = _usual(name, values)
            found.append(
                {
                    "feature": name,
                    "value": self._shown_value(name, value),
                    "usual": None if usual is None else round(usual, 4),
                    "contribution": round(contribution, 4),
                    "sentence": self._sentence(name, value, usual, values),
                }
            )
        return found

    def _shown_value(self, name: str, value: float) -> float | str | None:
        if math.isnan(value):
            return None
        if name in self._categorical:
            return self._category(name, value)
        return round(value, 6)

    def _category(self, name: str, value: float) -> str:
        column = name.removeprefix("attributes.").removesuffix("_code")
        known = self._spec.categories[column]
        return known[int(value)] if 0 <= value < len(known) else "a value that training never saw"

    def _sentence(self, name: str, value: float, usual: float | None, values: Mapping[str, float]) -> str:
        if name in self._categorical:
            column = name.removeprefix("attributes.").removesuffix("_code").replace("_", " ")
            return f"{column} is {self._category(name, value)}"
        if math.isnan(value):
            return _MISSING.get(name, f"{name} is not known")
        for window in () if name.startswith("attributes.") else WINDOWS:
            if name.endswith(f"_{window}"):
                return _window_sentence(name.removesuffix(f"_{window}"), window, value, usual)
        return _plain_sentence(name, value, usual, values)


_MISSING: Final = {
    "seconds_since_previous": "this is the user's first known transaction",
    "days_since_last": "this is the user's first known transaction",
    "amount_to_mean_7d": "the user has spent nothing else in the last 7 days",
    "amount_to_mean_30d": "the user has spent nothing else in the last 30 days",
    "amount_zscore_30d": "the user has too few transactions in the last 30 days to compare with",
    "balance_change_ratio": "the balance before is not known",
    "balance_after_ratio": "the balance after is not known",
    "lifetime_amount_std": "the user has no earlier transaction to compare with",
    "lifetime_amount_cv": "the user has no earlier transaction to compare with",
}


def _usual(name: str, values: Mapping[str, float]) -> float | None:
    """Return what the value would be if the user did as the 30-day or lifetime history says."""
    usual = math.nan
    if name == "amount":
        usual = (
            values["amount"] / values["amount_to_mean_30d"] if values["amount_to_mean_30d"] > 0 else math.nan
        )
    elif name.startswith(("amount_to_mean_", "lifetime_")) or name in CATEGORY_COLUMNS:
        return None
    elif name == "seconds_since_previous" or name == "days_since_last":  # noqa: PLR1714 - units differ
        count = values["transaction_count_30d"]
        if count > 1:
            usual = 30.0 / count * (_DAY if name == "seconds_since_previous" else 1.0)
    else:
        for window in WINDOWS[:-1]:
            if name.endswith(f"_{window}"):
                usual = _usual_of_window(name.removesuffix(f"_{window}"), window, values)
    return None if math.isnan(usual) else usual


def _usual_of_window(base: str, window: str, values: Mapping[str, float]) -> float:
    if base in ("transaction_count", "amount_sum"):
        return values[f"{base}_30d"] * _DAYS[window] / 30.0
    return values.get(f"{base}_30d", math.nan)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.2f}"


def _duration(seconds: float) -> str:
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} seconds"
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:.0f} minutes"
    if seconds < 2 * _DAY:
        return f"{seconds / _HOUR:.0f} hours"
    return f"{seconds / _DAY:.0f} days"


def _against(usual: float | None) -> str:
    if usual is None or usual <= 0:
        return ""
    return f", against a usual {_number(usual)}"


def _window_sentence(base: str, window: str, value: float, usual: float | None) -> str:
    span = f"in the last {_WINDOW_TEXT[window]}"
    if base == "transaction_count":
        plural = "transaction" if value == 1 else "transactions"
        return f"{_number(value)} {plural} {span}{_against(usual)}"
    if base == "merchant_distinct":
        plural = "merchant" if value == 1 else "merchants"
        return f"{_number(value)} different {plural} {span}{_against(usual)}"
    if base == "amount_to_mean":
        return f"the amount is {value:.1f} times this user's {window} mean"
    if base == "amount_zscore":
        side = "above" if value >= 0 else "below"
        return f"the amount is {abs(value):.1f} standard deviations {side} this user's {window} mean"
    what = {"amount_sum": "spent", "amount_mean": "mean amount", "amount_max": "largest amount"}.get(
        base, "spread of amounts"
    )
    if base == "amount_sum":
        return f"{value:,.2f} spent {span}{_against(usual)}"
    return f"{what} {value:,.2f} {span}{_against(usual)}"


def _plain_sentence(  # noqa: C901 - a table of sentences
    name: str, value: float, usual: float | None, values: Mapping[str, float]
) -> str:
    if name == "amount":
        ratio = values["amount_to_mean_30d"]
        if ratio > 0:
            return (
                f"amount {value:,.2f} is {ratio:.1f} times this user's 30-day mean of {_number(usual or 0)}"
            )
        return f"amount {value:,.2f}" + (
            ", with nothing else spent in the last 30 days" if math.isnan(ratio) else ""
        )
    if name == "seconds_since_previous":
        usually = f", usually {_duration(usual)}" if usual else ""
        return f"{_duration(value)} after the previous transaction{usually}"
    if name == "days_since_last":
        usually = f", usually {_duration(usual * _DAY)}" if usual else ""
        return f"{_duration(value * _DAY)} after the previous transaction{usually}"
    if name == "days_since_first":
        return f"the user is known for {value:,.0f} days"
    if name == "hour":
        return f"at {value:.0f} o'clock UTC"
    if name == "day_of_week":
        return f"on a {_WEEKDAYS[int(value)]}"
    if name == "is_weekend":
        return "on a weekend" if value else "not on a weekend"
    if name == "is_month_end":
        return "on the last day of a month" if value else "not on the last day of a month"
    if name == "balance_change_ratio":
        return f"the amount is {value:.0%} of the balance before"
    if name == "balance_after_ratio":
        return f"{value:.0%} of the balance is left"
    if name == "lifetime_count":
        return f"the user has made {value:,.0f} transactions so far"
    return f"{name.removeprefix('attributes.').replace('_', ' ')} is {_number(value)}"
