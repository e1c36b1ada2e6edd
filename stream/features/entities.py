"""Profiles of entities: windows and delayed labels of users, merchants, cards, devices and addresses.

What is wanted is declared as data, in the feature spec: :class:`EntityProfile` names the entity, its windows
and aggregates, and for what is known of labels the windows and the delay. The features of a transaction i at
time t are point-in-time:

* activity: the transactions of the same entity that had arrived by then, itself among them, with times in
  ``(t - window, t]``; ratios and medians leave itself out;
* labels: those of *earlier arrived* transactions of the same entity that had become known at a time in
  ``(t - window, t]``. A label becomes known at its own time, but never before ``label_delay_days`` after its
  transaction, so a feature means the same for files whose labels are old and for a stream whose labels are not.
  Its own label can never be among them.

A transaction whose entity is not known has NaN in all of its features.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from stream.features.compiled import Floats, Ints, compiled, counted

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ACTIVITY_AGGREGATES", "ENTITIES", "LABEL_AGGREGATES", "LABEL_RECENCY", "EntityProfile", "fill_profile"]

_DAY_MS: Final = 86_400_000

#: Entities, and the transaction's field that names each.
ENTITIES: Final = {
    "user": "user_id",
    "merchant": "merchant_id",
    "card": "card_id",
    "device": "device_id",
    "ip": "ip",
}

#: One feature of each for every window of an entity. ``amount_to_mean`` and ``amount_to_median`` compare the
#: transaction's amount with the entity's others in the window; NaN where there are none or they are worth 0.
ACTIVITY_AGGREGATES: Final = (
    "count",
    "amount_sum",
    "amount_mean",
    "amount_max",
    "user_distinct",
    "amount_to_mean",
    "amount_median",
    "amount_to_median",
)

#: One feature of each for every label window. ``fraud_share`` is NaN where no label became known.
LABEL_AGGREGATES: Final = ("fraud_count", "label_count", "fraud_share")

#: One feature of each, over the longest label window. Days are from the fraud itself, not from its label;
#: ``legitimate_since_fraud`` counts the labels that became known after the last fraud's; all are NaN where
#: no fraud became known.
LABEL_RECENCY: Final = (
    "days_since_first_fraud",
    "days_since_last_fraud",
    "legitimate_since_fraud",
    "fraud_amount_min",
)

_COUNT, _SUM, _MEAN, _MAX, _DISTINCT, _TO_MEAN, _MEDIAN, _TO_MEDIAN = range(len(ACTIVITY_AGGREGATES))


@dataclass(frozen=True, slots=True)
class EntityProfile:
    """What is kept of one kind of entity, and becomes features.

    Attributes
    ----------
    entity:
        A key of ``ENTITIES``.
    windows_days, aggregates:
        Each aggregate, see ``ACTIVITY_AGGREGATES``, over each window.
    label_windows_days, label_aggregates:
        Each of ``LABEL_AGGREGATES`` over each window that ends now; lengths are of the time in which labels
        became known.
    label_recency:
        Members of ``LABEL_RECENCY``.
    label_delay_days:
        No label is known sooner than this after its transaction.

    Raises
    ------
    ValueError
        A name is unknown or twice there, or a length is not positive.
    """

    entity: str
    windows_days: tuple[float, ...] = ()
    aggregates: tuple[str, ...] = ()
    label_windows_days: tuple[float, ...] = ()
    label_aggregates: tuple[str, ...] = ()
    label_recency: tuple[str, ...] = ()
    label_delay_days: float = 7.0

    def __post_init__(self) -> None:
        if self.entity not in ENTITIES:
            msg = f"entity {self.entity!r} is none of {', '.join(ENTITIES)}"
            raise ValueError(msg)
        for name, known in (
            ("aggregates", ACTIVITY_AGGREGATES),
            ("label_aggregates", LABEL_AGGREGATES),
            ("label_recency", LABEL_RECENCY),
        ):
            given: tuple[str, ...] = getattr(self, name)
            for value in given:
                if value not in known:
                    msg = f"{name}: {value!r} is none of {', '.join(known)}"
                    raise ValueError(msg)
            if len(set(given)) != len(given):
                msg = f"{name}: a name is there twice"
                raise ValueError(msg)
        for name in ("windows_days", "label_windows_days"):
            lengths: tuple[float, ...] = getattr(self, name)
            if not all(0 < length <= 3650 for length in lengths) or len(set(lengths)) != len(lengths):  # noqa: PLR2004 - ten years
                msg = f"{name}: must be different numbers of days above 0, at most 3650, not {lengths}"
                raise ValueError(msg)
        if bool(self.aggregates) != bool(self.windows_days):
            msg = "aggregates and windows_days belong together"
            raise ValueError(msg)
        if bool(self.label_windows_days) != bool(self.label_aggregates or self.label_recency):
            msg = "label_windows_days belong together with label_aggregates or label_recency"
            raise ValueError(msg)
        if not 0 <= self.label_delay_days < math.inf:
            msg = f"label_delay_days: must be at least 0, not {self.label_delay_days}"
            raise ValueError(msg)

    @property
    def names(self) -> tuple[str, ...]:
        """The features, in the order of the columns."""
        return (
            *(
                f"{self.entity}_{name}_{days:g}d"
                for days in self.windows_days
                for name in ACTIVITY_AGGREGATES
                if name in self.aggregates
            ),
            *(
                f"{self.entity}_{name}_{days:g}d"
                for days in self.label_windows_days
                for name in LABEL_AGGREGATES
                if name in self.label_aggregates
            ),
            *(f"{self.entity}_{name}" for name in LABEL_RECENCY if name in self.label_recency),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the profile as JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the profile that :meth:`to_json` wrote.

        Raises
        ------
        ValueError
            See the class.
        """
        return cls(**{name: tuple(item) if isinstance(item, list) else item for name, item in value.items()})


