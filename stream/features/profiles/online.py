"""Profile features of a transaction from its entity's log: the online half of the profiles.

:func:`stream.features.profiles.offline.fill_profile` walks whole files; this module looks back from one
transaction over its entity's log. Every value is a function of the integers in a window, independent of their
order, so both give the same bits; a property test compares them.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from stream.events.fields import MS_PER_DAY
from stream.features.profiles.offline_kernel import (
    COUNT,
    DISTINCT,
    LARGE_COUNT,
    MAX,
    MAX_TO_USUAL,
    MEAN,
    MEDIAN,
    SUM,
    TO_MEAN,
    TO_MEDIAN,
)
from stream.features.profiles.spec import EntityProfile, profile_columns
from stream.jit import Floats, Ints, jit

__all__ = [
    "E_AMOUNT",
    "E_CASE",
    "E_IDENT",
    "E_SIZE",
    "E_TIME",
    "E_TO_USUAL",
    "E_USER",
    "L_IDENT",
    "L_OFFSET",
    "L_SIZE",
    "L_TIME",
    "L_UNTIL",
    "L_WHEN",
    "NEVER",
    "ProfileReader",
    "find",
]

#: Rows of a log's transactions; each transaction is a column: event time, amount in minor units, the id
#: hashes of user and transaction, the amount relative to the user's usual amount (the bits of a float64), and
#: the id of the pending transaction that requested.
E_TIME, E_AMOUNT, E_USER, E_IDENT, E_TO_USUAL, E_CASE = range(6)

E_SIZE: Final = 6

#: Rows of a log's labels: when the label became known, 1 or 0, its offset in the labels' topic; its
#: transaction's time, amount, relative amount, id hash and number in the log; and when a later label of the
#: same transaction became known, NEVER without one. The last row is not stored.
L_WHEN, L_FRAUD, L_OFFSET, L_TIME, L_AMOUNT, L_TO_USUAL, L_IDENT, L_NUMBER, L_UNTIL = range(9)

L_SIZE: Final = 8
NEVER: Final = 2**62


@jit
def find(row: Ints, first: int, end: int, value: int) -> int:
    """Return the last index in ``[first, end)`` that holds a value, -1 if none does."""
    for at in range(end - 1, first - 1, -1):
        if row[at] == value:
            return at
    return -1


@jit
def _select(values: Ints, count: int, wanted: int) -> int:
    """Return the value that a sort would put at an index; smaller values end up before it (quickselect)."""
    low, high = 0, count - 1
    while low < high:
        pivot = values[(low + high) // 2]
        left, right = low, high
        while left <= right:
            while values[left] < pivot:
                left += 1
            while values[right] > pivot:
                right -= 1
            if left <= right:
                values[left], values[right] = values[right], values[left]
                left += 1
                right -= 1
        if wanted <= right:
            high = right
        elif wanted >= left:
            low = left
        else:
            break
    return int(values[wanted])


@jit
def _median(values: Ints, count: int) -> float:
    """Return the median of the first ``count`` values, which are moved about."""
    half = count // 2
    upper = _select(values, count, half)
    if count % 2:
        return float(upper)
    lower = values[0]
    for at in range(1, half):
        lower = max(lower, values[at])
    return float(lower + upper) / 2.0


@jit
def _sink(values: Ints, root: int, count: int) -> None:
    while True:
        child = 2 * root + 1
        if child >= count:
            return
        if child + 1 < count and values[child + 1] > values[child]:
            child += 1
        if values[root] >= values[child]:
            return
        values[root], values[child] = values[child], values[root]
        root = child


@jit
def _distinct(values: Ints, count: int) -> int:
    """Return the number of different values among the first ``count`` sorted values."""
    for root in range(count // 2 - 1, -1, -1):
        _sink(values, root, count)
    for last in range(count - 1, 0, -1):
        values[0], values[last] = values[last], values[0]
        _sink(values, 0, last)
    found = 1 if count > 0 else 0
    for at in range(1, count):
        found += values[at] != values[at - 1]
    return found


@jit
def _usual(events: Ints, first: int, end: int, now: int, window: int, lateness: int, amounts: Ints) -> float:
    """Return the median amount of the log's transactions in a window, NaN without any."""
    count = 0
    for at in range(end - 1, first - 1, -1):
        time = events[E_TIME, at]
        if time + lateness <= now - window:
            break  # nothing that arrived before lies later than this by more than the lateness
        if now - window < time <= now:
            amounts[count] = events[E_AMOUNT, at]
            count += 1
    return _median(amounts, count) if count > 0 else math.nan


