"""The sentences of reasons, in English and in Chinese: what a feature's value means, for people."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LANGUAGES", "Chinese", "English", "Sentences"]

_MINUTE: Final = 60.0
_HOUR: Final = 3600.0
_DAY: Final = 86_400.0


class Sentences(ABC):
    """A language; durations in seconds, amounts in the transaction's currency."""

    #: Instead of a text that training never saw.
    unseen: str
    #: What a feature that is not known means.
    _missing: Mapping[str, str]

    @abstractmethod
    def category(self, column: str, text: str) -> str:
        """Return the sentence of a column of text."""

    @abstractmethod
    def window(self, base: str, window: str, value: float, usual: float | None) -> str:
        """Return the sentence of a feature of a window: ``base`` is its name without the window's."""

    @abstractmethod
    def plain(self, name: str, value: float, usual: float | None, values: Mapping[str, float]) -> str:
        """Return the sentence of any other feature; ``values`` has all of them."""

    @abstractmethod
    def unknown(self, name: str) -> str:
        """Return the sentence of a feature that is not known."""

    @abstractmethod
    def _duration_in(self, count: float, unit: str) -> str: ...

    def _duration(self, seconds: float) -> str:
        if seconds < 2 * _MINUTE:
            return self._duration_in(seconds, "second")
        if seconds < 2 * _HOUR:
            return self._duration_in(seconds / _MINUTE, "minute")
        if seconds < 2 * _DAY:
            return self._duration_in(seconds / _HOUR, "hour")
        return self._duration_in(seconds / _DAY, "day")


