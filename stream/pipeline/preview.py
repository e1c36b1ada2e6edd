"""Scores on request: the score of a transaction as if it were consumed now, without any effect.

Histories, vectors, trees, thresholds and sentences are the stream's, but no history changes, nothing is
stored, and the transactions of a request do not see one another. With entity profiles, requests to entities
come first, see :mod:`stream.pipeline.entity_join.preview`. No I/O, no clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stream.decisions.policy import Policy
from stream.decisions.reasons import Explainer
from stream.events.card_numbers import CardNumbers
from stream.events.decode import TransactionRow, row_of_object
from stream.features.refunds import history_key, history_name, is_refund
from stream.features.vector import VectorBuilder
from stream.features.windows.arrays import LATE, SCORED
from stream.features.windows.events import FAILED, HistoryConfig, HistoryEvents
from stream.features.windows.history import advance
from stream.pipeline.columns import columns_of
from stream.pipeline.effects import OUTCOMES
from stream.pipeline.entity_join.preview import ProfilePreview
from stream.pipeline.times import DEFAULT_LIMITS, EventTimeLimits
from stream.scoring.predictor import Predictor
from stream.state.hashing import hash_ids

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stream.decisions.sentences import Language
    from stream.features.windows.events import HistoryResult
    from stream.jit import Floats
    from stream.scoring.bundle import Bundle
    from stream.state.store import StateReader

__all__ = ["Preview"]


#: Behind every offset that a history can hold, so that nothing is taken for a replay.
_NEVER_APPLIED: Final = 2**62


class Preview:
    """Scores transactions against histories that the stream maintains.

    Attributes
    ----------
    profiles:
        Makes and answers the requests to entities; None for a model without profiles.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        lateness_ms: int,
        times: EventTimeLimits = DEFAULT_LIMITS,
        max_reasons: int,
        language: Language = "en",
        user_ttl_ms: int = 0,
        card_numbers: CardNumbers | None = None,
    ) -> None:
        self._bundle = bundle
        self.profiles = ProfilePreview(bundle.spec, lateness_ms) if bundle.spec.entities else None
        self._times = times
        self._card_numbers = card_numbers or CardNumbers()
        self._history = HistoryConfig(lateness_ms, user_ttl_ms)
        self._builder = VectorBuilder(bundle.spec)
        self._predictor = Predictor(bundle)
        self._policy = Policy(bundle.thresholds)
        self._explainer = Explainer(bundle.spec, max_reasons, language)

    def row(self, parsed: dict[str, Any], now_ms: int) -> TransactionRow:
        """Return the transaction in a parsed JSON object.

        Raises
        ------
        InvalidRecordError
            With the offending field and the reason.
        """
        row = row_of_object(parsed)
        self._times.check("event_time", row.event_time, now_ms)
        return self._card_numbers.row(row)

    def score(
        self,
        rows: Sequence[TransactionRow],
        reader: StateReader,
        profile_responses: Sequence[Mapping[int, Floats]] = (),
    ) -> list[dict[str, Any]]:
        """Return for each transaction the content of its alert, as JSON values.

        A ``duplicate`` of a transaction in the history has no score. A transaction whose history cannot be
        used has the outcome ``failed`` and an error.

        Parameters
        ----------
        reader
            Reads the partition of all the users.
        profile_responses
            For each transaction, the entities' features by the entity's code; empty without entity profiles.
        """
        if not rows:
            return []
        names = [self._history_name(row) for row in rows]
        users = {name: index for index, name in enumerate(dict.fromkeys(names))}
        matrix, result = self._vectors(rows, users, reader, profile_responses)
        scored = np.flatnonzero(result.outcome <= LATE)
        scores = dict(zip(scored.tolist(), self._predictor.scores(matrix[scored]).tolist(), strict=True))
        moved = dict(zip(scored.tolist(), self._predictor.contributions(matrix[scored]), strict=True))
        found = []
        for index, (row, code) in enumerate(zip(rows, result.outcome.tolist(), strict=True)):
            answer: dict[str, Any] = {"transaction_id": row.transaction_id, "user_id": row.user_id}
            if code == FAILED:
                answer |= {"outcome": "failed", "error": str(result.errors[users[names[index]]])}
            else:
                answer["outcome"] = OUTCOMES[code].value
            if result.truncated[index]:
                answer["truncated"] = True
            if index in scores:
                verdict = self._policy.judge(scores[index])
                answer |= {
                    "risk_score": verdict.score,
                    "risk_level": verdict.level.value,
                    "prediction": verdict.prediction,
                    "reasons": self._explainer.reasons(matrix[index], moved[index]),
                }
            found.append(answer | {"model_version": self._bundle.model_version})
        return found

    def _is_refund(self, row: TransactionRow) -> bool:
        return is_refund(row.amount_minor, row.transaction_type, self._bundle.spec.refund_types)

    def _history_name(self, row: TransactionRow) -> str:
        return history_name(row.user_id, refund=self._is_refund(row))

    def _vectors(
        self,
        rows: Sequence[TransactionRow],
        users: Mapping[str, int],
        reader: StateReader,
        profile_responses: Sequence[Mapping[int, Floats]],
    ) -> tuple[Floats, HistoryResult]:
        """Return the vectors, float64[rows, features], and the histories' results.

        ``users`` maps each history's name to its index in the result, in order.
        """
        events = HistoryEvents(
            users=list(map(history_key, users)),
            user=np.array([users[self._history_name(row)] for row in rows], np.int64),
            time_ms=np.array([row.event_time for row in rows], np.int64),
            amount_minor=np.array([abs(row.amount_minor) for row in rows], np.int64),
            merchant=hash_ids([row.merchant_id for row in rows]),
            id_hash=hash_ids([row.transaction_id for row in rows]),
            minor_units=np.array([row.minor_units for row in rows], np.int64),
            offset=np.full(len(rows), _NEVER_APPLIED, np.int64),
            source=np.zeros(len(users), np.int64),
        )
        matrix = self._builder.empty(len(rows))
        result = advance(events, self._history, reader, self._builder.history(matrix), learn=False)
        self._builder.fill(columns_of(rows, events, self._bundle.spec), matrix)
        if self.profiles is not None:
            applied = [
                index
                for index in np.flatnonzero(result.outcome == SCORED).tolist()
                if not self._is_refund(rows[index])
            ]
            self.profiles.fill(rows, applied, profile_responses, reader, matrix)
        return matrix, result
