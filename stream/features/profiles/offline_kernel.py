"""The compiled kernel of :mod:`.offline`: rows of one entity after the other."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from stream.jit import Flags, Floats, Ints, jit, jit_alloc

__all__ = [
    "COUNT",
    "DISTINCT",
    "LARGE_COUNT",
    "MAX",
    "MAX_TO_USUAL",
    "MEAN",
    "MEDIAN",
    "SUM",
    "TO_MEAN",
    "TO_MEDIAN",
    "fill_activity",
    "fill_labels",
    "mark_on_time",
]

# Indexes of the activity aggregates in ``ACTIVITY_AGGREGATES``.
COUNT: Final = 0

SUM: Final = 1
MEAN: Final = 2
MAX: Final = 3
DISTINCT: Final = 4
TO_MEAN: Final = 5
MEDIAN: Final = 6
TO_MEDIAN: Final = 7
MAX_TO_USUAL: Final = 8
LARGE_COUNT: Final = 9


@jit
def mark_on_time(starts: Ints, order: Ints, time_ms: Ints, allowed_lateness: int, on_time: Flags) -> None:
    """Return for each entry of ``order`` whether its row is on time for its entity: bool[m].

    A late row lies behind the newest one, so rows that are not applied do not move the newest time.
    """
    for entity in range(len(starts) - 1):
        first, end = starts[entity], starts[entity + 1]
        newest = time_ms[order[first]] if first < end else 0
        for at in range(first, end):
            now = time_ms[order[at]]
            on_time[at] = now >= newest - allowed_lateness
            newest = max(newest, now)


@jit
def _lower(values: Ints, count: int, value: int) -> int:
    """Return the first index among ``count`` ascending values that is not below ``value``."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if values[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@jit
