"""Entity profiles against an oracle that looks at every pair of rows."""

from __future__ import annotations

import math
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.features.entities import (
    ACTIVITY_AGGREGATES,
    LABEL_AGGREGATES,
    LABEL_RECENCY,
    EntityProfile,
    fill_profile,
)

DAY_MS = 86_400_000

rows_of_events = st.lists(
    st.tuples(
        st.integers(0, 2),  # entity
        st.integers(0, 60),  # time, sixths of a day, so that ties and window edges are met often
        st.integers(0, 400),  # amount
        st.integers(0, 2),  # user
        st.sampled_from([-1, 0, 0, 1]),  # label
        st.integers(0, 30),  # the label's own delay, sixths of a day
    ),
    max_size=25,
)
windows = st.lists(st.sampled_from([0.5, 1.0, 2.5, 7.0]), min_size=1, max_size=3, unique=True).map(tuple)


def to_usual_of(amount, user):
    """Stand for the amount in proportion to its user's usual one, which another profile makes."""
    return math.nan if user == 2 else amount / (50.0 + user)


def oracle(profile, rows, at):
    """Return the features of ``rows[at]`` by looking at every row that arrived before."""
    entity, now, amount, user, _, _ = rows[at]
    earlier = [row for row in rows[:at] if row[0] == entity]
    before = [row[2] for row in earlier if now - profile.usual_days * 6 < row[1] <= now]
    usual = median(before) if before else math.nan
    to_usual = amount / usual if usual > 0 else math.nan
    features = []
    for days in profile.windows_days:
        others = [row for row in earlier if now - days * 6 < row[1] <= now]
        amounts = [row[2] for row in others]
        every = [*amounts, amount]
        middle = median(amounts) if amounts else math.nan
        features += [
            len(every),
            sum(every) / 100,
            sum(every) / 100 / len(every),
            max(every) / 100,
            len({user, *(row[3] for row in others)}),
            amount / (sum(amounts) / len(amounts)) if sum(amounts) > 0 else math.nan,
            middle / 100,
            amount / middle if middle > 0 else math.nan,
            max(amounts) / usual if usual > 0 and amounts else math.nan,
            sum(value > 2.5 * usual for value in amounts) if usual > 0 else math.nan,
        ]
    labels = []
    for place, (_, time, value, who, label, own_delay) in enumerate(earlier):
        known = time + max(own_delay, profile.label_delay_days * 6)
        if label >= 0 and known <= now:
            labels.append((known, place, time, value, label, to_usual_of(value, who)))
    labels.sort()
    for days in profile.label_windows_days:
        seen = [row[4] for row in labels if row[0] > now - days * 6]
        unusual = [row[5] for row in labels if row[4] == 1 and row[0] > now - days * 6 and row[5] == row[5]]
        features += [sum(seen), len(seen), sum(seen) / len(seen) if seen else math.nan]
        features.append(min(unusual, default=math.nan))
    horizon = max(profile.label_windows_days)
    frauds = [row for row in labels if row[4] == 1 and row[0] > now - horizon * 6]
    if not frauds:
        return [*features, math.nan, math.nan, math.nan, math.nan, to_usual]
    return [
        *features,
        (now - min(row[2] for row in frauds)) / 6,
        (now - max(row[2] for row in frauds)) / 6,
        len(labels) - 1 - labels.index(frauds[-1]),
        min(row[3] for row in frauds) / 100,
        to_usual,
    ]


