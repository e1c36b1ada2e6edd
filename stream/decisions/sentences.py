"""The sentences of alert reasons, in each language: templates filled with figures.

The templates are data: ``locales/<language>.toml``, with the same keys in every language. A key is a
feature's name, or the aggregate of a window or of a profile; a feature without a template gets a plain
sentence.
"""

from __future__ import annotations

import math
import tomllib
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from stream.features.spec import CATEGORY_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LANGUAGES", "Language", "Sentences", "load_templates"]


Language: TypeAlias = Literal["en", "zh"]
LANGUAGES: Final[tuple[Language, ...]] = get_args(Language)
_MINUTE: Final = 60.0
_HOUR: Final = 3600.0
_DAY: Final = 86_400.0

#: Aggregates that have no value as long as no fraud is known.
_OF_FRAUDS: Final = frozenset(
    {
        "fraud_to_usual_min",
        "days_since_first_fraud",
        "days_since_last_fraud",
        "legitimate_since_fraud",
        "fraud_amount_min",
    }
)


@cache
def load_templates(language: Language) -> Mapping[str, str]:
    """Return the templates of a language by key."""
    file = resources.files("stream.decisions") / "locales" / f"{language}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


class Sentences:
    """Sentences about the values of features, in one language."""

    def __init__(self, language: Language = "en") -> None:
        self._texts = load_templates(language)
        #: Stands for a category that training never saw.
        self.unseen = self._texts["unseen"]

    def category(self, name: str, value: str | None) -> str:
        """Return the sentence of a category; None is a category that training never saw."""
        shown = self.unseen if value is None else value
        # An attribute keeps the file's name, in any language.
        known = name in CATEGORY_COLUMNS
        return self._texts["plain"].format(
            name=self._texts[name] if known else name.replace("_", " "), value=shown
        )

    def missing(self, name: str) -> str:
        """Return the sentence of a feature without a value."""
        text = self._texts.get(f"{name}.none")
        return self._texts["unknown"].format(name=name) if text is None else text

    def window(self, base: str, window: str, value: float, usual: float | None) -> str:
        """Return the sentence of an aggregate (``amount_sum``) over a window (``24h``)."""
        if base == "amount_zscore":
            key = "amount_zscore.above" if value >= 0 else "amount_zscore.below"
        else:
            key = f"{base}.one" if value == 1 and f"{base}.one" in self._texts else base
        against = ""
        if usual is not None and usual > 0:
            against = self._texts["against"].format(usual=_number(usual))
        return self._texts[key].format(
            value=_number(value),
            money=f"{value:,.2f}",
            times=f"{abs(value):.1f}",
            window=self._texts[f"window.{window}"],
            mean=self._texts[f"mean.{window}"],
            against=against,
        )

    def profile(
        self, entity: str, aggregate: str, days: float | None, longest: float | None, value: float
    ) -> str:
        """Return the sentence of a profile's feature over ``days``, or over the longest label window."""
        of = self._texts[entity]
        length = longest if days is None else days
        span = "" if length is None else self._span(length)
        if math.isnan(value):
            key = "profile.no_fraud" if aggregate in _OF_FRAUDS else "profile.none"
            return self._texts[key].format(entity=of, span=span)
        key = f"profile.{aggregate}"
        if value == 1 and f"{key}.one" in self._texts:
            key = f"{key}.one"
        return self._texts[key].format(
            entity=of,
            span=span,
            value=_number(value),
            money=f"{value:,.2f}",
            times=f"{value:.1f}",
            percent=f"{value:.0%}",
            duration=self._duration(value * _DAY),
        )

    def plain(self, name: str, value: float, usual: float | None, mean_ratio: float) -> str:
        """Return the sentence of any other feature.

        ``mean_ratio`` is the amount divided by the 30-day mean, NaN without one.
        """
        key = {"hour": "hour_of_day"}.get(name, name)
        if name == "amount" and mean_ratio > 0:
            key = "amount.ratio"
        elif name == "amount" and math.isnan(mean_ratio):
            key = "amount.alone"
        elif name in ("is_weekend", "is_month_end"):
            key = f"{name}.{'yes' if value else 'no'}"
        if key not in self._texts or name.startswith("attributes."):
            shown = name.removeprefix("attributes.").replace("_", " ")
            return self._texts["plain"].format(name=shown, value=_number(value))
        seconds = {"seconds_since_previous": 1.0, "days_since_last": _DAY}.get(name)
        usually = ""
        if usual and seconds is not None:
            usually = self._texts["usually"].format(usual=self._duration(usual * seconds))
        weekdays = self._texts["weekdays"].split()
        return self._texts[key].format(
            money=f"{value:,.2f}",
            times=f"{mean_ratio:.1f}",
            usual=_number(usual or 0),
            duration="" if seconds is None else self._duration(value * seconds),
            usually=usually,
            whole=f"{value:,.0f}",
            percent=f"{value:.0%}",
            weekday=weekdays[int(value)] if name == "day_of_week" else "",
        )

    def _duration(self, seconds: float) -> str:
        if seconds < 2 * _MINUTE:
            return self._texts["second"].format(n=f"{seconds:.0f}")
        if seconds < 2 * _HOUR:
            return self._texts["minute"].format(n=f"{seconds / _MINUTE:.0f}")
        if seconds < 2 * _DAY:
            return self._texts["hour"].format(n=f"{seconds / _HOUR:.0f}")
        return self._texts["day"].format(n=f"{seconds / _DAY:.0f}")

    def _span(self, days: float) -> str:
        return self._texts["span.day" if days == 1 else "span.days"].format(n=f"{days:g}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.2f}"
