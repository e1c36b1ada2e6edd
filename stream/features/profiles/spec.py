"""Entity profiles: windows and delayed labels of users, merchants, cards, devices and addresses.

A profile is declared as data, in the feature spec: :class:`EntityProfile` names the entity, its windows and
aggregates, and for label features the windows and the delay. The features of a transaction i at time t are
point-in-time:

* activity: transactions of the same entity that had arrived by then, including i, with times in
  ``(t - window, t]``; ratios and medians leave out i;
* labels: labels of *earlier arrived* transactions of the same entity that became known at a time in
  ``(t - window, t]``. A label becomes known at its own time, but never before ``label_delay_days`` after its
  transaction, so a feature means the same for a file with old labels and for a stream with recent ones. The
  label of i itself is never among them.

These rules decide which transactions and labels count:

* A profile counts transactions that are *scored* for their user. Late, duplicate and rejected transactions
have
  NaN and do not count.
* A transaction is late for an entity if its time lies more than the allowed lateness (that of the histories)
  behind the newest earlier arrived transaction that was applied to the entity. It has NaN in that profile's
  features, is not applied to the entity, and its label never counts there. So an entity may forget everything
  behind its horizon without a change of any feature. A scored transaction is never late for its user's own
  profile.
* A label does not count if its own time is more than ``label_horizon_days`` after its transaction.
* A transaction may have several labels: a later label corrects the earlier one. They are ordered by their own
  times and, at the same time, by arrival. At time t the transaction's label is the latest one known at t. A
  correction replaces the earlier label in every window from the moment the correction becomes known, even if
  both have the same value. Of labels that become known together, as the delay may cause, only the latest
  counts, so a repeated label changes nothing.
* The order of labels, for everything after the last fraud, is the order in which the labels valid at t became
  known and, at the same time, in which their transactions arrived.

A transaction with an unknown entity has NaN in all of that entity's features.
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

#: Features for every window of an entity. ``amount_to_mean`` and ``amount_to_median`` compare the
#: transaction's amount with the entity's other amounts in the window; NaN without others or if they are worth
#: 0. ``max_to_usual`` compares the largest other amount with the entity's usual amount, the median over
#: ``usual_days``; ``large_count`` counts amounts above ``large_factor`` times the usual amount: an unusual
#: amount weighs more if others came just before, long before anybody confirms a fraud. NaN without a usual
#: amount.
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

#: Features for every label window. ``fraud_share`` is NaN if no label became known. ``fraud_to_usual_min`` is
#: the smallest confirmed fraud, each relative to its own user's usual amount: an ordinary amount for its
#: owner points at the entity. NaN if no such fraud became known.
LABEL_AGGREGATES: Final = ("fraud_count", "label_count", "fraud_share", "fraud_to_usual_min")

#: Features over the longest label window. Days count from the fraud itself, not from its label;
#: ``legitimate_since_fraud`` counts the labels that became known after the last fraud's; all are NaN if no
#: fraud became known.
LABEL_RECENCY: Final = (
    "days_since_first_fraud",
    "days_since_last_fraud",
    "legitimate_since_fraud",
    "fraud_amount_min",
)


@dataclass(frozen=True, slots=True)
class EntityProfile:
    """The declared profile of a kind of entity.

    Attributes
    ----------
    entity:
        A key of ``ENTITIES``.
    windows_days, aggregates:
        Each aggregate of ``ACTIVITY_AGGREGATES`` over each window.
    usual_days, large_factor:
        See ``ACTIVITY_AGGREGATES``. ``usual_days`` also adds the feature ``amount_to_usual``.
    label_windows_days, label_aggregates:
        Each aggregate of ``LABEL_AGGREGATES`` over each window that ends now; a window covers the time in
        which labels became known.
    label_recency:
        Members of ``LABEL_RECENCY``.
    label_delay_days:
        No label is known sooner than this after its transaction.
    label_horizon_days:
        A label whose own time is later than this after its transaction does not count; a worker keeps
        transactions for their labels for this long.

    Raises
    ------
    ValueError
        A name is unknown or repeated, or a length is not positive.

    Examples
    --------
    >>> profile = EntityProfile(
    ...     "merchant", windows_days=(1.0,), aggregates=("count",),
    ...     label_windows_days=(30.0,), label_aggregates=("fraud_count",),
    ... )
    >>> profile.names
    ('merchant_count_1d', 'merchant_fraud_count_30d')
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
            msg = "aggregates and windows_days require each other"
            raise ValueError(msg)
        if bool(self.label_windows_days) != bool(self.label_aggregates or self.label_recency):
            msg = "label_windows_days requires label_aggregates or label_recency, and they require it"
            raise ValueError(msg)
        if self.usual_days is None and {"max_to_usual", "large_count"} & set(self.aggregates):
            msg = "usual_days: is required by max_to_usual and large_count"
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
            msg = f"entity {self.entity!r} is not one of {', '.join(ENTITIES)}"
            raise ValueError(msg)
        for name, known in (
            ("aggregates", ACTIVITY_AGGREGATES),
            ("label_aggregates", LABEL_AGGREGATES),
            ("label_recency", LABEL_RECENCY),
        ):
            given: tuple[str, ...] = getattr(self, name)
            for value in given:
                if value not in known:
                    msg = f"{name}: {value!r} is not one of {', '.join(known)}"
                    raise ValueError(msg)
            if len(set(given)) != len(given):
                msg = f"{name}: contains a name twice"
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
    """Return each feature's name, its aggregate and its window in days (None: no window), in order."""
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
    """Return the column of each aggregate of a profile, -1 for an aggregate that it does not have.

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
