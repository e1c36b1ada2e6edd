"""effects."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from stream.events.decode import MAX_RECORD_BYTES, Row
from stream.events.models import Outcome, RiskLevel
from stream.events.records import Message, Record
from stream.pipeline.encode import dead_letter

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from stream.decisions.sentences import Language
    from stream.errors import RiskStreamError, StateError
    from stream.pipeline.counters import HopEvent


#: Records by topic and partition.
Sends = dict[tuple[str, int], list[Message]]

_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one source partition, in offset order.

    Attributes
    ----------
    source:
        Names the incarnation of topic and partition that the offsets belong to.
    """

    topic: str
    partition: int
    source: int
    records: Sequence[Record]


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """What the pipeline may be told.

    Attributes
    ----------
    max_future_ms:
        How far an event time may lie ahead of the processing time.
    language:
        Of the reasons' sentences: ``en`` or ``zh``.
    decisions, decision_features:
        Whether to make decisions, and to put the features' values into them.
    resident_bytes:
        Memory for long histories that stay unpacked between rounds.
    """

    lateness_ms: int = 3 * 86_400_000
    max_future_ms: int = 300_000
    max_record_bytes: int = MAX_RECORD_BYTES
    alert_level: RiskLevel = RiskLevel.MEDIUM
    max_reasons: int = 5
    language: Language = "en"
    decisions: bool = True
    decision_features: bool = False
    resident_bytes: int = 128 << 20


def gather(parts: Iterable[tuple[_K, list[_V]]]) -> dict[_K, list[_V]]:
    """Return lists joined under their keys, in their order; those that were given stay as they are."""
    found: dict[_K, list[_V]] = {}
    for key, values in parts:
        if values:
            found.setdefault(key, []).extend(values)
    return found


class Alerted(NamedTuple):
    """Which transaction an alert is about: its level, and the source record's time, both times in ms."""

    level: RiskLevel
    timestamp_ms: int
    event_time_ms: int
    offset: int
    transaction_id: str


@dataclass(slots=True)
class Plan:
    """What must happen for one batch.

    Attributes
    ----------
    alerts, decisions, dead_letters:
        Records to produce.
    writes:
        State records, None to delete.
    outcomes:
        How many records had each outcome; records that a replay skipped are in ``replayed``.
    alerted:
        What the alerts are about, in their order.
    rejected:
        The offending field and the source offset of each dead letter, in their order.
    scores, features:
        Of every scored transaction (float64[n] and float64[n, k]).
    sends, asks:
        Records for other stages of a model with profiles, by topic and partition; those of ``asks`` may be
        sent only once all others are acknowledged.
    hold:
        Where the batch's partition has to be taken up again after a restart; None: behind the batch.
    hop:
        How often what happened between the stages.
    """

    alerts: list[Message] = field(default_factory=list)
    decisions: list[Message] = field(default_factory=list)
    dead_letters: list[Message] = field(default_factory=list)
    writes: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    outcomes: dict[Outcome, int] = field(default_factory=dict)
    alerted: list[Alerted] = field(default_factory=list)
    scores: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    features: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    replayed: int = 0
    unknown_fields: int = 0
    other_source: int = 0
    rejected: list[tuple[str, int]] = field(default_factory=list)
    sends: Sends = field(default_factory=dict)
    asks: Sends = field(default_factory=dict)
    hold: int | None = None
    hop: Counter[HopEvent] = field(default_factory=Counter)


class Decoded(NamedTuple):
    """A record and the valid transaction in it."""

    record: Record
    row: Row


@dataclass(slots=True)
class Part:
    """One partition's batch on its way: its valid transactions, and their rows in the common matrix."""

    batch: Batch
    decoded: list[Decoded]
    plan: Plan
    now_ms: int
    rows: slice = field(default_factory=lambda: slice(0, 0))
    outcome: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    errors: dict[str, StateError] = field(default_factory=dict)


def refuse(
    plan: Plan,
    batch: Batch,
    record: Record,
    error: RiskStreamError,
    field_and_reason: tuple[str, str],
    now_ms: int,
) -> None:
    """Send a record to the dead letters."""
    field_name, reason = field_and_reason
    plan.rejected.append((field_name, record.offset))
    plan.dead_letters.append(
        dead_letter(batch.topic, batch.partition, record, error, field_name, reason, now_ms)
    )