@jit
def _fill_activity(
    events: Ints,
    first: int,
    end: int,
    now: int,
    amount: int,
    minor_units: int,
    user: int,
    usual: float,
    windows: Ints,
    indexes: Ints,
    lateness: int,
    large_factor: float,
    amounts: Ints,
    users: Ints,
    out: Floats,
) -> None:
    units = float(minor_units)
    for at_window in range(len(windows)):
        window = windows[at_window]
        index = indexes[at_window]
        count = 0
        others = 0
        before_largest = 0
        large = 0
        for at in range(end - 1, first - 1, -1):
            time = events[E_TIME, at]
            if time + lateness <= now - window:
                break
            if now - window < time <= now:
                value = events[E_AMOUNT, at]
                amounts[count] = value
                users[count] = events[E_USER, at]
                count += 1
                others += value
                before_largest = max(before_largest, value)
                large += value > large_factor * usual
        if index[COUNT] >= 0:
            out[index[COUNT]] = count + 1
        if index[SUM] >= 0:
            out[index[SUM]] = (others + amount) / units
        if index[MEAN] >= 0:
            out[index[MEAN]] = (others + amount) / units / (count + 1)
        if index[MAX] >= 0:
            out[index[MAX]] = max(amount, before_largest) / units
        if index[DISTINCT] >= 0:
            users[count] = user
            out[index[DISTINCT]] = _distinct(users, count + 1)
        if index[TO_MEAN] >= 0:
            out[index[TO_MEAN]] = amount / (others / count) if others > 0 else math.nan
        if index[MEDIAN] >= 0 or index[TO_MEDIAN] >= 0:
            middle = _median(amounts, count) if count > 0 else math.nan
            if index[MEDIAN] >= 0:
                out[index[MEDIAN]] = middle / units
            if index[TO_MEDIAN] >= 0:
                out[index[TO_MEDIAN]] = amount / middle if middle > 0 else math.nan
        if index[MAX_TO_USUAL] >= 0:
            known = usual > 0 and count > 0
            out[index[MAX_TO_USUAL]] = before_largest / usual if known else math.nan
        if index[LARGE_COUNT] >= 0:
            out[index[LARGE_COUNT]] = large if usual > 0 else math.nan


@jit
def _known(labels: Ints, at: int, delay: int) -> int:
    return int(max(labels[L_WHEN, at], labels[L_TIME, at] + delay))


@jit
def _is_valid(labels: Ints, at: int, delay: int, now: int) -> bool:
    """Return whether a label is known now and not yet replaced by a later one."""
    return bool(_known(labels, at, delay) <= now < max(labels[L_UNTIL, at], labels[L_TIME, at] + delay))


