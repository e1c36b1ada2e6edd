"""The types between the pipeline and the runtime: a batch of records, and the effects that it must have."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import numpy as np

from stream.events.card_numbers import CardNumbers
from stream.events.decode import MAX_RECORD_BYTES, TransactionRow
from stream.events.fields import MS_PER_DAY
from stream.events.models import Outcome, RiskLevel
from stream.events.records import ConsumerRecord, ProducerRecord
from stream.pipeline.encode import dead_letter
from stream.pipeline.times import DEFAULT_LIMITS, EventTimeLimits

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from stream.decisions.sentences import Language
    from stream.errors import InvalidRecordError, StateError
    from stream.events.message_mapping import MessageMapping
    from stream.pipeline.counters import JoinEvent
    from stream.settings import Partitioner

__all__ = [
    "Alerted",
    "Batch",
    "BatchEffects",
    "DecodedRecord",
    "PartitionBatch",
    "PipelineConfig",
    "Sends",
    "gather",
]


#: Records by topic and partition.
Sends = dict[tuple[str, int], list[ProducerRecord]]

#: Outcomes by their codes in the histories' results; a replayed or failed event has none.
OUTCOMES: Final = (Outcome.SCORED, Outcome.LATE, Outcome.DUPLICATE)

_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one source partition, in offset order.

    Attributes
    ----------
    source:
        Hash of the incarnation of topic and partition that the offsets belong to.
    """

    topic: str
    partition: int
    source: int
    records: Sequence[ConsumerRecord]


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """Settings of the pipeline.

    Attributes
    ----------
    source_topic:
        Name of the topic of transactions.
    times:
        The accepted event times.
    language:
        Language of the reasons' sentences: ``en`` or ``zh``.
    decisions, decision_features:
        Whether to produce decisions, and whether they contain the features' values.
    cache_bytes:
        Memory for long histories that stay unpacked between micro-batches.
    card_numbers:
        What happens to card numbers in ids.
    mapping:
        Names of the transactions' members, if they are not RiskStream's.
    user_ttl_ms:
        A user's history begins anew after this long without a transaction; 0 for never.
    partitioner, partitions:
        How producers choose the partition of a transaction, and of how many.
    """

    source_topic: str = "transactions"
    lateness_ms: int = 3 * MS_PER_DAY
    times: EventTimeLimits = DEFAULT_LIMITS
    max_record_bytes: int = MAX_RECORD_BYTES
    alert_level: RiskLevel = RiskLevel.MEDIUM
    max_reasons: int = 5
    language: Language = "en"
    decisions: bool = True
    decision_features: bool = False
    cache_bytes: int = 128 << 20
    user_ttl_ms: int = 0
    card_numbers: CardNumbers = field(default_factory=CardNumbers)
    mapping: MessageMapping | None = None
    partitioner: Partitioner = "any"
    partitions: int = 1


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
class BatchEffects:
    """The effects that one batch must have.

    Attributes
    ----------
    alerts, decisions, dead_letters:
        Records to produce.
    writes:
        State records, None to delete.
    outcomes:
        How many records had each outcome; records that a replay skipped are in ``replayed``.
    alerted:
        The transactions of the alerts, in their order.
    rejected:
        The offending field and the source offset of each dead letter, in their order.
    scores, features:
        Of every scored transaction (float64[n] and float64[n, k]).
    outputs, requests:
        Records for other stages of a model with entity profiles, by topic and partition. The runtime sends
        ``requests`` only after the broker has acknowledged everything else.
    resume_offset:
        Offset from which the partition must be consumed after a restart; None: from behind the batch.
    join_counts:
        Counts of the entity join's events.
    internal_errors:
        The unforeseen exceptions among the dead letters' causes, with their source offsets.
    misplaced:
        Valid transactions whose key belongs on another partition by the declared partitioner.
    refunds:
        Valid transactions that are refunds, which have a history of their own.
    truncated:
        Transactions whose features lack older events, which the user's history had no room for.
    card_numbers:
        Records with card numbers as ids, by what was done with them: ``refused`` or ``replaced``.
    newest_ms:
        The latest event time of the valid transactions; None without any.
    """

    alerts: list[ProducerRecord] = field(default_factory=list)
    decisions: list[ProducerRecord] = field(default_factory=list)
    dead_letters: list[ProducerRecord] = field(default_factory=list)
    writes: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    outcomes: dict[Outcome, int] = field(default_factory=dict)
    alerted: list[Alerted] = field(default_factory=list)
    scores: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    features: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    replayed: int = 0
    unknown_fields: int = 0
    other_source: int = 0
    misplaced: int = 0
    refunds: int = 0
    truncated: int = 0
    card_numbers: Counter[str] = field(default_factory=Counter)
    newest_ms: int | None = None
    rejected: list[tuple[str, int]] = field(default_factory=list)
    outputs: Sends = field(default_factory=dict)
    requests: Sends = field(default_factory=dict)
    resume_offset: int | None = None
    join_counts: Counter[JoinEvent] = field(default_factory=Counter)
    internal_errors: list[tuple[int, Exception]] = field(default_factory=list)

    def reject(
        self,
        batch: Batch,
        record: ConsumerRecord,
        error: Exception,
        field_name: str,
        reason: str,
        now_ms: int,
    ) -> None:
        """Send a record to the dead letters, with the offending field and the reason."""
        self.rejected.append((field_name, record.offset))
        self.dead_letters.append(
            dead_letter(batch.topic, batch.partition, record, error, field_name, reason, now_ms)
        )

    def reject_invalid(
        self, batch: Batch, record: ConsumerRecord, error: InvalidRecordError, now_ms: int
    ) -> None:
        """Send a record that is not valid to the dead letters."""
        self.reject(batch, record, error, error.field, error.reason, now_ms)

    def reject_internal_error(
        self, batch: Batch, record: ConsumerRecord, error: Exception, now_ms: int
    ) -> None:
        """Send a record whose processing raised an unforeseen exception to the dead letters."""
        reason = (
            f"internal error at {batch.topic} [{batch.partition}], offset {record.offset}: {error!r:.500}"
        )
        self.reject(batch, record, error, "$", reason, now_ms)
        self.internal_errors.append((record.offset, error))


class DecodedRecord(NamedTuple):
    """A record and the valid transaction in it."""

    record: ConsumerRecord
    row: TransactionRow


@dataclass(slots=True)
class PartitionBatch:
    """A partition's batch in progress: its valid transactions, and their rows in the common matrix.

    ``truncated`` has the indexes of transactions whose history had no room for all of its events.
    """

    batch: Batch
    decoded: list[DecodedRecord]
    effects: BatchEffects
    now_ms: int
    rows: slice = field(default_factory=lambda: slice(0, 0))
    outcome: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    truncated: frozenset[int] = frozenset()
    errors: dict[bytes, StateError] = field(default_factory=dict)
