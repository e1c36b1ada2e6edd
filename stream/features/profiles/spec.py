"""Profiles of entities: windows and delayed labels of users, merchants, cards, devices and addresses.

What is wanted is declared as data, in the feature spec: :class:`EntityProfile` names the entity, its windows
and aggregates, and for what is known of labels the windows and the delay. The features of a transaction i at
time t are point-in-time:

* activity: the transactions of the same entity that had arrived by then, itself among them, with times in
  ``(t - window, t]``; ratios and medians leave itself out;
* labels: those of *earlier arrived* transactions of the same entity that had become known at a time in
  ``(t - window, t]``. A label becomes known at its own time, but never before ``label_delay_days`` after
  its transaction, so a feature means the same for a file whose labels are old and for a stream whose labels
  are not. Its own label can never be among them.

Which transactions and which labels these are:

* Profiles are of transactions that are *scored* for their user; late, repeated and rejected ones have NaN and
  are not counted.
* A transaction whose time lies more than the allowed lateness, which is that of the histories, behind the
  newest of the earlier arrived ones applied to its entity is late for that entity: it has NaN in that
  profile's features and is not applied to the entity, nor does its label ever count there. So what lies
  behind its horizon may be forgotten without any feature changing. What is scored is never late for its
  user's own profile.
* A label whose own time is more than ``label_horizon_days`` after its transaction does not count at all.
* A transaction may have several labels: a later one corrects the one before it. They are ordered by their own
  times, those of one time as they arrived. At time t its label is the last of them among those known by
  then, and became known when that very label did: a correction takes the first one's place when it is known
  itself, in every window, even where it says the same again. Of labels that become known together, as the
  delay makes them, only the last ever counts, so one that comes twice changes nothing.
* The labels' order, for what came after the last fraud, is that in which those valid at t became known; of
  one time, that in which their transactions arrived.

A transaction whose entity is not known has NaN in all of its features.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stream.jit import Ints

__all__ = [
    "ACTIVITY_AGGREGATES",
    "ENTITIES",
    "LABEL_AGGREGATES",
    "LABEL_RECENCY",
    "EntityProfile",
    "profile_columns",
    "profile_features",
]


_MAX_DAYS: Final = 3650

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
#: ``max_to_usual`` compares the largest of the others with the entity's usual amount, the median over
#: ``usual_days``; ``large_count`` counts those above ``large_factor`` times the usual one: an unusual amount
#: weighs more where others came just before, long before anybody confirms a fraud. NaN without a usual one.
ACTIVITY_AGGREGATES: Final = (
    "count",
    "amount_sum",
    "amount_mean",
    "amount_max",
    "user_distinct",
    "amount_to_mean",
    "amount_median",
    "amount_to_median",
    "max_to_usual",
    "large_count",
)

#: One feature of each for every label window. ``fraud_share`` is NaN where no label became known.
#: ``fraud_to_usual_min`` is the smallest confirmed fraud, each in proportion to its own user's usual amount:
#: one that is ordinary for its owner points at the entity. NaN where no such fraud became known.
LABEL_AGGREGATES: Final = ("fraud_count", "label_count", "fraud_share", "fraud_to_usual_min")

#: One feature of each, over the longest label window. Days are from the fraud itself, not from its label;
#: ``legitimate_since_fraud`` counts the labels that became known after the last fraud's; all are NaN where
#: no fraud became known.
LABEL_RECENCY: Final = (
    "days_since_first_fraud",
    "days_since_last_fraud",
    "legitimate_since_fraud",
    "fraud_amount_min",
)


@dataclass(frozen=True, slots=True)
class EntityProfile:
    """What is kept of one kind of entity, and becomes features.

    Attributes
    ----------
    entity:
        A key of ``ENTITIES``.
    windows_days, aggregates:
        Each aggregate, see ``ACTIVITY_AGGREGATES``, over each window.
    usual_days, large_factor:
        See ``ACTIVITY_AGGREGATES``. With ``usual_days`` there is also one feature ``amount_to_usual``.
    label_windows_days, label_aggregates:
        Each of ``LABEL_AGGREGATES`` over each window that ends now; lengths are of the time in which labels
        became known.
    label_recency:
        Members of ``LABEL_RECENCY``.
    label_delay_days:
        No label is known sooner than this after its transaction.
    label_horizon_days:
        A label whose own time is later than this after its transaction does not count; so long a worker keeps
        transactions for their labels.

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
    label_horizon_days: float = 90.0
    usual_days: float | None = None
    large_factor: float = 2.5

    def __post_init__(self) -> None:
        self._check_names()
        for name in ("windows_days", "label_windows_days"):
            lengths: tuple[float, ...] = getattr(self, name)
            if not all(0 < days <= _MAX_DAYS for days in lengths) or len(set(lengths)) != len(lengths):
                msg = f"{name}: must be different numbers above 0 and up to {_MAX_DAYS}, not {lengths}"
                raise ValueError(msg)
        if bool(self.aggregates) != bool(self.windows_days):
            msg = "aggregates and windows_days belong together"
            raise ValueError(msg)
        if bool(self.label_windows_days) != bool(self.label_aggregates or self.label_recency):
            msg = "label_windows_days belong together with label_aggregates or label_recency"
            raise ValueError(msg)
        if self.usual_days is None and {"max_to_usual", "large_count"} & set(self.aggregates):
            msg = "usual_days: is needed for max_to_usual and large_count"
            raise ValueError(msg)
        if self.usual_days is not None and not 0 < self.usual_days <= _MAX_DAYS:
            msg = f"usual_days: must lie above 0 and up to {_MAX_DAYS}, not {self.usual_days}"
            raise ValueError(msg)
        if not 0 < self.large_factor < math.inf:
            msg = f"large_factor: must be above 0, not {self.large_factor}"
            raise ValueError(msg)
        if not 0 <= self.label_delay_days < math.inf:
            msg = f"label_delay_days: must be at least 0, not {self.label_delay_days}"
            raise ValueError(msg)
        if not self.label_delay_days <= self.label_horizon_days <= _MAX_DAYS:
            msg = (
                f"label_horizon_days: must lie between label_delay_days and {_MAX_DAYS}, "
                f"not {self.label_horizon_days}"
            )
            raise ValueError(msg)

    def _check_names(self) -> None:
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

    def delayed(self, days: float) -> Self:
        """Return the profile with another label delay."""
        return replace(self, label_delay_days=days, label_horizon_days=max(days, self.label_horizon_days))

    @property
    def names(self) -> tuple[str, ...]:
        """The features, in the order of the columns."""
        return tuple(name for name, _, _ in profile_features(self))

    def to_json(self) -> dict[str, Any]:
        """Return the profile as JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the profile that :meth:`to_json` wrote.

        Raises
        ------
        ValueError
            See the class.
        """
        known: dict[str, Any] = {
            name: tuple(item) if isinstance(item, list) else item for name, item in value.items()
        }
        try:
            return cls(**known)
        except TypeError as error:
            msg = f"entities: {error}"
            raise ValueError(msg) from error