def fill_profile(
    profile: EntityProfile,
    *,
    starts: Ints,
    order: Ints,
    time_ms: Ints,
    amount_minor: Ints,
    minor_units: Ints,
    user: Ints,
    is_fraud: Ints | None,
    label_time_ms: Ints | None,
    out: Floats,
) -> None:
    """Write a profile's features of transactions in memory.

    Parameters
    ----------
    starts : int64[entities + 1], order : int64[m]
        The rows of entity e, in arrival order, are ``order[starts[e]:starts[e + 1]]``; rows in none have no
        known entity and are left as they are.
    time_ms, amount_minor, minor_units, user : int64[n]
        By row; ``user`` numbers the users from 0.
    is_fraud, label_time_ms : int64[n] or None
        1 fraud, 0 legitimate, -1 not known; and when a label becomes known, by itself.
    out : float64[n, len(profile.names)]
        Is written to.
    """
    windows = np.array([round(days * _DAY_MS) for days in profile.windows_days], np.int64)
    columns = _places(profile.windows_days, profile.aggregates, ACTIVITY_AGGREGATES)
    longest = int(np.diff(starts).max()) if len(starts) > 1 else 0
    if len(windows):
        in_window = np.zeros(int(user.max()) + 1 if len(user) else 0, np.int64)
        for window, place in zip(windows.tolist(), columns, strict=True):
            _activity(
                starts, order, time_ms, amount_minor, minor_units, user, window, place, in_window,
                np.empty(longest, np.int64), np.empty(longest, np.int64), out,
            )  # fmt: skip
    if not profile.label_windows_days:
        return
    used = len(profile.windows_days) * len(profile.aggregates)
    label_columns = _places(profile.label_windows_days, profile.label_aggregates, LABEL_AGGREGATES) + used
    label_columns[label_columns < used] = -1
    used += len(profile.label_windows_days) * len(profile.label_aggregates)
    recency = np.full(len(LABEL_RECENCY), -1, np.int64)
    for name in LABEL_RECENCY:
        if name in profile.label_recency:
            recency[LABEL_RECENCY.index(name)] = used
            used += 1
    label = np.full(len(time_ms), -1, np.int64) if is_fraud is None else is_fraud
    known = time_ms + round(profile.label_delay_days * _DAY_MS)
    if label_time_ms is not None:
        known = np.maximum(known, label_time_ms)
    # Every entity's labels in the order in which they become known; of the same time, in arrival order.
    entity = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    by_label = np.lexsort((np.arange(len(order)), known[order], entity))
    _labels(
        starts, order, order[by_label], by_label, time_ms, amount_minor, minor_units, label, known,
        np.array([round(days * _DAY_MS) for days in profile.label_windows_days], np.int64),
        label_columns, recency, np.empty(longest, np.int64), out,
    )  # fmt: skip


