"""The entity join of a score on request: the same profiles, without a trace in any log.

Requests and readers are those of :mod:`.topology`'s stages, but logs are read from the store each time, and
nothing is added to them, cached or counted. An entity's features stay unknown in the same cases: if its log
cannot be used, and if the transaction is late for it. No I/O.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from stream.errors import InvalidRecordError
from stream.features.profiles.cache import EntityLogs
from stream.pipeline.entity_join.messages import EntityRequest, decode_requests
from stream.pipeline.entity_join.plan import USER_WIDTH, JoinPlan, entities_of
from stream.state.format import entity_prefix
from stream.state.hashing import hash_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from stream.events.decode import TransactionRow
    from stream.features.spec import FeatureSpec
    from stream.jit import Floats
    from stream.state.store import StateReader

__all__ = ["ProfilePreview"]


class ProfilePreview:
    """Makes the requests of transactions, and responds to those whose logs a reader has."""

    def __init__(self, spec: FeatureSpec, lateness_ms: int) -> None:
        self.spec_hash = spec.hash
        self._plan = JoinPlan(spec, lateness_ms)
        # Nothing is ever given to these to keep.
        self._users = EntityLogs(0, USER_WIDTH)
        self._entities = EntityLogs(0)

    def requests(self, row: TransactionRow, pending_id: int) -> list[EntityRequest]:
        """Return a transaction's requests to its entities, under the name ``pending_id``."""
        names = entities_of(row)
        about = (row.event_time, row.amount_minor, row.minor_units, names["user"])
        return [
            EntityRequest(code, name, pending_id, 0, *about, 0, math.nan)
            for code, name in self._plan.named(names).items()
        ]

    def read_profile(self, requests: Sequence[EntityRequest], reader: StateReader) -> list[Floats]:
        """Return the features of each request, from the partition that has all of their entities."""
        prefixes = [entity_prefix(request.entity, request.name) for request in requests]
        logs = self._entities.of(0, dict.fromkeys(prefixes), reader)
        found = []
        for prefix, request in zip(prefixes, requests, strict=True):
            log = logs[prefix]
            features = self._plan.unknown(request.entity)
            if log.error is None and not self._plan.is_late(log, request):
                self._plan.read_profile(log, request, features)
            found.append(features)
        return found

    def profile_responses(
        self, rows: Sequence[TransactionRow], reader: StateReader
    ) -> list[dict[int, Floats]]:
        """Return all entities' features of each transaction, by the entity's code, if one reader has all."""
        requests = [request for index, row in enumerate(rows) for request in self.requests(row, index)]
        found: list[dict[int, Floats]] = [{} for _ in rows]
        for request, features in zip(requests, self.read_profile(requests, reader), strict=True):
            found[request.pending_id][request.entity] = features
        return found

    def fill(
        self,
        rows: Sequence[TransactionRow],
        chosen: Iterable[int],
        profile_responses: Sequence[Mapping[int, Floats]],
        reader: StateReader,
        matrix: Floats,
    ) -> None:
        """Write profiles into vectors.

        Parameters
        ----------
        chosen
            Indexes of the transactions that the stream would send requests about; other rows stay unchanged.
        profile_responses
            For each transaction, the entities' features by the entity's code, see :meth:`read_profile`.
        reader
            Reads the users' partition, for the users' own logs.
        matrix : float64[rows, features]
            Receives the profiles.
        """
        stages, wanted = self._plan, list(chosen)
        if stages.local:
            users = {index: rows[index].user_id.encode() for index in wanted}
            logs = self._users.of(0, dict.fromkeys(users.values()), reader)
            for index, user in users.items():
                if logs[user].error is None:
                    row = rows[index]
                    stages.read_own_profiles(logs[user], row, hash_id(row.user_id), matrix[index])
        for index in wanted:
            for code, features in profile_responses[index].items():
                stages.put(code, features, matrix[index])

    def decode(self, value: bytes) -> list[EntityRequest]:
        """Return the concatenated requests that another worker sends.

        Raises
        ------
        InvalidRecordError
            The bytes are no requests, or the model has no profile of such an entity.
        """
        requests = decode_requests(value)
        for request in requests:
            if request.entity not in self._plan.requested:
                raise InvalidRecordError("entity", f"{request.entity} has no profile in this model")
            if request.minor_units <= 0:
                raise InvalidRecordError("minor_units", "must be above 0")
        return requests

    def split(self, requests: Sequence[EntityRequest], value: bytes) -> list[Floats]:
        """Return the features of each request from the concatenated bytes of all.

        Raises
        ------
        ValueError
            The bytes are too few or too many.
        """
        ends = np.cumsum([len(self._plan.unknown(request.entity)) for request in requests])
        if len(value) != 8 * ends[-1]:
            msg = f"{len(value)} bytes are not {ends[-1]} features"
            raise ValueError(msg)
        return np.split(np.frombuffer(value, np.float64), ends[:-1])