def compute(profile, rows):
    columns = np.array(rows, np.int64).reshape(-1, 6).T.copy()
    order = np.argsort(columns[0], kind="stable")
    out = np.full((len(rows), len(profile.names)), np.nan)
    fill_profile(
        profile,
        starts=np.concatenate([[0], np.cumsum(np.bincount(columns[0]))]).astype(np.int64),
        order=order,
        time_ms=columns[1] * (DAY_MS // 6),
        amount_minor=columns[2],
        minor_units=np.full(len(rows), 100, np.int64),
        user=columns[3],
        is_fraud=columns[4],
        label_time_ms=(columns[1] + columns[5]) * (DAY_MS // 6),
        out=out,
        to_usual=np.array([to_usual_of(row[2], row[3]) for row in rows], np.float64),
    )
    return out


@settings(deadline=None, max_examples=300)
@given(
    rows=rows_of_events,
    in_order=st.booleans(),
    activity=windows,
    labels=windows,
    delay=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    usual=st.sampled_from([1.0, 9.0]),
)
def test_profiles_are_those_of_the_oracle(rows, in_order, activity, labels, delay, usual):
    profile = EntityProfile(
        "merchant", activity, ACTIVITY_AGGREGATES, labels, LABEL_AGGREGATES, LABEL_RECENCY, delay, 90.0, usual
    )
    if in_order:
        rows = sorted(rows, key=lambda row: row[1])
    expected = [oracle(profile, rows, at) for at in range(len(rows))]
    found = compute(profile, rows)
    np.testing.assert_allclose(found, np.array(expected).reshape(found.shape), rtol=1e-12, atol=0)


@settings(deadline=None, max_examples=50)
@given(rows=rows_of_events, cut=st.integers(0, 24), data=st.data())
def test_what_comes_later_changes_nothing(rows, cut, data):
    """Nothing of a row's features depends on later arrivals, nor on labels that are not known yet."""
    profile = EntityProfile(
        "user", (2.5,), ACTIVITY_AGGREGATES, (1.0, 7.0), LABEL_AGGREGATES, LABEL_RECENCY, 1.0, 90.0, 9.0
    )
    rows = sorted(rows, key=lambda row: row[1])
    cut = min(cut, len(rows))
    now = rows[cut - 1][1] if cut else 0
    other = [
        row
        if place < cut and row[1] + max(row[5], 6) <= now
        else (*row[:4], data.draw(st.integers(-1, 1)), row[5])
        for place, row in enumerate(rows)
    ]
    other = other[:cut] + [(*row[:2], row[2] + 7, *row[3:]) for row in other[cut:]]
    np.testing.assert_array_equal(compute(profile, rows)[:cut], compute(profile, other)[:cut])


def test_the_choice_of_aggregates_moves_columns_and_no_value():
    rng = np.random.default_rng(5)
    rows = sorted(
        (tuple(rng.integers(0, [3, 60, 400, 3, 2, 9]).tolist()) for _ in range(200)), key=lambda row: row[1]
    )
    whole = EntityProfile(
        "card", (1.0, 7.0), ACTIVITY_AGGREGATES, (2.0, 7.0), LABEL_AGGREGATES, LABEL_RECENCY, usual_days=3.0
    )
    every = dict(zip(whole.names, compute(whole, rows).T, strict=True))
    part = EntityProfile(
        "card", (7.0, 1.0), ("amount_max", "count"), (7.0, 2.0), ("fraud_share",), ("days_since_last_fraud",)
    )
    assert part.names == (
        "card_count_7d", "card_amount_max_7d", "card_count_1d", "card_amount_max_1d",
        "card_fraud_share_7d", "card_fraud_share_2d", "card_days_since_last_fraud",
    )  # fmt: skip
    for name, column in zip(part.names, compute(part, rows).T, strict=True):
        np.testing.assert_array_equal(column, every[name])


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({"entity": "shop"}, "entity 'shop' is none of user, merchant"),
        ({"entity": "card", "windows_days": (1.0,), "aggregates": ("mode",)}, "aggregates: 'mode'"),
        ({"entity": "card", "windows_days": (0.0,), "aggregates": ("count",)}, "windows_days: must be"),
        ({"entity": "card", "windows_days": (1.0,)}, "belong together"),
        ({"entity": "card", "label_windows_days": (1.0,)}, "belong together"),
        ({"entity": "card", "windows_days": (1.0,), "aggregates": ("large_count",)}, "usual_days: is needed"),
        ({"entity": "card", "label_delay_days": -1.0}, "label_delay_days: must be at least 0"),
    ],
)
def test_a_profile_that_cannot_be_is_refused(profile, message):
    with pytest.raises(ValueError, match=message):
        EntityProfile(**profile)


def test_a_profile_survives_json():
    profile = EntityProfile(
        "device", (1.0, 30.0), ("count",), (7.0,), ("fraud_count",), ("fraud_amount_min",)
    )
    assert EntityProfile.from_json(profile.to_json()) == profile