def _above(values: Ints, count: int, value: float) -> int:
    """Return the first index among ``count`` ascending values that is above ``value``, ``count`` for NaN."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if values[middle] > value:
            high = middle
        else:
            low = middle + 1
    return low


@jit
def _insert(values: Ints, count: int, value: int) -> None:
    index = _lower(values, count, value)
    for at in range(count, index, -1):
        values[at] = values[at - 1]
    values[index] = value


@jit
def _remove(values: Ints, count: int, value: int) -> None:
    for at in range(_lower(values, count, value), count - 1):
        values[at] = values[at + 1]


@jit_alloc
def fill_activity(
    starts: Ints,
    order: Ints,
    time_ms: Ints,
    amount_minor: Ints,
    minor_units: Ints,
    user: Ints,
    window: int,
    index: Ints,
    usual: Floats,
    large_factor: float,
    in_window: Ints,
    queue: Ints,
    ranked: Ints,
    out: Floats,
) -> None:
    """Fill the aggregates of a window; scratch arrays ``queue`` and ``ranked`` hold the longest entity.

    ``usual`` is the usual amount of each row in minor units, NaN without one.

    Entities with rows in order of time are walked once with the two ends of a window. The others, whose late
    rows see less than their neighbours, are computed row by row.
    """
    need_median = index[MEDIAN] >= 0 or index[TO_MEDIAN] >= 0 or index[LARGE_COUNT] >= 0
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
                before_largest = amount_minor[order[queue[head]]] if head < tail else 0
                large = count - _above(ranked, count, large_factor * usual[row]) if need_median else 0
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
                before_largest = 0
                distinct = 1
                in_window[user[row]] = 1
                for before in range(first, at):
                    other = order[before]
                    if now - window < time_ms[other] <= now:
                        if need_median:
                            _insert(ranked, count, amount_minor[other])
                        others += amount_minor[other]
                        count += 1
                        before_largest = max(before_largest, amount_minor[other])
                        if in_window[user[other]] == 0:
                            distinct += 1
                            in_window[user[other]] = 1
                largest = max(largest, before_largest)
                middle = _median(ranked, count) if need_median and count > 0 else math.nan
                large = count - _above(ranked, count, large_factor * usual[row]) if need_median else 0
                for before in range(first, at + 1):
                    in_window[user[order[before]]] = 0
            units = float(minor_units[row])
            if index[COUNT] >= 0:
                out[row, index[COUNT]] = count + 1
            if index[SUM] >= 0:
                out[row, index[SUM]] = (others + amount) / units
            if index[MEAN] >= 0:
                out[row, index[MEAN]] = (others + amount) / units / (count + 1)
            if index[MAX] >= 0:
                out[row, index[MAX]] = largest / units
            if index[DISTINCT] >= 0:
                out[row, index[DISTINCT]] = distinct
            if index[TO_MEAN] >= 0:
                out[row, index[TO_MEAN]] = amount / (others / count) if others > 0 else math.nan
            if index[MEDIAN] >= 0:
                out[row, index[MEDIAN]] = middle / units
            if index[TO_MEDIAN] >= 0:
                out[row, index[TO_MEDIAN]] = amount / middle if middle > 0 else math.nan
            if index[MAX_TO_USUAL] >= 0:
                known = usual[row] > 0 and count > 0
                out[row, index[MAX_TO_USUAL]] = before_largest / usual[row] if known else math.nan
            if index[LARGE_COUNT] >= 0:
                out[row, index[LARGE_COUNT]] = large if usual[row] > 0 else math.nan
        if ordered:
            for at in range(oldest, end):
                in_window[user[order[at]]] = 0


@jit
def _median(ranked: Ints, count: int) -> float:
    half = count // 2
    if count % 2:
        return float(ranked[half])
    return float(ranked[half - 1] + ranked[half]) / 2.0


@jit_alloc
def fill_labels(
    starts: Ints,
    order: Ints,
    label_starts: Ints,
    label_places: Ints,
    is_fraud: Ints,
    known: Ints,
    until: Ints,
    corrects: Ints,
    time_ms: Ints,
    amount_minor: Ints,
    minor_units: Ints,
    windows: Ints,
    columns: Ints,
    recency: Ints,
    to_usual: Floats,
    frauds: Ints,
    out: Floats,
) -> None:
    """Fill all windows of label features, see :func:`stream.features.profiles.offline.fill_profile`.

    Parameters
    ----------
    label_starts : int64[entities + 1]
        The labels of entity e are ``label_starts[e]:label_starts[e + 1]`` of the arrays below, by the time at
        which they become known and, at the same time, in the order in which their transactions arrived.
    label_places, is_fraud, known, until, corrects : int64[labels]
        Of each label: the index of its row in ``order``; 1 for a fraud, otherwise 0; when it becomes known;
        when a later label replaces it, beyond all times if none does; the label that it replaces, or -1.
    frauds : int64[labels of the entity with most]
        Scratch: the entity's known frauds, as indexes of labels.
    """
    longest = windows.max()
    width = len(windows)
    oldest = np.zeros(width, np.int64)
    fraud_count = np.zeros(width, np.int64)
    label_count = np.zeros(width, np.int64)
    for entity in range(len(starts) - 1):
        first, end = starts[entity], starts[entity + 1]
        first_label, end_label = label_starts[entity], label_starts[entity + 1]
        ordered = True
        for at in range(first + 1, end):
            if time_ms[order[at]] < time_ms[order[at - 1]]:
                ordered = False
                break
        newest = first_label
        oldest[:] = first_label
        fraud_count[:] = 0
        label_count[:] = 0
        found, forgotten = 0, 0
        legitimate = 0
        for at in range(first, end):
            row = order[at]
            now = time_ms[row]
            if ordered:
                fraud_corrected = False
                # A label that became known with or after its own arrival ends the walk: its time is now at
                # least, and labels of the same time are in order of arrival.
                while newest < end_label and label_places[newest] < at and known[newest] <= now:
                    fraud = is_fraud[newest]
                    before = corrects[newest]
                    if before >= 0:
                        for window in range(width):
                            if before >= oldest[window]:
                                label_count[window] -= 1
                                fraud_count[window] -= is_fraud[before]
                        if is_fraud[before] == 1:
                            fraud_corrected = True
                        elif found == 0 or before > frauds[found - 1]:
                            legitimate -= 1
                    for window in range(width):
                        label_count[window] += 1
                        fraud_count[window] += fraud
                    legitimate += 1
                    if fraud == 1:
                        legitimate = 0
                        frauds[found] = newest
                        found += 1
                    newest += 1
                for window in range(width):
                    while oldest[window] < newest and known[oldest[window]] <= now - windows[window]:
                        # A corrected label has left the counts already.
                        if until[oldest[window]] > now:
                            label_count[window] -= 1
                            fraud_count[window] -= is_fraud[oldest[window]]
                        oldest[window] += 1
                if fraud_corrected:
                    kept = forgotten
                    for index in range(forgotten, found):
                        if until[frauds[index]] > now:
                            frauds[kept] = frauds[index]
                            kept += 1
                    found = kept
                    legitimate = 0
                    since = frauds[found - 1] if found > forgotten else newest
                    for other in range(since + 1, newest):
                        if is_fraud[other] == 0 and until[other] > now:
                            legitimate += 1
                while forgotten < found and known[frauds[forgotten]] <= now - longest:
                    forgotten += 1
            else:
                fraud_count[:] = 0
                label_count[:] = 0
                found, forgotten, legitimate = 0, 0, 0
                for other in range(first_label, end_label):
                    if known[other] > now:
                        break
                    if label_places[other] >= at or until[other] <= now:
                        continue
                    for window in range(width):
                        if known[other] > now - windows[window]:
                            label_count[window] += 1
                            fraud_count[window] += is_fraud[other]
                    legitimate += 1
                    if is_fraud[other] == 1:
                        legitimate = 0
                        if known[other] > now - longest:
                            frauds[found] = other
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
            if found == forgotten:
                continue
            earliest = now
            latest = time_ms[order[label_places[frauds[forgotten]]]]
            smallest = amount_minor[order[label_places[frauds[forgotten]]]]
            for index in range(forgotten, found):
                other = order[label_places[frauds[index]]]
                earliest = min(earliest, time_ms[other])
                latest = max(latest, time_ms[other])
                smallest = min(smallest, amount_minor[other])
            for window in range(width):
                if columns[window, 3] < 0:
                    continue
                lowest = math.inf
                for index in range(forgotten, found):
                    other = order[label_places[frauds[index]]]
                    if known[frauds[index]] > now - windows[window] and to_usual[other] < lowest:
                        lowest = to_usual[other]
                if lowest < math.inf:
                    out[row, columns[window, 3]] = lowest
            if recency[0] >= 0:
                out[row, recency[0]] = (now - earliest) / 86_400_000.0
            if recency[1] >= 0:
                out[row, recency[1]] = (now - latest) / 86_400_000.0
            if recency[2] >= 0:
                out[row, recency[2]] = legitimate
            if recency[3] >= 0:
                out[row, recency[3]] = smallest / float(minor_units[row])
