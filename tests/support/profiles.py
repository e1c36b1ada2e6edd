"""Profiles, and transactions and labels to try them on."""

from __future__ import annotations

import numpy as np

from offline.data.table import Labels, TransactionTable
from stream.features.profiles.spec import ACTIVITY_AGGREGATES, LABEL_AGGREGATES, LABEL_RECENCY, EntityProfile
from stream.features.spec import MISSING

START_MS = 1_700_000_000_000
DAY_MS = 86_400_000
PROFILES = (
    EntityProfile("user", (1.0, 5.0), ACTIVITY_AGGREGATES, usual_days=9.0),
    EntityProfile(
        "merchant", (2.0,), ACTIVITY_AGGREGATES[:5], (3.0, 8.0), LABEL_AGGREGATES, LABEL_RECENCY, 2.0, 20.0
    ),
    EntityProfile("device", (1.0,), ("count", "user_distinct"), (4.0,), ("fraud_share",), (), 1.0, 20.0),
)

#: The user is asked like any other entity, since its profile has labels.
OTHER_PROFILES = (
    EntityProfile(
        "user", (1.0,), ("count", "amount_to_median"), (5.0,), LABEL_AGGREGATES[:3], LABEL_RECENCY, 1.0, 20.0,
        usual_days=9.0,
    ),
    EntityProfile(
        "card", (2.0,), ("amount_max", "user_distinct"), (4.0,), ("fraud_to_usual_min",), (), 2.0, 30.0
    ),
    EntityProfile("ip", (1.0, 3.0), ("count", "large_count"), usual_days=4.0),
)  # fmt: skip


def transactions(rng, count, users=4, merchants=3, devices=3):
    """Rows in order of time, some without a merchant or a device, some twice."""
    rows, time = [], START_MS
    for number in range(count):
        time += rng.choice([0, 1, DAY_MS // 50, rng.randrange(DAY_MS // 4)])
        name = f"t{rng.randrange(number)}" if number and rng.random() < 0.05 else f"t{number}"
        row = {
            "transaction_id": name,
            "user_id": f"u{rng.randrange(users)}",
            "event_time": time,
            "amount": rng.randrange(1, 500),
            "currency": "EUR",
            "channel": "web",
            "transaction_type": "purchase",
        }
        if rng.random() < 0.9:
            row["merchant_id"] = f"m{rng.randrange(merchants)}"
        if rng.random() < 0.7:
            row["device_id"] = f"d{rng.randrange(devices)}"
        if rng.random() < 0.8:
            row["card_id"] = f"c{rng.randrange(4)}"
            row["ip"] = f"10.0.0.{rng.randrange(3)}"
        rows.append(row)
    return rows


def labels_of(rng, rows):
    """One label of most transactions, known up to ten days later."""
    seen, labels = set(), []
    for row in rows:
        who = (row["user_id"], row["transaction_id"])
        if who in seen or rng.random() < 0.2:
            continue
        seen.add(who)
        labels.append(
            {
                "transaction_id": row["transaction_id"],
                "user_id": row["user_id"],
                "is_fraud": rng.random() < 0.4,
                "event_time": row["event_time"],
                "label_time": row["event_time"] + rng.randrange(0, 10 * DAY_MS),
            }
        )
    return sorted(labels, key=lambda label: label["label_time"])


def table_of(rows, labels=()):
    """The file of these transactions, with labels in the order of their arrival."""
    first = {}
    for number, row in enumerate(rows):
        first.setdefault((row["user_id"], row["transaction_id"]), number)
    known = [label for label in labels if (label["user_id"], label["transaction_id"]) in first]

    def texts(name):
        return np.array([row.get(name) for row in rows], np.object_)

    table = TransactionTable(
        transaction_id=texts("transaction_id"),
        user_id=texts("user_id"),
        event_time_ms=np.array([row["event_time"] for row in rows], np.int64),
        amount_minor=np.array([row["amount"] * 100 for row in rows], np.int64),
        minor_units=np.full(len(rows), 100, np.int64),
        currency=texts("currency"),
        channel=texts("channel"),
        transaction_type=texts("transaction_type"),
        pre_balance_minor=np.full(len(rows), MISSING, np.int64),
        post_balance_minor=np.full(len(rows), MISSING, np.int64),
        merchant_id=texts("merchant_id"),
        card_id=texts("card_id"),
        device_id=texts("device_id"),
        ip=texts("ip"),
    )
    return table.with_labels(
        Labels(
            np.array([first[label["user_id"], label["transaction_id"]] for label in known], np.int64),
            np.array([label["is_fraud"] for label in known], np.int8),
            np.array([label["label_time"] for label in known], np.int64),
        )
    )


def out_of_order(rng, rows):
    """Move some transactions back in time, a few of them beyond the allowed lateness."""
    for row in rows:
        if rng.random() < 0.2:
            row["event_time"] -= rng.choice([1, DAY_MS // 24, DAY_MS, 5 * DAY_MS, 5 * DAY_MS])
    return rows


def corrected(rng, labels):
    """Add labels that say something else later or earlier, or the same again."""
    more = [
        label
        | {
            "is_fraud": rng.random() < 0.5,
            "label_time": label["label_time"]
            + rng.choice([0, -DAY_MS // 2, DAY_MS, 6 * DAY_MS, 30 * DAY_MS]),
        }
        for label in labels
        if rng.random() < 0.4
    ]
    every = [*labels, *more]
    rng.shuffle(every)
    return every
