"""Reasons: the features that moved a score most, against the user's own usual values, in a sentence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stream.decisions.sentences import Sentences
from stream.features.profiles.spec import profile_features
from stream.features.spec import WINDOWS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from stream.decisions.sentences import Language
    from stream.features.spec import FeatureSpec

__all__ = ["Explainer"]


_DAYS: Final = {"1h": 1 / 24, "24h": 1.0, "7d": 7.0, "30d": 30.0}
_DAY: Final = 86_400.0


class Explainer:
    """Makes the reasons of an alert from its feature row and SHAP contributions."""

    def __init__(self, spec: FeatureSpec, most: int, language: Language = "en") -> None:
        self._spec = spec
        self._names = spec.names
        self._categorical = frozenset(spec.categorical)
        self._most = most
        self._sentences = Sentences(language)
        self._profiles = {
            name: (profile, aggregate, days)
            for profile in spec.entities
            for name, aggregate, days in profile_features(profile)
        }

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
        for index in np.argsort(-contributions[:-1], kind="stable")[: self._most].tolist():
            contribution = float(contributions[index])
            if contribution <= 0:
                break
            name = self._names[index]
            value = values[name]
            usual = None if name in self._profiles else _usual(name, values)
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
            return self._category(name, value) or self._sentences.unseen
        return round(value, 6)

    def _category(self, name: str, value: float) -> str | None:
        """Return the text of a category's code, None for a category that training never saw."""
        column = name.removeprefix("attributes.").removesuffix("_code")
        known = self._spec.categories[column]
        return known[int(value)] if 0 <= value < len(known) else None

    def _sentence(self, name: str, value: float, usual: float | None, values: Mapping[str, float]) -> str:
        say = self._sentences
        if name in self._categorical:
            column = name.removeprefix("attributes.").removesuffix("_code")
            return say.category(column, self._category(name, value))
        if name in self._profiles:
            profile, aggregate, days = self._profiles[name]
            longest = max(profile.label_windows_days, default=None)
            return say.profile(profile.entity, aggregate, days, longest, value)
        if math.isnan(value):
            return say.missing(name)
        for window in () if name.startswith("attributes.") else WINDOWS:
            if name.endswith(f"_{window}"):
                return say.window(name.removesuffix(f"_{window}"), window, value, usual)
        return say.plain(name, value, usual, values["amount_to_mean_30d"])


def _usual(name: str, values: Mapping[str, float]) -> float | None:
    """Return the value that the user's 30-day or lifetime history would suggest."""
    usual = math.nan
    if name == "amount":
        usual = (
            values["amount"] / values["amount_to_mean_30d"] if values["amount_to_mean_30d"] > 0 else math.nan
        )
    elif name.startswith(("amount_to_mean_", "lifetime_")):
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
