"""The join plan: the stage that computes each profile, and the horizon and the readers of its logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from stream.events.fields import MS_PER_DAY
from stream.features.profiles.log import Horizon
from stream.features.profiles.online import E_IDENT, ProfileReader
from stream.features.profiles.spec import ENTITIES, EntityProfile
from stream.pipeline.entity_join.messages import CODES
from stream.state.hashing import hash_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stream.events.decode import TransactionRow
    from stream.features.profiles.log import EntityLog
    from stream.features.spec import FeatureSpec
    from stream.jit import Floats
    from stream.pipeline.entity_join.messages import EntityRequest

__all__ = ["ROUTES", "USER_WIDTH", "JoinPlan", "ProfileColumns", "entities_of"]


#: A user's log keeps of each transaction its time, amount, user and id hash, and then the id hashes of these
#: entities, 0 for an unknown one: a label of the transaction is forwarded to them.
ROUTES: Final = ("merchant", "card", "device", "ip")

USER_WIDTH: Final = E_IDENT + 1 + len(ROUTES)


def entities_of(row: TransactionRow) -> dict[str, int]:
    """Return the id hash of each entity that a transaction names, 0 for an entity that it does not name."""
    return {
        entity: 0 if (name := getattr(row, field)) is None else hash_id(name)
        for entity, field in ENTITIES.items()
    }


@dataclass(frozen=True, slots=True)
class ProfileColumns:
    """The reader of a profile, and the position of its features.

    Attributes
    ----------
    columns:
        Position in the model's vector.
    part:
        Position in the entity's response.
    """

    reader: ProfileReader
    columns: slice
    part: slice


class JoinPlan:
    """The parts of a feature spec that each stage computes.

    Attributes
    ----------
    refund_types:
        Types of transactions that no profile sees.
    local:
        User profiles that the user's own log answers; a user profile of labels is requested like any
        entity's.
    requested:
        Profiles by the entity's code, in the order of their columns.
    labelled:
        Entities that receive label updates.
    usual_column, usual:
        Source of a transaction's amount relative to its user's usual amount, if an entity's profile needs it:
        a column of the vector, or a reader of its own because another stage computes the user's profile.
    horizons, label_horizon_ms:
        By the entity's code, the horizon of its log, and how long after its transaction a label counts.
    user_horizon, keeps_users:
        Horizon of users' logs, and whether users have logs beside their histories.
    """

    def __init__(self, spec: FeatureSpec, lateness_ms: int) -> None:
        self.refund_types = frozenset(spec.refund_types)
        self.local: list[ProfileColumns] = []
        self.requested: dict[int, list[ProfileColumns]] = {}
        self.labelled: set[str] = set()
        self.usual_column: int | None = None
        self.usual: ProfileReader | None = None
        self.label_horizon_ms: dict[int, int] = {}
        self._lateness = lateness_ms
        needs_usual = any("fraud_to_usual_min" in column.label_aggregates for column in spec.entities)
        for index, profile in enumerate(spec.entities):
            reader, columns = ProfileReader(profile, lateness_ms), spec.entity_columns(index)
            labelled = bool(profile.label_windows_days)
            code = CODES[profile.entity]
            before = self._size(code)
            column = ProfileColumns(reader, columns, slice(before, before + reader.size))
            if profile.entity == "user" and not labelled:
                self.local.append(column)
            else:
                self.requested.setdefault(code, []).append(column)
            if labelled:
                self.labelled.add(profile.entity)
                # Profiles of one entity agree on it.
                self.label_horizon_ms[code] = round(profile.label_horizon_days * MS_PER_DAY)
            if profile.entity == "user" and profile.usual_days is not None and needs_usual:
                if labelled:
                    self.usual = ProfileReader(
                        EntityProfile("user", usual_days=profile.usual_days), lateness_ms
                    )
                else:
                    self.usual_column = column.columns.stop - 1
        self.horizons = {
            code: self._horizon([column.reader.profile for column in profiles])
            for code, profiles in self.requested.items()
        }
        own = [column.reader.profile for column in self.local]
        if self.usual is not None:
            own.append(self.usual.profile)
        # For labels a user's log reaches as far as any of the entities' that receive its labels.
        waits_ms = max(self.label_horizon_ms.values(), default=0) + lateness_ms
        self.user_horizon = Horizon(max(self._horizon(own).events_ms, waits_ms), 0)
        self.keeps_users = bool(own) or bool(self.labelled)

    def horizon_ms(self, entity: str) -> int:
        """Return how far a feature may reach behind the newest content of a log of this kind of entity."""
        found = [horizon for code, horizon in self.horizons.items() if code == CODES[entity]]
        if entity == "user":
            found.append(self.user_horizon)
        return max((max(horizon.events_ms, horizon.labels_ms) for horizon in found), default=0)

    def named(self, names: Mapping[str, int]) -> dict[int, int]:
        """Return the id hashes, by code, of the entities of :func:`entities_of` that have a profile."""
        return {
            CODES[entity]: name for entity, name in names.items() if name and CODES[entity] in self.requested
        }

    def unknown(self, code: int) -> Floats:
        """Return the features of an entity of which nothing is known: NaN, float64[features]."""
        return np.full(self._size(code), np.nan)

    def _size(self, code: int) -> int:
        profiles = self.requested.get(code)
        return profiles[-1].part.stop if profiles else 0

    def is_late(self, log: EntityLog, request: EntityRequest) -> bool:
        """Whether a transaction has no features of an entity because it lies too far behind its newest."""
        return request.time_ms < log.newest - self._lateness

    def read_profile(self, log: EntityLog, request: EntityRequest, features: Floats) -> None:
        """Write an entity's features of a transaction that is not in its log yet."""
        about = (request.time_ms, request.amount_minor, request.minor_units, request.user)
        for column in self.requested[request.entity]:
            log.read_profile(column.reader, *about, features[column.part])

    def read_own_profiles(self, log: EntityLog, row: TransactionRow, user: int, vector: Floats) -> None:
        """Write the profiles that the user's own log holds into a transaction's vector."""
        for column in self.local:
            log.read_profile(
                column.reader, row.event_time, row.amount_minor, row.minor_units, user, vector[column.columns]
            )

    def put(self, code: int, features: Floats, vector: Floats) -> None:
        """Write an entity's features into a transaction's vector."""
        for column in self.requested.get(code, ()):
            vector[column.columns] = features[column.part]

    def _horizon(self, profiles: Sequence[EntityProfile]) -> Horizon:
        events = labels = 0.0
        for column in profiles:
            events = max(events, *column.windows_days, column.usual_days or 0.0, 0.0)
            if column.label_windows_days:
                events = max(events, column.label_horizon_days)
                labels = max(labels, max(column.label_windows_days) + column.label_horizon_days)
        return Horizon(
            round(events * MS_PER_DAY) + self._lateness, round(labels * MS_PER_DAY) + self._lateness
        )
