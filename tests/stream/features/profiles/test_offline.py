"""Entity profiles of whole files against the oracle, which takes one transaction after another."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.features.profiles.offline import fill_profile
from stream.features.profiles.spec import ACTIVITY_AGGREGATES, LABEL_AGGREGATES, LABEL_RECENCY, EntityProfile
from support.profile_oracle import Entity

SIXTH_MS = 86_400_000 // 6

#: A label and its own time after its transaction, sixths of a day.
label = st.tuples(st.sampled_from([0, 0, 1]), st.integers(-3, 30))
rows_of_events = st.lists(
    st.tuples(
        st.integers(0, 2),  # entity
        st.integers(0, 60),  # time, sixths of a day, so that ties and window edges are met often
        st.integers(0, 400),  # amount
        st.integers(0, 2),  # user
        st.lists(label, max_size=4),  # as they arrive
    ),
    max_size=25,
)
windows = st.lists(st.sampled_from([0.5, 1.0, 2.5, 7.0]), min_size=1, max_size=3, unique=True).map(tuple)


def to_usual_of(amount, user):
    """Stand for the amount in proportion to its user's usual one, which another profile makes."""
    return math.nan if user == 2 else amount / (50.0 + user)


def oracle(profile, rows, lateness):
    """Return every row's features; its labels arrive at once and count in their time."""
    entities, found = {}, []
    for id_hash, (name, sixths, amount, user, given_labels) in enumerate(rows):
        entity = entities.setdefault(name, Entity([profile], lateness * SIXTH_MS))
        time = sixths * SIXTH_MS
        if entity.is_late(time):
            found.append([math.nan] * len(profile.names))
            continue
        features = entity.features(time, amount, user)
        found.append([features[feature] for feature in profile.names])
        entity.take(time, amount, user, id_hash, to_usual_of(amount, user), id_hash)
        for arrival, (says, delay) in enumerate(given_labels):
            entity.tell(id_hash, says, time + delay * SIXTH_MS, arrival)
    return found


def compute(profile, rows, lateness=1_000):
    columns = np.array([row[:4] for row in rows], np.int64).reshape(-1, 4).T.copy()
    order = np.argsort(columns[0], kind="stable")
    out = np.full((len(rows), len(profile.names)), np.nan)
    # The first labels of all rows arrive before all corrections.
    labels = sorted(
        (arrival, row, says, time + delay)
        for row, (_, time, _, _, given_labels) in enumerate(rows)
        for arrival, (says, delay) in enumerate(given_labels)
    )
    _, label_row, is_fraud, label_time = np.array(labels, np.int64).reshape(-1, 4).T.copy()
    fill_profile(
        profile,
        starts=np.concatenate([[0], np.cumsum(np.bincount(columns[0]))]).astype(np.int64),
        order=order,
        time_ms=columns[1] * SIXTH_MS,
        amount_minor=columns[2],
        minor_units=np.full(len(rows), 100, np.int64),
        user=columns[3],
        labels=(label_row, is_fraud, label_time * SIXTH_MS),
        allowed_lateness_ms=lateness * SIXTH_MS,
        out=out,
        to_usual=np.array([to_usual_of(row[2], row[3]) for row in rows], np.float64),
    )
    return out


@settings(deadline=None, max_examples=500)
@given(
    rows=rows_of_events,
    in_order=st.booleans(),
    activity=windows,
    labels=windows,
    delay=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    horizon=st.sampled_from([2.0, 3.0, 90.0]),
    usual=st.sampled_from([1.0, 9.0]),
    lateness=st.sampled_from([0, 3, 12, 1_000]),
)
def test_profiles_are_those_of_the_oracle(rows, in_order, activity, labels, delay, horizon, usual, lateness):
    profile = EntityProfile(
        "merchant",
        activity,
        ACTIVITY_AGGREGATES,
        labels,
        LABEL_AGGREGATES,
        LABEL_RECENCY,
        delay,
        horizon,
        usual,
    )
    if in_order:
        rows = sorted(rows, key=lambda row: row[1])
    expected = oracle(profile, rows, lateness)
    found = compute(profile, rows, lateness)
    np.testing.assert_allclose(found, np.array(expected).reshape(found.shape), rtol=1e-12, atol=0)


@settings(deadline=None, max_examples=200)
@given(
    rows=st.lists(
        st.tuples(
            st.just(0), st.integers(0, 40), st.just(1), st.just(0), st.lists(label, min_size=1, max_size=4)
        ),
        min_size=15,
        max_size=30,
    ),
    in_order=st.booleans(),
    labels=windows,
    delay=st.sampled_from([0.0, 1.0]),
)
def test_corrections_in_one_busy_entity_are_those_of_the_oracle(rows, in_order, labels, delay):
    """Many labels wait between two transactions, and corrections of corrections fall into one step."""
    profile = EntityProfile(
        "merchant", (1.0,), ACTIVITY_AGGREGATES, labels, LABEL_AGGREGATES, LABEL_RECENCY, delay, 4.0, 9.0
    )
    if in_order:
        rows = sorted(rows, key=lambda row: row[1])
    expected = oracle(profile, rows, 1_000)
    np.testing.assert_allclose(compute(profile, rows), np.array(expected), rtol=1e-12, atol=0)


@settings(deadline=None, max_examples=100)
@given(rows=rows_of_events, data=st.data(), delay=st.sampled_from([0.0, 1.0]))
def test_a_label_that_comes_again_changes_nothing(rows, data, delay):
    profile = EntityProfile("card", (), (), (1.0, 7.0), LABEL_AGGREGATES, LABEL_RECENCY, delay, 90.0, 9.0)
    rows = sorted(rows, key=lambda row: row[1])
    # Of several with one time only the last may come again: that of another would correct it.
    again = [
        (*row[:4], [*row[4], *(one for one in row[4] if data.draw(st.booleans()) and last_of(row[4], one))])
        for row in rows
    ]
    np.testing.assert_array_equal(compute(profile, rows), compute(profile, again))


def last_of(labels, one):
    return [label for label in labels if label[1] == one[1]][-1] == one


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
    other = []
    for place, row in enumerate(rows):
        known = [one for one in row[4] if place < cut and row[1] + max(one[1], 6) <= now]
        others = [
            one
            for one in data.draw(st.lists(label, max_size=2))
            if row[1] + max(one[1], 6) > now or place >= cut
        ]
        other.append((*row[:2], row[2] + 7 * (place >= cut), row[3], [*known, *others]))
    np.testing.assert_array_equal(compute(profile, rows)[:cut], compute(profile, other)[:cut])


def test_the_choice_of_aggregates_moves_columns_and_no_value():
    rng = np.random.default_rng(5)
    drawn = (rng.integers(0, [3, 60, 400, 3, 2, 9]).tolist() for _ in range(200))
    rows = sorted(((*row[:4], [tuple(row[4:])]) for row in drawn), key=lambda row: row[1])
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
        ({"entity": "shop"}, "entity 'shop' is not one of user, merchant"),
        ({"entity": "card", "windows_days": (1.0,), "aggregates": ("mode",)}, "aggregates: 'mode'"),
        ({"entity": "card", "windows_days": (0.0,), "aggregates": ("count",)}, "windows_days: must be"),
        ({"entity": "card", "windows_days": (1.0,)}, "require each other"),
        ({"entity": "card", "label_windows_days": (1.0,)}, "and they require it"),
        (
            {"entity": "card", "windows_days": (1.0,), "aggregates": ("large_count",)},
            "usual_days: is required",
        ),
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
