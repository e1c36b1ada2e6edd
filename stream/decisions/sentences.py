"""The sentences of reasons, in each language: templates that figures are put into.

A template is found by a feature's name, or by what it is of (a window's aggregate, a profile's); whatever has
none is said plainly. Every language has the same keys.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from stream.features.spec import CATEGORY_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Mapping


Language: TypeAlias = Literal["en", "zh"]
LANGUAGES: Final[tuple[Language, ...]] = get_args(Language)
_MINUTE: Final = 60.0
_HOUR: Final = 3600.0
_DAY: Final = 86_400.0

_ENGLISH: Final[dict[str, str]] = {
    "second": "{n} seconds",
    "minute": "{n} minutes",
    "hour": "{n} hours",
    "day": "{n} days",
    "window.1h": "in the last hour",
    "window.24h": "in the last 24 hours",
    "window.7d": "in the last 7 days",
    "window.30d": "in the last 30 days",
    "span.days": "in the last {n} days",
    "span.day": "in the last day",
    "mean.1h": "1h",
    "mean.24h": "24h",
    "mean.7d": "7d",
    "mean.30d": "30d",
    "against": ", against a usual {usual}",
    "usually": ", usually {usual}",
    "plain": "{name} is {value}",
    "unknown": "{name} is not known",
    "unseen": "a value that training never saw",
    "channel": "channel",
    "transaction_type": "transaction type",
    # Windows of the user's own history.
    "transaction_count.one": "{value} transaction {window}{against}",
    "transaction_count": "{value} transactions {window}{against}",
    "merchant_distinct.one": "{value} different merchant {window}{against}",
    "merchant_distinct": "{value} different merchants {window}{against}",
    "amount_to_mean": "the amount is {times} times this user's {mean} mean",
    "amount_zscore.above": "the amount is {times} standard deviations above this user's {mean} mean",
    "amount_zscore.below": "the amount is {times} standard deviations below this user's {mean} mean",
    "amount_sum": "{money} spent {window}{against}",
    "amount_mean": "mean amount {money} {window}{against}",
    "amount_max": "largest amount {money} {window}{against}",
    "amount_std": "spread of amounts {money} {window}{against}",
    # Others.
    "amount": "amount {money}",
    "amount.ratio": "amount {money} is {times} times this user's 30-day mean of {usual}",
    "amount.alone": "amount {money}, with nothing else spent in the last 30 days",
    "seconds_since_previous": "{duration} after the previous transaction{usually}",
    "days_since_last": "{duration} after the previous transaction{usually}",
    "days_since_first": "the user is known for {whole} days",
    "hour_of_day": "at {whole} o'clock UTC",
    "day_of_week": "on a {weekday}",
    "weekdays": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "is_weekend.yes": "on a weekend",
    "is_weekend.no": "not on a weekend",
    "is_month_end.yes": "on the last day of a month",
    "is_month_end.no": "not on the last day of a month",
    "balance_change_ratio": "the amount is {percent} of the balance before",
    "balance_after_ratio": "{percent} of the balance is left",
    "lifetime_count": "the user has made {whole} transactions so far",
    "lifetime_amount_mean": "the user's amounts so far are {money} on average",
    "lifetime_amount_max": "the user's largest amount so far is {money}",
    "lifetime_amount_std": "the spread of the user's amounts so far is {money}",
    "lifetime_amount_cv": "the spread of the user's amounts so far is {percent} of their mean",
    # What is missing.
    "seconds_since_previous.none": "this is the user's first known transaction",
    "days_since_last.none": "this is the user's first known transaction",
    "amount_to_mean_7d.none": "the user has spent nothing else in the last 7 days",
    "amount_to_mean_30d.none": "the user has spent nothing else in the last 30 days",
    "amount_zscore_30d.none": "the user has too few transactions in the last 30 days to compare with",
    "balance_change_ratio.none": "the balance before is not known",
    "balance_after_ratio.none": "the balance after is not known",
    "lifetime_amount_std.none": "the user has no earlier transaction to compare with",
    "lifetime_amount_cv.none": "the user has no earlier transaction to compare with",
    # Profiles.
    "user": "user",
    "merchant": "merchant",
    "card": "card",
    "device": "device",
    "ip": "IP address",
    "profile.none": "too little is known of this {entity} to compare with",
    "profile.no_fraud": "no fraud of this {entity} is known {span}",
    "profile.count.one": "{value} transaction of this {entity} {span}",
    "profile.count": "{value} transactions of this {entity} {span}",
    "profile.amount_sum": "{money} in all with this {entity} {span}",
    "profile.amount_mean": "mean amount {money} with this {entity} {span}",
    "profile.amount_max": "largest amount {money} with this {entity} {span}",
    "profile.user_distinct.one": "{value} user of this {entity} {span}",
    "profile.user_distinct": "{value} different users of this {entity} {span}",
    "profile.amount_to_mean": "the amount is {times} times this {entity}'s mean {span}",
    "profile.amount_median": "median amount {money} with this {entity} {span}",
    "profile.amount_to_median": "the amount is {times} times this {entity}'s median {span}",
    "profile.max_to_usual": (
        "the largest other amount with this {entity} {span} was {times} times the usual one"
    ),
    "profile.large_count.one": "{value} other unusually large amount with this {entity} {span}",
    "profile.large_count": "{value} other unusually large amounts with this {entity} {span}",
    "profile.amount_to_usual": "the amount is {times} times this {entity}'s usual one",
    "profile.fraud_count.one": "{value} fraud with this {entity} was confirmed {span}",
    "profile.fraud_count": "{value} frauds with this {entity} were confirmed {span}",
    "profile.label_count.one": "{value} transaction with this {entity} was judged {span}",
    "profile.label_count": "{value} transactions with this {entity} were judged {span}",
    "profile.fraud_share": "{percent} of what was judged of this {entity} {span} was fraud",
    "profile.fraud_to_usual_min": (
        "the smallest fraud with this {entity} that was confirmed {span} was {times} times its user's usual "
        "amount"
    ),
    "profile.days_since_first_fraud": "the first known fraud with this {entity} was {duration} ago",
    "profile.days_since_last_fraud": "the last known fraud with this {entity} was {duration} ago",
    "profile.legitimate_since_fraud.one": (
        "{value} transaction with this {entity} was found legitimate since its last fraud"
    ),
    "profile.legitimate_since_fraud": (
        "{value} transactions with this {entity} were found legitimate since its last fraud"
    ),
    "profile.fraud_amount_min": "the smallest known fraud with this {entity} was {money}",
}

_CHINESE: Final[dict[str, str]] = {
    "second": "{n}秒",
    "minute": "{n}分钟",
    "hour": "{n}小时",
    "day": "{n}天",
    "window.1h": "最近1小时",
    "window.24h": "最近24小时",
    "window.7d": "最近7天",
    "window.30d": "最近30天",
    "span.days": "最近{n}天",
    "span.day": "最近1天",
    "mean.1h": "1小时",
    "mean.24h": "24小时",
    "mean.7d": "7天",
    "mean.30d": "30天",
    "against": "，通常为{usual}",
    "usually": "，通常间隔{usual}",
    "plain": "{name}为{value}",
    "unknown": "{name}未知",
    "unseen": "训练数据中未出现过的值",
    "channel": "渠道",
    "transaction_type": "交易类型",
    "transaction_count.one": "{window}有{value}笔交易{against}",
    "transaction_count": "{window}有{value}笔交易{against}",
    "merchant_distinct.one": "{window}涉及{value}家不同商户{against}",
    "merchant_distinct": "{window}涉及{value}家不同商户{against}",
    "amount_to_mean": "金额是该用户{mean}均值的{times}倍",
    "amount_zscore.above": "金额比该用户{mean}均值高{times}个标准差",
    "amount_zscore.below": "金额比该用户{mean}均值低{times}个标准差",
    "amount_sum": "{window}共支出{money}{against}",
    "amount_mean": "{window}平均金额为{money}{against}",
    "amount_max": "{window}最大金额为{money}{against}",
    "amount_std": "{window}金额的离散程度为{money}{against}",
    "amount": "金额{money}",
    "amount.ratio": "金额{money}是该用户30天均值{usual}的{times}倍",
    "amount.alone": "金额{money}，最近30天没有其他支出",
    "seconds_since_previous": "距上一笔交易{duration}{usually}",
    "days_since_last": "距上一笔交易{duration}{usually}",
    "days_since_first": "该用户的历史有{whole}天",
    "hour_of_day": "发生在UTC时间{whole}点",
    "day_of_week": "发生在{weekday}",
    "weekdays": "星期一 星期二 星期三 星期四 星期五 星期六 星期日",
    "is_weekend.yes": "发生在周末",
    "is_weekend.no": "不在周末",
    "is_month_end.yes": "发生在当月最后一天",
    "is_month_end.no": "不在当月最后一天",
    "balance_change_ratio": "金额占交易前余额的{percent}",
    "balance_after_ratio": "余额剩余{percent}",
    "lifetime_count": "该用户迄今共有{whole}笔交易",
    "lifetime_amount_mean": "该用户迄今的平均金额为{money}",
    "lifetime_amount_max": "该用户迄今的最大金额为{money}",
    "lifetime_amount_std": "该用户迄今金额的标准差为{money}",
    "lifetime_amount_cv": "该用户迄今金额的标准差为均值的{percent}",
    "seconds_since_previous.none": "这是该用户已知的第一笔交易",
    "days_since_last.none": "这是该用户已知的第一笔交易",
    "amount_to_mean_7d.none": "该用户最近7天没有其他支出",
    "amount_to_mean_30d.none": "该用户最近30天没有其他支出",
    "amount_zscore_30d.none": "该用户最近30天的交易太少，无法比较",
    "balance_change_ratio.none": "交易前余额未知",
    "balance_after_ratio.none": "交易后余额未知",
    "lifetime_amount_std.none": "该用户没有可供比较的历史交易",
    "lifetime_amount_cv.none": "该用户没有可供比较的历史交易",
    "user": "用户",
    "merchant": "商户",
    "card": "卡片",
    "device": "设备",
    "ip": "IP地址",
    "profile.none": "对该{entity}了解太少，无法比较",
    "profile.no_fraud": "{span}该{entity}没有已确认的欺诈",
    "profile.count.one": "该{entity}{span}有{value}笔交易",
    "profile.count": "该{entity}{span}有{value}笔交易",
    "profile.amount_sum": "该{entity}{span}交易总额为{money}",
    "profile.amount_mean": "该{entity}{span}平均金额为{money}",
    "profile.amount_max": "该{entity}{span}最大金额为{money}",
    "profile.user_distinct.one": "该{entity}{span}有{value}个用户",
    "profile.user_distinct": "该{entity}{span}有{value}个不同用户",
    "profile.amount_to_mean": "金额是该{entity}{span}均值的{times}倍",
    "profile.amount_median": "该{entity}{span}金额中位数为{money}",
    "profile.amount_to_median": "金额是该{entity}{span}中位数的{times}倍",
    "profile.max_to_usual": "该{entity}{span}其他交易的最大金额是通常金额的{times}倍",
    "profile.large_count.one": "该{entity}{span}另有{value}笔异常大额交易",
    "profile.large_count": "该{entity}{span}另有{value}笔异常大额交易",
    "profile.amount_to_usual": "金额是该{entity}通常金额的{times}倍",
    "profile.fraud_count.one": "该{entity}{span}确认了{value}笔欺诈",
    "profile.fraud_count": "该{entity}{span}确认了{value}笔欺诈",
    "profile.label_count.one": "该{entity}{span}有{value}笔交易得到核实",
    "profile.label_count": "该{entity}{span}有{value}笔交易得到核实",
    "profile.fraud_share": "该{entity}{span}核实的交易中{percent}为欺诈",
    "profile.fraud_to_usual_min": "该{entity}{span}确认的最小欺诈是其用户通常金额的{times}倍",
    "profile.days_since_first_fraud": "该{entity}首笔已知欺诈发生在{duration}前",
    "profile.days_since_last_fraud": "该{entity}最近一笔已知欺诈发生在{duration}前",
    "profile.legitimate_since_fraud.one": "该{entity}自上次欺诈以来有{value}笔交易核实为正常",
    "profile.legitimate_since_fraud": "该{entity}自上次欺诈以来有{value}笔交易核实为正常",
    "profile.fraud_amount_min": "该{entity}已知的最小欺诈金额为{money}",
}

_TEMPLATES: Final[dict[Language, Mapping[str, str]]] = {"en": _ENGLISH, "zh": _CHINESE}

#: What has no value where no fraud is known, rather than too little of anything.
_OF_FRAUDS: Final = frozenset(
    {
        "fraud_to_usual_min",
        "days_since_first_fraud",
        "days_since_last_fraud",
        "legitimate_since_fraud",
        "fraud_amount_min",
    }
)


class Sentences:
    """Says what a feature's value means, in one language."""

    def __init__(self, language: Language = "en") -> None:
        self._texts = _TEMPLATES[language]
        #: A text's value that training never saw.
        self.unseen = self._texts["unseen"]

    def category(self, name: str, value: str | None) -> str:
        """Say a text's value; None is one that training never saw."""
        shown = self.unseen if value is None else value
        # An attribute has the file's name for it, in whatever language that is.
        known = name in CATEGORY_COLUMNS
        return self._texts["plain"].format(
            name=self._texts[name] if known else name.replace("_", " "), value=shown
        )

    def missing(self, name: str) -> str:
        """Say that a feature has no value."""
        text = self._texts.get(f"{name}.none")
        return self._texts["unknown"].format(name=name) if text is None else text

    def window(self, base: str, window: str, value: float, usual: float | None) -> str:
        """Say an aggregate (``amount_sum``) over a window (``24h``) of the user's history."""
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
        """Say a profile's feature, over ``days``, or over the longest label window where None."""
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
        """Say any other feature; ``mean_ratio`` is the amount against the 30-day mean, NaN without one."""
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
