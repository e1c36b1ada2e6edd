"""Which profile of a model is made in which stage, how far that stage's logs reach, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from stream.features.profiles.log import Horizon
from stream.features.profiles.online import E_IDENT, Looker
from stream.features.profiles.spec import ENTITIES, EntityProfile
from stream.pipeline.entity_join.messages import CODES
from stream.state.hashing import identity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stream.events.decode import Row
    from stream.features.profiles.log import EntityLog
    from stream.features.spec import FeatureSpec
    from stream.jit import Floats
    from stream.pipeline.entity_join.messages import Question


_DAY_MS: Final = 86_400_000

#: A user's log keeps of each transaction its time, amount, user and identity, and then the identities of
#: these, 0 where unknown: they say whom its label concerns.
ROUTES: Final = ("merchant", "card", "device", "ip")

USER_WIDTH: Final = E_IDENT + 1 + len(ROUTES)


def entities_of(row: Row) -> dict[str, int]:
    """Return the identity of each entity that a transaction names, 0 of those that it does not."""
    return {
        entity: 0 if (name := getattr(row, field)) is None else identity(name)
        for entity, field in ENTITIES.items()
    }


@dataclass(frozen=True, slots=True)
class ProfileColumns:
    """What looks for a profile, and where its features are.

    Attributes
    ----------
    columns:
        In the model's vector.
    part:
        In what its entity answers.
    """

    looker: Looker
    columns: slice
    part: slice


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
            looker, columns = Looker(profile, lateness_ms), spec.entity_columns(place)
            labelled = bool(profile.label_windows_days)
            code = CODES[profile.entity]
            before = self._size(code)
            one = ProfileColumns(looker, columns, slice(before, before + looker.size))
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

    def named(self, names: Mapping[str, int]) -> dict[int, int]:
        """Return those to be asked of the entities that :func:`entities_of` found: identities by code."""
        return {CODES[entity]: name for entity, name in names.items() if name and CODES[entity] in self.asked}

    def unknown(self, code: int) -> Floats:
        """Return an entity's features where nothing can be said: NaN, float64[features]."""
        return np.full(self._size(code), np.nan)

    def _size(self, code: int) -> int:
        profiles = self.asked.get(code)
        return profiles[-1].part.stop if profiles else 0

    def is_late(self, log: EntityLog, asked: Question) -> bool:
        """Whether a transaction has no features of an entity because it lies too far behind its newest."""
        return asked.time_ms < log.newest - self._lateness

    def look(self, log: EntityLog, asked: Question, features: Floats) -> None:
        """Write an entity's features of a transaction that is not in its log yet."""
        about = (asked.time_ms, asked.amount_minor, asked.minor_units, asked.user)
        for one in self.asked[asked.entity]:
            log.look(one.looker, *about, features[one.part])

    def look_at_own(self, log: EntityLog, row: Row, user: int, vector: Floats) -> None:
        """Write the profiles that the user's own log holds into a transaction's vector."""
        for one in self.local:
            log.look(one.looker, row.event_time, row.amount_minor, row.minor_units, user, vector[one.columns])

    def put(self, code: int, features: Floats, vector: Floats) -> None:
        """Write an entity's features into a transaction's vector."""
        for one in self.asked.get(code, ()):
            vector[one.columns] = features[one.part]

    def _horizon(self, profiles: Sequence[EntityProfile]) -> Horizon:
        events = labels = 0.0
        for one in profiles:
            events = max(events, *one.windows_days, one.usual_days or 0.0, 0.0)
            if one.label_windows_days:
                events = max(events, one.label_horizon_days)
                labels = max(labels, max(one.label_windows_days) + one.label_horizon_days)
        return Horizon(round(events * _DAY_MS) + self._lateness, round(labels * _DAY_MS) + self._lateness)
