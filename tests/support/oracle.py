"""The windows' semantics once more, in plain Python and without the product's code: slow and obvious."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

DAY = 86_400_000
WINDOWS = {"1h": 3_600_000, "24h": DAY, "7d": 7 * DAY, "30d": 30 * DAY}


@dataclass(frozen=True)
class Event:
    transaction_id: str
    time: int
    amount: int
    merchant: str | None = None
    units: int = 100


@dataclass
class User:
    """One user's events already applied, in arrival order, all of them for ever.

    ``ttl`` is the time without an event after which the user's history begins anew, 0 for never. The first
    ``dropped`` events are no longer kept, although windows would reach them.
    """

    lateness: int = 3 * DAY
    applied: list[Event] = field(default_factory=list)
    ttl: int = 0
    dropped: int = 0

    def take(self, event: Event) -> tuple[str, dict[str, float] | None]:
        horizon = 30 * DAY + self.lateness
        newest = max((e.time for e in self.applied), default=None)
        if newest is not None and any(
            e.transaction_id == event.transaction_id and e.time > newest - horizon for e in self.applied
        ):
            return "duplicate", None
        if newest is not None and self.ttl and event.time - newest > self.ttl:
            self.applied.clear()
            newest = None
        outcome = "late" if newest is not None and event.time < newest - self.lateness else "scored"
        features = self._features(event, horizon)
        self.applied.append(event)
        return outcome, features

    def _features(self, event: Event, horizon: int) -> dict[str, float]:
        nan = math.nan
        t, units = event.time, event.units
        newest = max([e.time for e in self.applied] + [t])
        gone = newest - horizon
        kept = [e for e in self.applied[self.dropped :] if e.time > gone]
        out: dict[str, float] = {}
        for name, width in WINDOWS.items():
            before = [e for e in kept if t - width < e.time <= t]
            inside = [*before, event]
            amounts = [e.amount for e in inside]
            out[f"transaction_count_{name}"] = float(len(inside))
            out[f"amount_sum_{name}"] = float(sum(amounts)) / units
            out[f"amount_mean_{name}"] = float(sum(amounts)) / len(inside) / units
            out[f"amount_max_{name}"] = float(max(amounts)) / units
            out[f"amount_std_{name}"] = _std(amounts) / units
            out[f"merchant_distinct_{name}"] = float(len({e.merchant for e in inside} - {None}))
        earlier = [e.time for e in kept if e.time <= t]
        lost = [e.time for e in self.applied if e.time <= gone]
        if earlier:
            previous = max(earlier)
        elif lost and max(lost) <= t:
            previous = max(lost)
        else:
            previous = None
        since = nan if previous is None else float(t - previous)
        out["seconds_since_previous"] = since / 1000.0
        for name in ("7d", "30d"):
            amounts = [e.amount for e in kept if t - WINDOWS[name] < e.time <= t]
            mean = float(sum(amounts)) / len(amounts) if amounts else 0.0
            out[f"amount_to_mean_{name}"] = event.amount / mean if mean > 0 else nan
        std = _std(amounts)
        out["amount_zscore_30d"] = (event.amount - mean) / std if std > 0 else nan
        life = [e.amount for e in self.applied] + [event.amount]
        mean, std = float(sum(life)) / len(life), _std(life)
        out["lifetime_count"] = float(len(life))
        out["lifetime_amount_mean"] = mean / units
        out["lifetime_amount_std"] = std / units
        out["lifetime_amount_max"] = float(max(life)) / units
        out["lifetime_amount_cv"] = std / mean if mean > 0 else nan
        out["days_since_first"] = float(t - min([e.time for e in self.applied] + [t])) / DAY
        out["days_since_last"] = since / DAY
        return out


def _std(amounts: list[int]) -> float:
    n = len(amounts)
    if n < 2:
        return math.nan
    numerator = n * sum(a * a for a in amounts) - sum(amounts) ** 2
    return math.sqrt(float(numerator) / float(n * (n - 1)))


def same(left: float, right: float) -> bool:
    """Equal to the bit, with not-a-number equal to itself."""
    return left == right or (math.isnan(left) and math.isnan(right))