class English(Sentences):
    """English."""

    unseen = "a value that training never saw"
    _missing: Mapping[str, str] = {
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
    _windows: Final = {"1h": "hour", "24h": "24 hours", "7d": "7 days", "30d": "30 days"}
    _weekdays: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

    def category(self, column: str, text: str) -> str:
        """Return the sentence of a column of text."""
        return f"{_words(column)} is {text}"

    def unknown(self, name: str) -> str:
        """Return the sentence of a feature that is not known."""
        return self._missing.get(name, f"{name} is not known")

    def window(self, base: str, window: str, value: float, usual: float | None) -> str:
        """Return the sentence of a feature of a window."""
        span = f"in the last {self._windows[window]}"
        against = f", against a usual {_number(usual)}" if usual is not None and usual > 0 else ""
        if base == "transaction_count":
            return f"{_number(value)} {'transaction' if value == 1 else 'transactions'} {span}{against}"
        if base == "merchant_distinct":
            return f"{_number(value)} different {'merchant' if value == 1 else 'merchants'} {span}{against}"
        if base == "amount_to_mean":
            return f"the amount is {value:.1f} times this user's {window} mean"
        if base == "amount_zscore":
            side = "above" if value >= 0 else "below"
            return f"the amount is {abs(value):.1f} standard deviations {side} this user's {window} mean"
        if base == "amount_sum":
            return f"{value:,.2f} spent {span}{against}"
        what = {"amount_mean": "mean amount", "amount_max": "largest amount"}.get(base, "spread of amounts")
        return f"{what} {value:,.2f} {span}{against}"

    def plain(self, name: str, value: float, usual: float | None, values: Mapping[str, float]) -> str:  # noqa: C901 - a table
        """Return the sentence of any other feature."""
        if name == "amount":
            ratio = values["amount_to_mean_30d"]
            if ratio > 0:
                mean = _number(usual or 0)
                return f"amount {value:,.2f} is {ratio:.1f} times this user's 30-day mean of {mean}"
            nothing = ", with nothing else spent in the last 30 days" if math.isnan(ratio) else ""
            return f"amount {value:,.2f}{nothing}"
        if name in _SINCE:
            usually = f", usually {self._duration(usual * _SINCE[name])}" if usual else ""
            return f"{self._duration(value * _SINCE[name])} after the previous transaction{usually}"
        if name == "days_since_first":
            return f"the user is known for {value:,.0f} days"
        if name == "hour":
            return f"at {value:.0f} o'clock UTC"
        if name == "day_of_week":
            return f"on a {self._weekdays[int(value)]}"
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
        return f"{_words(name)} is {_number(value)}"

    def _duration_in(self, count: float, unit: str) -> str:
        return f"{count:.0f} {unit}s"


class Chinese(Sentences):
    """Simplified Chinese."""

    unseen = "训练数据中未出现过的取值"
    _missing: Mapping[str, str] = {
        "seconds_since_previous": "这是该用户已知的第一笔交易",
        "days_since_last": "这是该用户已知的第一笔交易",
        "amount_to_mean_7d": "该用户近 7 天内没有其他支出",
        "amount_to_mean_30d": "该用户近 30 天内没有其他支出",
        "amount_zscore_30d": "该用户近 30 天内交易过少，无法比较",
        "balance_change_ratio": "交易前余额未知",
        "balance_after_ratio": "交易后余额未知",
        "lifetime_amount_std": "该用户没有更早的交易可供比较",
        "lifetime_amount_cv": "该用户没有更早的交易可供比较",
    }
    _windows: Final = {"1h": "近 1 小时", "24h": "近 24 小时", "7d": "近 7 天", "30d": "近 30 天"}
    _units: Final = {"second": "秒", "minute": "分钟", "hour": "小时", "day": "天"}
    _names: Final = {
        "channel": "渠道",
        "transaction_type": "交易类型",
        "lifetime_amount_mean": "历史笔均金额",
        "lifetime_amount_max": "历史最大单笔金额",
        "lifetime_amount_std": "历史金额标准差",
        "lifetime_amount_cv": "历史金额变异系数",
    }

    def category(self, column: str, text: str) -> str:
        """Return the sentence of a column of text."""
        return f"{self._names.get(column, _words(column))}为 {text}"

    def unknown(self, name: str) -> str:
        """Return the sentence of a feature that is not known."""
        return self._missing.get(name, f"{name} 未知")

    def window(self, base: str, window: str, value: float, usual: float | None) -> str:
        """Return the sentence of a feature of a window."""
        span = self._windows[window]
        against = f"，平时为 {_number(usual)}" if usual is not None and usual > 0 else ""
        if base == "transaction_count":
            return f"{span}内交易 {_number(value)} 笔{against}"
        if base == "merchant_distinct":
            return f"{span}内涉及不同商户 {_number(value)} 家{against}"
        if base == "amount_to_mean":
            return f"本笔金额是该用户{span}均值的 {value:.1f} 倍"
        if base == "amount_zscore":
            side = "高于" if value >= 0 else "低于"
            return f"本笔金额{side}该用户{span}均值 {abs(value):.1f} 个标准差"
        if base == "amount_sum":
            return f"{span}内共支出 {value:,.2f}{against}"
        what = {"amount_mean": "笔均金额", "amount_max": "最大单笔金额"}.get(base, "金额标准差")
        return f"{span}{what} {value:,.2f}{against}"

    def plain(self, name: str, value: float, usual: float | None, values: Mapping[str, float]) -> str:  # noqa: C901 - a table
        """Return the sentence of any other feature."""
        if name == "amount":
            ratio = values["amount_to_mean_30d"]
            if ratio > 0:
                return f"金额 {value:,.2f} 是该用户近 30 天均值 {_number(usual or 0)} 的 {ratio:.1f} 倍"
            return f"金额 {value:,.2f}" + ("，近 30 天内没有其他支出" if math.isnan(ratio) else "")
        if name in _SINCE:
            usually = f"，平时为 {self._duration(usual * _SINCE[name])}" if usual else ""
            return f"距上一笔交易 {self._duration(value * _SINCE[name])}{usually}"
        if name == "days_since_first":
            return f"该用户首笔交易距今 {value:,.0f} 天"
        if name == "hour":
            return f"发生在 UTC {value:.0f} 点"
        if name == "day_of_week":
            return f"发生在星期{'一二三四五六日'[int(value)]}"
        if name == "is_weekend":
            return "发生在周末" if value else "不在周末"
        if name == "is_month_end":
            return "发生在当月最后一天" if value else "不在当月最后一天"
        if name == "balance_change_ratio":
            return f"本笔金额占交易前余额的 {value:.0%}"
        if name == "balance_after_ratio":
            return f"交易后余额为交易前的 {value:.0%}"
        if name == "lifetime_count":
            return f"该用户至今共有 {value:,.0f} 笔交易"
        return f"{self._names.get(name, _words(name))}为 {_number(value)}"

    def _duration_in(self, count: float, unit: str) -> str:
        return f"{count:.0f} {self._units[unit]}"


#: By the names that the setting ``language`` has.
LANGUAGES: Final[Mapping[str, type[Sentences]]] = {"en": English, "zh": Chinese}

#: Features that say how long ago something was, and seconds of their unit.
_SINCE: Final = {"seconds_since_previous": 1.0, "days_since_last": _DAY}


def _words(name: str) -> str:
    return name.removeprefix("attributes.").replace("_", " ")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.2f}"
