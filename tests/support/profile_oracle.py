"""The profiles' semantics once more, in plain Python and without the product's code: slow and obvious.

An entity gets transactions and labels one after another, in the order of their arrival. The product only
says which profiles there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stream.features.profiles.spec import EntityProfile

DAY = 86_400_000

#: From so many on, what no later transaction can see is left out of the lists that are searched.
_MANY = 300


class Taken(NamedTuple):
    """A transaction as an entity has it: money in minor units, ids as 64-bit identities."""

    time: int
    amount: int
    user: int
    id_hash: int
    to_usual: float
    case: int
    number: int


class Learnt(NamedTuple):
    """A label of a transaction, and its offset in the labels' topic."""

    taken: Taken
    is_fraud: int
    when: int
    offset: int


class _Known(NamedTuple):
    """A label that counts at some time, and since when."""

    known: int
    label: Learnt


@dataclass
class Entity:
    """One entity of one kind, and everything that it was ever told of.

    Attributes
    ----------
    events, labels:
        In arrival order, as far back as anything can see.
    total:
        Transactions ever.
    keeps_days:
        How far it reaches back at least, whatever its profiles look at.
    """

    profiles: Sequence[EntityProfile]
    lateness: int = 3 * DAY
    keeps_days: float = 0.0
    events: list[Taken] = field(default_factory=list)
    labels: list[Learnt] = field(default_factory=list)
    total: int = 0
    newest: int | None = None

    @property
    def events_horizon(self) -> int:
        """How far behind the newest transaction others are seen, be it by a late label."""
        days = [self.keeps_days]
        for one in self.profiles:
            days += [*one.windows_days, one.usual_days or 0.0]
            days += [one.label_horizon_days] if one.label_windows_days else []
        return round(max(days) * DAY) + self.lateness

    @property
    def labels_horizon(self) -> int:
        """How far behind the newest transaction labels are seen."""
        days = [
            max(one.label_windows_days) + one.label_horizon_days
            for one in self.profiles
            if one.label_windows_days
        ]
        return round(max(days, default=0.0) * DAY) + self.lateness

    def is_late(self, time: int) -> bool:
        return self.newest is not None and time < self.newest - self.lateness

    def features(self, time: int, amount: int, user: int) -> dict[str, float]:
        """Return the features of a transaction that is not taken yet."""
        found: dict[str, float] = {}
        for one in self.profiles:
            found |= self._features(one, time, amount, user)
        return found

    def take(self, time: int, amount: int, user: int, id_hash: int, to_usual: float, case: int) -> None:
        self.events.append(Taken(time, amount, user, id_hash, to_usual, case, self.total))
        self.total += 1
        self.newest = time if self.newest is None else max(self.newest, time)
        if len(self.events) > _MANY and self.total % 50 == 0:
            self.events = self.kept_events()
            self.labels = self.kept_labels()

    def tell(self, id_hash: int, is_fraud: int, when: int, offset: int) -> str:
        """Take a label, and return what came of it: applied, already applied, unknown or expired."""
        mine = [event for event in self.events if event.id_hash == id_hash]
        if not mine:
            return "unknown"
        taken = mine[-1]
        assert self.newest is not None
        if taken.time <= self.newest - self.events_horizon:
            return "expired"
        if when > taken.time + round(self._label_horizon_days * DAY):
            return "expired"
        if any((one.taken.id_hash, one.when, one.offset) == (id_hash, when, offset) for one in self.labels):
            return "already applied"
        self.labels.append(Learnt(taken, is_fraud, when, offset))
        return "applied"

    def kept_events(self) -> list[Taken]:
        if self.newest is None:
            return []
        return [event for event in self.events if event.time > self.newest - self.events_horizon]

    def kept_labels(self) -> list[Learnt]:
        if self.newest is None:
            return []
        gone = self.newest - self.labels_horizon
        return [label for label in self.labels if max(label.when, label.taken.time) > gone]

    @property
    def _label_horizon_days(self) -> float:
        return max((one.label_horizon_days for one in self.profiles if one.label_windows_days), default=0.0)

    def _features(self, profile: EntityProfile, time: int, amount: int, user: int) -> dict[str, float]:
        nan, name = math.nan, profile.entity
        found: dict[str, float] = {}
        usual = nan
        if profile.usual_days is not None:
            before = [event.amount for event in self._between(time, profile.usual_days)]
            usual = float(median(before)) if before else nan
        for days in profile.windows_days:
            others = self._between(time, days)
            amounts = [event.amount for event in others]
            middle = float(median(amounts)) if amounts else nan
            values = {
                "count": len(others) + 1,
                "amount_sum": (sum(amounts) + amount) / 100,
                "amount_mean": (sum(amounts) + amount) / 100 / (len(others) + 1),
                "amount_max": max([*amounts, amount]) / 100,
                "user_distinct": len({user, *(event.user for event in others)}),
                "amount_to_mean": amount / (sum(amounts) / len(amounts)) if sum(amounts) > 0 else nan,
                "amount_median": middle / 100,
                "amount_to_median": amount / middle if middle > 0 else nan,
                "max_to_usual": max(amounts) / usual if usual > 0 and amounts else nan,
                "large_count": sum(value > profile.large_factor * usual for value in amounts)
                if usual > 0
                else nan,
            }
            found |= {f"{name}_{what}_{days:g}d": float(values[what]) for what in profile.aggregates}
        if profile.label_windows_days:
            found |= self._label_features(profile, time)
        if profile.usual_days is not None:
            found[f"{name}_amount_to_usual"] = amount / usual if usual > 0 else nan
        return found

    def _between(self, time: int, days: float) -> list[Taken]:
        return [event for event in self.events if time - round(days * DAY) < event.time <= time]

    def _known(self, delay: int, time: int) -> list[_Known]:
        """Return the last label known by then of each transaction, in the order of becoming known."""
        valid: dict[int, Learnt] = {}
        for label in sorted(self.labels, key=lambda one: (one.when, one.offset)):
            if max(label.taken.time + delay, label.when) <= time:
                valid[label.taken.id_hash] = label
        known = [_Known(max(one.taken.time + delay, one.when), one) for one in valid.values()]
        return sorted(known, key=lambda one: (one.known, one.label.taken.number))

    def _label_features(self, profile: EntityProfile, time: int) -> dict[str, float]:
        nan, name = math.nan, profile.entity
        known = self._known(round(profile.label_delay_days * DAY), time)
        found: dict[str, float] = {}
        for days in profile.label_windows_days:
            seen = [one.label for one in known if one.known > time - round(days * DAY)]
            frauds = [label for label in seen if label.is_fraud]
            unusual = [
                label.taken.to_usual for label in frauds if label.taken.to_usual == label.taken.to_usual
            ]
            values = {
                "fraud_count": len(frauds),
                "label_count": len(seen),
                "fraud_share": len(frauds) / len(seen) if seen else nan,
                "fraud_to_usual_min": min(unusual, default=nan),
            }
            found |= {f"{name}_{what}_{days:g}d": float(values[what]) for what in profile.label_aggregates}
        longest = time - round(max(profile.label_windows_days) * DAY)
        frauds_known = [one for one in known if one.label.is_fraud and one.known > longest]
        values = dict.fromkeys(
            ("days_since_first_fraud", "days_since_last_fraud", "legitimate_since_fraud", "fraud_amount_min"),
            nan,
        )
        if frauds_known:
            times = [one.label.taken.time for one in frauds_known]
            values = {
                "days_since_first_fraud": (time - min([*times, time])) / DAY,
                "days_since_last_fraud": (time - max(times)) / DAY,
                "legitimate_since_fraud": len(known) - 1 - known.index(frauds_known[-1]),
                "fraud_amount_min": min(one.label.taken.amount for one in frauds_known) / 100,
            }
        return found | {f"{name}_{what}": float(values[what]) for what in profile.label_recency}
