"""Which profile of a model is made in which stage, and how far each stage's logs reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from stream.features.entities import EntityProfile
from stream.features.entity_event import Looker
from stream.features.entity_log import Horizon
from stream.hop import CODES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stream.features.spec import FeatureSpec

__all__ = ["ProfileColumns", "Stages"]

_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class ProfileColumns:
    """What looks for a profile, and its columns in the model's vector."""

    looker: Looker
    columns: slice


class Stages:
    """What of a spec belongs to which stage.

    Attributes
    ----------
    local:
        Profiles of the user that its own log holds; those with labels are asked for like any entity's.
    asked:
        Profiles by the entity's code, in the order of their columns.
    labelled:
        Entities that labels are told to.
    usual_column, usual:
        Where a transaction's amount to its user's usual one comes from, where an entity wants it: a column of
        the vector, or a look of its own because the user's profile is made elsewhere.
    horizons, label_horizon_ms:
        By the entity's code, how far a log reaches, and how long after its transaction a label counts.
    user_horizon, keeps_users:
        The same of users' logs, and whether there are any beside their histories.
    """

    def __init__(self, spec: FeatureSpec, lateness_ms: int) -> None:
        self.local: list[ProfileColumns] = []
        self.asked: dict[int, list[ProfileColumns]] = {}
        self.labelled: set[str] = set()
        self.usual_column: int | None = None
        self.usual: Looker | None = None
        self.label_horizon_ms: dict[int, int] = {}
        self._lateness = lateness_ms
        needs_usual = any("fraud_to_usual_min" in one.label_aggregates for one in spec.entities)
        for place, profile in enumerate(spec.entities):
            one = ProfileColumns(Looker(profile, lateness_ms), spec.entity_columns(place))
            labelled = bool(profile.label_windows_days)
            code = CODES[profile.entity]
            if profile.entity == "user" and not labelled:
                self.local.append(one)
            else:
                self.asked.setdefault(code, []).append(one)
            if labelled:
                self.labelled.add(profile.entity)
                # Profiles of one entity agree on it.
                self.label_horizon_ms[code] = round(profile.label_horizon_days * _DAY_MS)
            if profile.entity == "user" and profile.usual_days is not None and needs_usual:
                if labelled:
                    self.usual = Looker(EntityProfile("user", usual_days=profile.usual_days), lateness_ms)
                else:
                    self.usual_column = one.columns.stop - 1
        self.horizons = {
            code: self._horizon([one.looker.profile for one in profiles])
            for code, profiles in self.asked.items()
        }
        own = [one.looker.profile for one in self.local]
        if self.usual is not None:
            own.append(self.usual.profile)
        # For labels a user's log reaches as far as any of the entities' that they are told to.
        waits_ms = max(self.label_horizon_ms.values(), default=0) + lateness_ms
        self.user_horizon = Horizon(max(self._horizon(own).events_ms, waits_ms), 0)
        self.keeps_users = bool(own) or bool(self.labelled)

    def _horizon(self, profiles: Sequence[EntityProfile]) -> Horizon:
        events = labels = 0.0
        for one in profiles:
            events = max(events, *one.windows_days, one.usual_days or 0.0, 0.0)
            if one.label_windows_days:
                events = max(events, one.label_horizon_days)
                labels = max(labels, max(one.label_windows_days) + one.label_horizon_days)
        return Horizon(round(events * _DAY_MS) + self._lateness, round(labels * _DAY_MS) + self._lateness)
