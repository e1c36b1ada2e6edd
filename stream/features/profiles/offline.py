"""Profiles of a whole file: the features of every transaction from its entity's earlier rows and labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from stream.events.fields import MS_PER_DAY
from stream.features.profiles.offline_kernel import fill_activity, fill_labels, mark_on_time
from stream.features.profiles.spec import ACTIVITY_AGGREGATES, EntityProfile, profile_columns

if TYPE_CHECKING:
    from stream.jit import Floats, Ints

__all__ = ["fill_profile"]


_NEVER: Final = 2**63 - 1


def fill_profile(
    profile: EntityProfile,
    *,
    starts: Ints,
    order: Ints,
    time_ms: Ints,
    amount_minor: Ints,
    minor_units: Ints,
    user: Ints,
    labels: tuple[Ints, Ints, Ints],
    allowed_lateness_ms: int,
    out: Floats,
    to_usual: Floats | None = None,
) -> None:
    """Write a profile's features of transactions in memory.

    Parameters
    ----------
    starts : int64[entities + 1], order : int64[m]
        The rows of entity e, in arrival order, are ``order[starts[e]:starts[e + 1]]``. Rows without a known
        entity are in none of them and stay unchanged, as do rows that are late for their entity.
    time_ms, amount_minor, minor_units, user : int64[n]
        By row; ``user`` numbers the users from 0.
    labels : three int64[labels]
        Each label's row, 1 for fraud or 0, and its own time, in order of arrival.
    allowed_lateness_ms
        See :mod:`.spec`.
    out : float64[n, len(profile.names)]
        Receives the features; NaN before.
    to_usual : float64[n] or None
        Each row's amount relative to its user's usual amount, NaN without one.
    """
    on_time = np.empty(len(order), np.bool_)
    mark_on_time(starts, order, time_ms, allowed_lateness_ms, on_time)
    if not on_time.all():
        starts = np.concatenate([[0], np.cumsum(on_time)])[starts]
        order = order[on_time]
    longest = int(np.diff(starts).max()) if len(starts) > 1 else 0
    scratch = (
        np.zeros(int(user.max()) + 1 if len(user) else 0, np.int64),
        np.empty(longest, np.int64),
        np.empty(longest, np.int64),
    )
    usual = np.full(len(time_ms), np.nan)
    if profile.usual_days is not None:
        # The medians, in minor units, of the longer window.
        wanted = np.full(len(ACTIVITY_AGGREGATES), -1, np.int64)
        wanted[ACTIVITY_AGGREGATES.index("amount_median")] = 0
        fill_activity(
            starts, order, time_ms, amount_minor, np.ones_like(minor_units), user,
            round(profile.usual_days * MS_PER_DAY), wanted, usual, profile.large_factor, *scratch,
            usual[:, None],
        )  # fmt: skip
        out[:, -1] = np.divide(amount_minor, usual, out=np.full(len(usual), np.nan), where=usual > 0)
    columns, label_columns, recency = profile_columns(profile)
    for days, position in zip(profile.windows_days, columns, strict=True):
        fill_activity(
            starts, order, time_ms, amount_minor, minor_units, user, round(days * MS_PER_DAY), position,
            usual, profile.large_factor, *scratch, out,
        )  # fmt: skip
    if not profile.label_windows_days:
        return
    by_entity = _labels_by_entity(profile, starts, order, time_ms, labels)
    fill_labels(
        starts, order, *by_entity, time_ms, amount_minor, minor_units,
        np.array([round(days * MS_PER_DAY) for days in profile.label_windows_days], np.int64),
        label_columns, recency, np.full(len(time_ms), np.nan) if to_usual is None else to_usual,
        np.empty(int(np.diff(by_entity[0]).max(initial=0)), np.int64), out,
    )  # fmt: skip


def _labels_by_entity(
    profile: EntityProfile, starts: Ints, order: Ints, time_ms: Ints, labels: tuple[Ints, Ints, Ints]
) -> tuple[Ints, Ints, Ints, Ints, Ints, Ints]:
    """Return the labels that ever count, as :func:`fill_labels` takes them."""
    rows, is_fraud, own_time_ms = labels
    place_of = np.full(len(time_ms), -1, np.int64)
    place_of[order] = np.arange(len(order))
    counts = (place_of[rows] >= 0) & (
        own_time_ms <= time_ms[rows] + round(profile.label_horizon_days * MS_PER_DAY)
    )
    index, is_fraud, own_time_ms = place_of[rows[counts]], is_fraud[counts], own_time_ms[counts]
    known = np.maximum(time_ms[order[index]] + round(profile.label_delay_days * MS_PER_DAY), own_time_ms)
    until = np.full(len(index), _NEVER, np.int64)
    corrects = np.full(len(index), -1, np.int64)
    if np.bincount(index).max(initial=0) > 1:
        by_place = np.lexsort((own_time_ms, index))
        index, is_fraud, known = index[by_place], is_fraud[by_place], known[by_place]
        # Of labels that become known together only the last is ever seen.
        seen = np.ones(len(index), np.bool_)
        seen[:-1] = (index[1:] != index[:-1]) | (known[1:] != known[:-1])
        index, is_fraud, known = index[seen], is_fraud[seen], known[seen]
        corrected = np.flatnonzero(index[1:] == index[:-1])
        until, corrects = until[: len(index)], corrects[: len(index)]
        until[corrected] = known[corrected + 1]
        corrects[corrected + 1] = corrected
    entity = np.repeat(np.arange(len(starts) - 1), np.diff(starts))[index]
    by_known = np.lexsort((index, known, entity))
    moved = np.empty(len(index), np.int64)
    moved[by_known] = np.arange(len(index))
    corrects = np.where(corrects >= 0, moved[corrects], -1)[by_known]
    label_starts = np.searchsorted(entity[by_known], np.arange(len(starts)))
    return label_starts, index[by_known], is_fraud[by_known], known[by_known], until[by_known], corrects
