"""What entities' logs say of a transaction that did not come, leaving no trace of it.

The same questions and the same looks as between the stages of :mod:`stream.pipeline.entity_join.topology`;
but logs are read anew
each time, and nothing is taken into them, kept or counted. Where the stream leaves an entity's features
unknown, so does this: where its log cannot be used, and where the transaction is late for it. No I/O.
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
    """Asks entities about transactions, and answers for those whose logs somebody has."""

    def __init__(self, spec: FeatureSpec, lateness_ms: int) -> None:
        self.spec_hash = spec.hash
        self._stages = JoinPlan(spec, lateness_ms)
        # Nothing is ever given to these to keep.
        self._users = EntityLogs(0, USER_WIDTH)
        self._entities = EntityLogs(0)

    def questions(self, row: TransactionRow, pending_id: int) -> list[EntityRequest]:
        """Return what entities have to be asked about a transaction, whose name is ``pending_id``."""
        names = entities_of(row)
        about = (row.event_time, row.amount_minor, row.minor_units, names["user"])
        return [
            EntityRequest(code, name, pending_id, 0, *about, 0, math.nan)
            for code, name in self._stages.named(names).items()
        ]

    def read_profile(self, questions: Sequence[EntityRequest], reader: StateReader) -> list[Floats]:
        """Return the features of each question, from the partition that has all of their entities."""
        prefixes = [entity_prefix(question.entity, question.name) for question in questions]
        logs = self._entities.of(0, dict.fromkeys(prefixes), reader)
        found = []
        for prefix, question in zip(prefixes, questions, strict=True):
            log = logs[prefix]
            features = self._stages.unknown(question.entity)
            if log.error is None and not self._stages.is_late(log, question):
                self._stages.read_profile(log, question, features)
            found.append(features)
        return found

    def answers(self, rows: Sequence[TransactionRow], reader: StateReader) -> list[dict[int, Floats]]:
        """Return all entities' features of each transaction, by the entity's code, where one has them all."""
        questions = [question for index, row in enumerate(rows) for question in self.questions(row, index)]
        found: list[dict[int, Floats]] = [{} for _ in rows]
        for question, features in zip(questions, self.read_profile(questions, reader), strict=True):
            found[question.pending_id][question.entity] = features
        return found

    def fill(
        self,
        rows: Sequence[TransactionRow],
        chosen: Iterable[int],
        answers: Sequence[Mapping[int, Floats]],
        reader: StateReader,
        matrix: Floats,
    ) -> None:
        """Write profiles into vectors.

        Parameters
        ----------
        chosen
            Places of the transactions that the stream would ask about; those of others stay as they are.
        answers
            For each transaction, what :meth:`read_profile` found by the entity's code.
        reader
            Of the users' partition: their own logs are read here.
        matrix : float64[rows, features]
            Is written to.
        """
        stages, wanted = self._stages, list(chosen)
        if stages.local:
            users = {index: rows[index].user_id.encode() for index in wanted}
            logs = self._users.of(0, dict.fromkeys(users.values()), reader)
            for index, user in users.items():
                if logs[user].error is None:
                    row = rows[index]
                    stages.read_own_profiles(logs[user], row, hash_id(row.user_id), matrix[index])
        for index in wanted:
            for code, features in answers[index].items():
                stages.put(code, features, matrix[index])

    def decode(self, value: bytes) -> list[EntityRequest]:
        """Return the questions that another worker sends, one behind the other.

        Raises
        ------
        InvalidRecordError
            They are none, or about entities that the model has no profile of.
        """
        questions = decode_requests(value)
        for question in questions:
            if question.entity not in self._stages.requested:
                raise InvalidRecordError("entity", f"{question.entity} is none that is asked")
            if question.minor_units <= 0:
                raise InvalidRecordError("minor_units", "must be above 0")
        return questions

    def split(self, questions: Sequence[EntityRequest], value: bytes) -> list[Floats]:
        """Return the features of each question from the bytes of all, one behind the other.

        Raises
        ------
        ValueError
            There are more or fewer.
        """
        ends = np.cumsum([len(self._stages.unknown(question.entity)) for question in questions])
        if len(value) != 8 * ends[-1]:
            msg = f"{len(value)} bytes are not {ends[-1]} features"
            raise ValueError(msg)
        return np.split(np.frombuffer(value, np.float64), ends[:-1])