@jit
def _fill_labels(
    labels: Ints,
    to_usual: Floats,
    first: int,
    end: int,
    now: int,
    minor_units: int,
    delay: int,
    windows: Ints,
    columns: Ints,
    recency: Ints,
    out: Floats,
) -> None:
    longest = 0
    for at_window in range(len(windows)):
        window = windows[at_window]
        longest = max(longest, window)
        frauds, count = 0, 0
        lowest = math.inf
        for at in range(first, end):
            if _known(labels, at, delay) > now - window and _is_valid(labels, at, delay, now):
                count += 1
                if labels[L_FRAUD, at] == 1:
                    frauds += 1
                    lowest = min(lowest, to_usual[at])
        if columns[at_window, 0] >= 0:
            out[columns[at_window, 0]] = frauds
        if columns[at_window, 1] >= 0:
            out[columns[at_window, 1]] = count
        if columns[at_window, 2] >= 0:
            out[columns[at_window, 2]] = frauds / count if count > 0 else math.nan
        if columns[at_window, 3] >= 0:
            out[columns[at_window, 3]] = lowest if lowest < math.inf else math.nan
    if recency[0] < 0 and recency[1] < 0 and recency[2] < 0 and recency[3] < 0:
        return
    last = -1
    earliest, latest, smallest = now, 0, 0
    for at in range(first, end):
        if (
            labels[L_FRAUD, at] == 1
            and _known(labels, at, delay) > now - longest
            and _is_valid(labels, at, delay, now)
        ):
            time, value = labels[L_TIME, at], labels[L_AMOUNT, at]
            latest = time if last < 0 else max(latest, time)
            smallest = value if last < 0 else min(smallest, value)
            earliest = min(earliest, time)
            if last < 0 or _follows(labels, at, last, delay):
                last = at
    if last < 0:
        for index in recency:
            if index >= 0:
                out[index] = math.nan
        return
    legitimate = 0
    for at in range(first, end):
        if (
            labels[L_FRAUD, at] == 0
            and _is_valid(labels, at, delay, now)
            and _follows(labels, at, last, delay)
        ):
            legitimate += 1
    if recency[0] >= 0:
        out[recency[0]] = (now - earliest) / 86_400_000.0
    if recency[1] >= 0:
        out[recency[1]] = (now - latest) / 86_400_000.0
    if recency[2] >= 0:
        out[recency[2]] = legitimate
    if recency[3] >= 0:
        out[recency[3]] = smallest / float(minor_units)


@jit
def _follows(labels: Ints, item: int, other: int, delay: int) -> bool:
    """Return whether a label became known after another; at the same time, by their transactions' arrival."""
    left, right = _known(labels, item, delay), _known(labels, other, delay)
    return left > right or (left == right and labels[L_NUMBER, item] > labels[L_NUMBER, other])


class ProfileReader:
    """Reads the features of one profile from a log.

    Parameters
    ----------
    lateness_ms
        How far a transaction may lie behind the newest one of its log.
    """

    def __init__(self, profile: EntityProfile, lateness_ms: int) -> None:
        self.profile = profile
        self.size = len(profile.names)
        self._lateness = lateness_ms
        self._windows = np.array([round(days * MS_PER_DAY) for days in profile.windows_days], np.int64)
        self._places, self._columns, self._recency = profile_columns(profile)
        self._label_windows = np.array(
            [round(days * MS_PER_DAY) for days in profile.label_windows_days], np.int64
        )
        self._delay = round(profile.label_delay_days * MS_PER_DAY)
        self._usual_ms = 0 if profile.usual_days is None else round(profile.usual_days * MS_PER_DAY)
        self._scratch = np.empty((2, 1024), np.int64)

    def fill(
        self,
        events: Ints,
        bounds: tuple[int, int],
        labels: Ints,
        label_bounds: tuple[int, int],
        now: int,
        amount: int,
        minor_units: int,
        user: int,
        out: Floats,
    ) -> None:
        """Write the profile's features of a transaction that is not in the log yet.

        Parameters
        ----------
        events : int64[E_SIZE or more, capacity], labels : int64[L_SIZE + 1, capacity]
            The log's arrays; the bounds are the filled range of each.
        out : float64[size]
            Receives the features.
        """
        first, end = bounds
        if end - first >= self._scratch.shape[1]:
            self._scratch = np.empty((2, 2 * (end - first)), np.int64)
        amounts, users = self._scratch[0], self._scratch[1]
        usual = math.nan
        if self._usual_ms:
            usual = _usual(events, first, end, now, self._usual_ms, self._lateness, amounts)
            out[-1] = amount / usual if usual > 0 else math.nan
        if len(self._windows):
            _fill_activity(
                events, first, end, now, amount, minor_units, user, usual, self._windows, self._places,
                self._lateness, self.profile.large_factor, amounts, users, out,
            )  # fmt: skip
        if len(self._label_windows):
            first, end = label_bounds
            _fill_labels(
                labels, labels[L_TO_USUAL].view(np.float64), first, end, now, minor_units, self._delay,
                self._label_windows, self._columns, self._recency, out,
            )  # fmt: skip