def profile_features(profile: EntityProfile) -> list[tuple[str, str, float | None]]:
    """Return each feature's name, what it is and over how many days (None: over no window), in order."""
    found: list[tuple[str, str, float | None]] = []
    for windows, known, wanted in (
        (profile.windows_days, ACTIVITY_AGGREGATES, profile.aggregates),
        (profile.label_windows_days, LABEL_AGGREGATES, profile.label_aggregates),
    ):
        found += [
            (f"{profile.entity}_{name}_{days:g}d", name, days)
            for days in windows
            for name in known
            if name in wanted
        ]
    found += [
        (f"{profile.entity}_{name}", name, None) for name in LABEL_RECENCY if name in profile.label_recency
    ]
    if profile.usual_days is not None:
        found.append((f"{profile.entity}_amount_to_usual", "amount_to_usual", None))
    return found


def profile_columns(profile: EntityProfile) -> tuple[Ints, Ints, Ints]:
    """Return which column of a profile holds what, -1 where it is not wanted.

    int64[windows, activity aggregates], int64[label windows, label aggregates] and int64[recency].
    """
    activity = np.full((len(profile.windows_days), len(ACTIVITY_AGGREGATES)), -1, np.int64)
    labels = np.full((len(profile.label_windows_days), len(LABEL_AGGREGATES)), -1, np.int64)
    recency = np.full(len(LABEL_RECENCY), -1, np.int64)
    for column, (_, message, days) in enumerate(profile_features(profile)):
        if message in LABEL_RECENCY:
            recency[LABEL_RECENCY.index(message)] = column
        elif days is None:
            continue  # the amount to the usual one, which is always last
        elif message in ACTIVITY_AGGREGATES:
            activity[profile.windows_days.index(days), ACTIVITY_AGGREGATES.index(message)] = column
        else:
            labels[profile.label_windows_days.index(days), LABEL_AGGREGATES.index(message)] = column
    return activity, labels, recency
