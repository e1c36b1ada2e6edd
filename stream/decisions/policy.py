"""The policy: from a score to a level, a prediction and an alert."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

import orjson

from stream.events.models import RiskLevel

if TYPE_CHECKING:
    from stream.scoring.bundle import Thresholds

__all__ = ["Policy", "Verdict", "alert_id"]


_RANK: Final = {RiskLevel.LOW: 0, RiskLevel.MEDIUM: 1, RiskLevel.HIGH: 2}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The meaning of a score. ``score`` has four decimals, and everything else follows from these.

    Attributes
    ----------
    members:
        Score, level and prediction as members of a JSON object.
    """

    score: float
    level: RiskLevel
    prediction: int
    alert: bool
    members: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        members = {
            "risk_score": self.score,
            "risk_level": self.level.value,
            "prediction": self.prediction,
        }
        object.__setattr__(self, "members", orjson.dumps(members)[1:-1])


@dataclass(frozen=True, slots=True)
class Policy:
    """Thresholds, and the lowest level that raises an alert; a predicted fraud always raises an alert.

    Examples
    --------
    >>> from stream.scoring.bundle import Thresholds
    >>> policy = Policy(Thresholds(high=0.8, medium=0.5, prediction=0.7))
    >>> verdict = policy.judge(0.75)
    >>> verdict.level.value, verdict.prediction, verdict.alert
    ('MEDIUM', 1, True)
    """

    thresholds: Thresholds
    alert_level: RiskLevel = RiskLevel.MEDIUM
    #: By rounded score, of which there are ten thousand.
    _known: dict[float, Verdict] = field(default_factory=dict, repr=False, compare=False)

    def judge(self, score: float) -> Verdict:
        """Return the verdict on an unrounded score."""
        rounded = round(score, 4)
        verdict = self._known.get(rounded)
        if verdict is None:
            verdict = self._known[rounded] = self._judge(rounded)
        return verdict

    def _judge(self, rounded: float) -> Verdict:
        limits = self.thresholds
        if rounded > limits.high:
            level = RiskLevel.HIGH
        elif rounded > limits.medium:
            level = RiskLevel.MEDIUM
        else:
            level = RiskLevel.LOW
        prediction = int(rounded >= limits.prediction)
        return Verdict(rounded, level, prediction, prediction == 1 or _RANK[level] >= _RANK[self.alert_level])


def alert_id(user_id: str, transaction_id: str) -> str:
    """Return the id of a transaction's alert: 32 hex digits, the same at every delivery."""
    text = f"{len(user_id)}:{user_id}{transaction_id}"
    return blake2b(text.encode(), digest_size=16).hexdigest()