def _places(windows: tuple[float, ...], chosen: tuple[str, ...], known: tuple[str, ...]) -> Ints:
    """Return the column of each aggregate in each window, -1 where it is not wanted: int64[windows, known]."""
    places = np.full((len(windows), len(known)), -1, np.int64)
    column = 0
    for row in range(len(windows)):
        for place, name in enumerate(known):
            if name in chosen:
                places[row, place] = column
                column += 1
    return places


@compiled
def _lower(values: Ints, count: int, value: int) -> int:
    """Return the first place among ``count`` ascending values that is not below ``value``."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if values[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _insert(values: Ints, count: int, value: int) -> None:
    place = _lower(values, count, value)
    for at in range(count, place, -1):
        values[at] = values[at - 1]
    values[place] = value


@compiled
def _remove(values: Ints, count: int, value: int) -> None:
    for at in range(_lower(values, count, value), count - 1):
        values[at] = values[at + 1]


@counted
def _activity(
    starts: Ints,
    order: Ints,
    time_ms: Ints,
    amount_minor: Ints,
    minor_units: Ints,
    user: Ints,
    window: int,
    place: Ints,
    in_window: Ints,
    queue: Ints,
    ranked: Ints,
    out: Floats,
) -> None:
    """Fill one window's aggregates; scratch arrays ``queue`` and ``ranked`` hold the longest entity.

    Entities whose rows are in the order of time are walked once with two ends of a window; the others, whose
    late rows see less than their neighbours, are looked at row by row.
    """
    need_median = place[_MEDIAN] >= 0 or place[_TO_MEDIAN] >= 0
    for entity in range(len(starts) - 1):
        first, end = starts[entity], starts[entity + 1]
        ordered = True
        for at in range(first + 1, end):
            if time_ms[order[at]] < time_ms[order[at - 1]]:
                ordered = False
                break
        oldest = first
        total = 0
        distinct = 0
        head, tail = 0, 0  # of the queue of maxima, which hold places in order
        for at in range(first, end):
            row = order[at]
            now = time_ms[row]
            amount = amount_minor[row]
            largest = amount
            if ordered:
                while time_ms[order[oldest]] <= now - window:
                    gone = order[oldest]
                    total -= amount_minor[gone]
                    in_window[user[gone]] -= 1
                    if in_window[user[gone]] == 0:
                        distinct -= 1
                    if need_median:
                        _remove(ranked, at - oldest, amount_minor[gone])
                    if head < tail and queue[head] == oldest:
                        head += 1
                    oldest += 1
                count = at - oldest  # of the others
                middle = _median(ranked, count) if need_median and count > 0 else math.nan
                others = total
                while head < tail and amount_minor[order[queue[tail - 1]]] <= amount:
                    tail -= 1
                queue[tail] = at
                tail += 1
                largest = amount_minor[order[queue[head]]]
                total += amount
                if in_window[user[row]] == 0:
                    distinct += 1
                in_window[user[row]] += 1
                if need_median:
                    _insert(ranked, count, amount)
            else:
                others = 0
                count = 0
                distinct = 1
                in_window[user[row]] = 1
                for before in range(first, at):
                    other = order[before]
                    if now - window < time_ms[other] <= now:
                        if need_median:
                            _insert(ranked, count, amount_minor[other])
                        others += amount_minor[other]
                        count += 1
                        largest = max(largest, amount_minor[other])
                        if in_window[user[other]] == 0:
                            distinct += 1
                            in_window[user[other]] = 1
                middle = _median(ranked, count) if need_median and count > 0 else math.nan
                for before in range(first, at + 1):
                    in_window[user[order[before]]] = 0
            units = float(minor_units[row])
            if place[_COUNT] >= 0:
                out[row, place[_COUNT]] = count + 1
            if place[_SUM] >= 0:
                out[row, place[_SUM]] = (others + amount) / units
            if place[_MEAN] >= 0:
                out[row, place[_MEAN]] = (others + amount) / units / (count + 1)
            if place[_MAX] >= 0:
                out[row, place[_MAX]] = largest / units
            if place[_DISTINCT] >= 0:
                out[row, place[_DISTINCT]] = distinct
            if place[_TO_MEAN] >= 0:
                out[row, place[_TO_MEAN]] = amount / (others / count) if others > 0 else math.nan
            if place[_MEDIAN] >= 0:
                out[row, place[_MEDIAN]] = middle / units
            if place[_TO_MEDIAN] >= 0:
                out[row, place[_TO_MEDIAN]] = amount / middle if middle > 0 else math.nan
        if ordered:
            for at in range(oldest, end):
                in_window[user[order[at]]] = 0


@compiled
def _median(ranked: Ints, count: int) -> float:
    half = count // 2
    if count % 2:
        return float(ranked[half])
    return (ranked[half - 1] + ranked[half]) / 2.0


@counted
def _labels(
    starts: Ints,
    order: Ints,
    label_rows: Ints,
    label_places: Ints,
    time_ms: Ints,
    amount_minor: Ints,
    minor_units: Ints,
    label: Ints,
    known: Ints,
    windows: Ints,
    columns: Ints,
    recency: Ints,
    frauds: Ints,
    out: Floats,
) -> None:
    """Fill all windows of what is known of labels, see :func:`fill_profile`.

    Parameters
    ----------
    label_rows, label_places : int64[m]
        Rows of each entity in the order in which their labels become known, and their places in ``order``.
    frauds : int64[longest]
        Scratch: the entity's known frauds, as places in ``label_rows``.
    """
    longest = windows.max()
    width = len(windows)
    oldest = np.zeros(width, np.int64)
    fraud_count = np.zeros(width, np.int64)
    label_count = np.zeros(width, np.int64)
    for entity in range(len(starts) - 1):
        first, end = starts[entity], starts[entity + 1]
        any_fraud = False
        ordered = True
        for at in range(first, end):
            any_fraud |= label[order[at]] == 1
            if at > first and time_ms[order[at]] < time_ms[order[at - 1]]:
                ordered = False
        newest = first
        oldest[:] = first
        fraud_count[:] = 0
        label_count[:] = 0
        found, forgotten = 0, 0
        legitimate = 0
        for at in range(first, end):
            row = order[at]
            now = time_ms[row]
            if ordered:
                # What became known with or after its own arrival ends the walk: its time is now at the least,
                # and of labels of one time the earlier arrived come first.
                while newest < end and label_places[newest] < at and known[label_rows[newest]] <= now:
                    other = label_rows[newest]
                    if label[other] >= 0:
                        legitimate += 1
                        for window in range(width):
                            label_count[window] += 1
                            fraud_count[window] += label[other]
                    if label[other] == 1:
                        legitimate = 0
                        frauds[found] = newest
                        found += 1
                    newest += 1
                for window in range(width):
                    while oldest[window] < newest and known[label_rows[oldest[window]]] <= now - windows[window]:
                        gone = label[label_rows[oldest[window]]]
                        label_count[window] -= gone >= 0
                        fraud_count[window] -= gone == 1
                        oldest[window] += 1
                while forgotten < found and known[label_rows[frauds[forgotten]]] <= now - longest:
                    forgotten += 1
            else:
                fraud_count[:] = 0
                label_count[:] = 0
                found, forgotten, legitimate = 0, 0, 0
                for place in range(first, end):
                    other = label_rows[place]
                    if label_places[place] >= at or known[other] > now or label[other] < 0:
                        continue
                    for window in range(width):
                        if known[other] > now - windows[window]:
                            label_count[window] += 1
                            fraud_count[window] += label[other]
                    legitimate += 1
                    if label[other] == 1:
                        legitimate = 0
                        if known[other] > now - longest:
                            frauds[found] = place
                            found += 1
            for window in range(width):
                if columns[window, 0] >= 0:
                    out[row, columns[window, 0]] = fraud_count[window]
                if columns[window, 1] >= 0:
                    out[row, columns[window, 1]] = label_count[window]
                if columns[window, 2] >= 0:
                    share = math.nan
                    if label_count[window] > 0:
                        share = fraud_count[window] / label_count[window]
                    out[row, columns[window, 2]] = share
            if found == forgotten or not any_fraud:
                continue
            earliest = now
            latest = time_ms[label_rows[frauds[forgotten]]]
            smallest = amount_minor[label_rows[frauds[forgotten]]]
            for place in range(forgotten, found):
                other = label_rows[frauds[place]]
                earliest = min(earliest, time_ms[other])
                latest = max(latest, time_ms[other])
                smallest = min(smallest, amount_minor[other])
            if recency[0] >= 0:
                out[row, recency[0]] = (now - earliest) / 86_400_000.0
            if recency[1] >= 0:
                out[row, recency[1]] = (now - latest) / 86_400_000.0
            if recency[2] >= 0:
                out[row, recency[2]] = legitimate
            if recency[3] >= 0:
                out[row, recency[3]] = smallest / float(minor_units[row])
