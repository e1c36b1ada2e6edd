"""The pipeline: batches of records in, effects out. No I/O, no clock, no Kafka.

:meth:`TransactionPipeline.process` decides a whole batch in memory. It decodes and validates records,
advances the users' histories, scores, explains the alerts, and encodes alerts, decisions and dead letters. It
returns the batch's effects; the runtime carries them out in the order that the guarantees need. The same
records, state, bundle and time give the same effects to the byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stream.decisions.policy import Policy, Verdict
from stream.decisions.reasons import Explainer
from stream.errors import InvalidRecordError
from stream.events.decode import decode_row
from stream.events.models import Outcome
from stream.features.refunds import history_key, history_name, is_refund
from stream.features.vector import VectorBuilder
from stream.features.windows.arrays import DUPLICATE, LATE, REPLAYED
from stream.features.windows.cache import HistoryCache
from stream.features.windows.events import FAILED, HistoryConfig, HistoryEvents
from stream.features.windows.history import advance
from stream.pipeline.columns import columns_of, events_of
from stream.pipeline.effects import (
    OUTCOMES,
    Alerted,
    Batch,
    BatchEffects,
    DecodedRecord,
    PartitionBatch,
    PipelineConfig,
)
from stream.pipeline.encode import Encoder
from stream.pipeline.placement import misplaced_keys
from stream.pipeline.times import ClockGuard
from stream.scoring.predictor import Predictor
from stream.state.store import PartitionedReader, StateReader

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from stream.events.decode import TransactionRow
    from stream.events.records import ConsumerRecord
    from stream.scoring.bundle import Bundle

__all__ = ["TransactionPipeline"]


class TransactionPipeline:
    """Decides batches with one model bundle, which has no entity profiles."""

    def __init__(self, bundle: Bundle, config: PipelineConfig) -> None:
        self.bundle = bundle
        self.config = config
        self._history = HistoryConfig(config.lateness_ms, config.user_ttl_ms)
        self._cache = HistoryCache(config.cache_bytes)
        self._clock = ClockGuard()
        self._builder = VectorBuilder(bundle.spec)
        self._predictor = Predictor(bundle)
        self._policy = Policy(bundle.thresholds, config.alert_level)
        self._explainer = Explainer(bundle.spec, config.max_reasons, config.language)
        self._spec_hash = bundle.spec.hash
        #: Returns the row of a record's value, and how many of its fields are unknown.
        self.decode = decode_row if config.mapping is None else config.mapping.decode
        self._refund_types = frozenset(bundle.spec.refund_types)

    def process(self, batch: Batch, reader: StateReader, now_ms: int) -> BatchEffects:
        """Return the effects of one partition's batch; see :meth:`process_all`."""
        return self.process_all([batch], [reader], now_ms)[0]

    def process_all(
        self, batches: Sequence[Batch], readers: Sequence[StateReader], now_ms: int
    ) -> list[BatchEffects]:
        """Return the effects of each of several partitions' batches.

        Each partition has its own state; vectors, scores and explanations are computed for all at once.

        Parameters
        ----------
        readers
            The state of each batch's partition.
        now_ms
            Processing time: bounds event times from above.
        """
        parts = [self._decode(batch, now_ms) for batch in batches]
        matrix = self._vectors(parts, readers)
        self._conclude(parts, matrix)
        return [part.effects for part in parts]

    @property
    def consumed_topics(self) -> tuple[str, ...]:
        """The topics that the pipeline decides batches of; the transactions come first, then any labels."""
        return (self.config.source_topic,)

    @property
    def backlog(self) -> int:
        """How many transactions wait for the state of other partitions."""
        return 0

    def on_partition_owned(self, partition: int, epoch: int, marker_offset: int) -> None:
        """Become the owner of a partition, with the epoch and the offset of its ownership marker."""

    def on_rebalanced(self) -> None:
        """Drop state that may belong to another worker now."""

    def _vectors(
        self, parts: list[PartitionBatch], readers: Sequence[StateReader], more: int = 0
    ) -> npt.NDArray[np.float64]:
        """Return the transactions' vectors, having taken them into the histories; then so many empty rows."""
        everything = [item for part in parts for item in part.decoded]
        count = len(everything)
        matrix = self._builder.empty(count + more)
        start = 0
        for part in parts:
            part.rows = slice(start, start + len(part.decoded))
            start = part.rows.stop
        if everything:
            events, ends = events_of(parts, everything, self._refund_types)
            self._advance(parts, events, PartitionedReader(readers, ends), matrix[:count])
            rows = [row for _, row in everything]
            self._builder.fill(columns_of(rows, events, self.bundle.spec), matrix[:count])
        return matrix

    def _conclude(self, parts: list[PartitionBatch], matrix: npt.NDArray[np.float64]) -> None:
        """Score the vectors of transactions that have an outcome; add decisions and alerts to the effects."""
        verdicts = self._judge(parts, matrix)
        for part in parts:
            self._decide(part, verdicts, matrix)
        self._alert(parts, verdicts, matrix)

    def horizon_ms(self, entity: str) -> int:
        """Return how far a feature may reach behind the newest transaction of an entity of this kind."""
        return self._history.horizon_ms if entity == "user" else 0

    def drop_state(self, partition: int, prefixes: Iterable[bytes]) -> None:
        """Drop what memory holds of users and entities whose records are being deleted."""

    def forget(self) -> None:
        """Forget the long histories that are kept unpacked; they are read anew when they are needed."""
        self._cache.forget()

    def roll_back(self) -> None:
        """Undo what the last call of :meth:`process_all` changed in memory: it raised an exception."""
        self._cache.forget()

    def reject_internal_error(self, batch: Batch, error: Exception, now_ms: int) -> BatchEffects:
        """Return the effects of a batch of one record that raises an unforeseen exception: a dead letter."""
        [record] = batch.records
        effects = BatchEffects()
        if batch.topic == self.config.source_topic:
            effects.outcomes[Outcome.REJECTED] = 1
        effects.reject_internal_error(batch, record, error, now_ms)
        return effects

    def _advance(
        self,
        parts: list[PartitionBatch],
        events: HistoryEvents,
        reader: PartitionedReader,
        matrix: npt.NDArray[np.float64],
    ) -> None:
        """Bring the users' histories forward, those of all partitions at once."""
        features = self._builder.history(matrix)
        result = advance(events, self._history, reader, features, cache=self._cache)
        for part in parts:
            part.outcome = result.outcome[part.rows]
            if part.decoded:
                part.effects.newest_ms = int(events.time_ms[part.rows].max())
        if result.truncated.any():
            for part in parts:
                part.truncated = frozenset(np.flatnonzero(result.truncated[part.rows]).tolist())
                part.effects.truncated = len(part.truncated)
        for index, error in result.errors.items():
            [at] = reader.part_of(np.array([index])).tolist()
            parts[at].errors[events.users[index]] = error
        for at in reader.part_of(np.flatnonzero(result.other_source)).tolist():
            parts[at].effects.other_source += 1
        for at, write in zip(
            reader.part_of(np.array(result.owners, np.int64)).tolist(), result.writes, strict=True
        ):
            parts[at].effects.writes.append(write)

    def _judge(self, parts: list[PartitionBatch], matrix: npt.NDArray[np.float64]) -> dict[int, Verdict]:
        """Score every row that has features, and return the verdicts by row."""
        outcomes = np.concatenate([part.outcome for part in parts]) if parts else np.empty(0, np.uint8)
        scored = np.flatnonzero(outcomes <= LATE)
        rows = matrix if len(scored) == len(matrix) else matrix[scored]
        scores = self._predictor.scores(rows)
        for part in parts:
            first, last = np.searchsorted(scored, [part.rows.start, part.rows.stop])
            part.effects.scores = scores[first:last]
            part.effects.features = rows[first:last]
        return dict(zip(scored.tolist(), map(self._policy.judge, scores.tolist()), strict=True))

    def _decode(self, batch: Batch, now_ms: int) -> PartitionBatch:
        """Return the valid transactions; each invalid record becomes a dead letter."""
        part = PartitionBatch(batch, [], BatchEffects(), now_ms)
        times = self.config.times
        earliest, latest = times.min_ms, now_ms + times.max_future_ms
        ahead = 0
        max_bytes = self.config.max_record_bytes
        refund_types = self._refund_types
        decode = self.decode
        for record in batch.records:
            try:
                row, unknown = decode(record.value, max_bytes)
                if record.key != row.user_id.encode():
                    raise InvalidRecordError(
                        "key", "must be the user_id, so that a user's records meet on one partition"
                    )
                if not earliest <= row.event_time <= latest:
                    ahead += latest < min(row.event_time, record.timestamp_ms)
                    raise times.error("event_time", row.event_time, now_ms)
            except InvalidRecordError as error:
                _reject(part, record, error, error.field, error.reason)
                continue
            part.effects.unknown_fields += unknown
            if row.amount_minor < 0 or row.transaction_type in refund_types:
                part.effects.refunds += 1
            part.decoded.append(DecodedRecord(record, row))
        self._clock.see(len(batch.records), ahead, now_ms)
        config = self.config
        part.effects.misplaced = misplaced_keys(
            [record.key for record, _ in part.decoded if record.key is not None],
            batch.partition,
            config.partitions,
            config.partitioner,
        )
        if config.card_numbers.may_be_in(row for _, row in part.decoded):
            self._take_out_card_numbers(part)
        return part

    def _take_out_card_numbers(self, part: PartitionBatch) -> None:
        """Replace or refuse transactions with card numbers as ids."""
        kept = []
        for record, row in part.decoded:
            try:
                clean, replaced = self.config.card_numbers.record(row, record)
            except InvalidRecordError as error:
                part.effects.card_numbers["refused"] += 1
                _reject(part, record, error, error.field, error.reason)
                continue
            part.effects.card_numbers["replaced"] += replaced is not record
            kept.append(DecodedRecord(replaced, clean))
        part.decoded = kept

    def _decide(
        self, part: PartitionBatch, verdicts: dict[int, Verdict], matrix: npt.NDArray[np.float64]
    ) -> None:
        """Count every transaction's outcome, and make its decision."""
        effects = part.effects
        names = self.bundle.spec.names if self.config.decision_features else ()
        decide = self._encoder(part.batch).decision if self.config.decisions else None
        counts = np.bincount(part.outcome, minlength=FAILED + 1).tolist()
        effects.replayed = counts[REPLAYED]
        effects.outcomes |= {outcome: counts[code] for code, outcome in enumerate(OUTCOMES) if counts[code]}
        indexes = range(part.rows.start, part.rows.stop)
        for index, (record, row), code in zip(indexes, part.decoded, part.outcome.tolist(), strict=True):
            if code <= DUPLICATE:
                if decide is not None:
                    verdict, features = verdicts.get(index), None
                    if names and verdict is not None:
                        features = dict(zip(names, matrix[index].tolist(), strict=True))
                    effects.decisions.append(
                        decide(
                            record,
                            row,
                            OUTCOMES[code],
                            verdict,
                            features,
                            truncated=index - part.rows.start in part.truncated,
                        )
                    )
            elif code == FAILED:
                error = part.errors[self._history_of(row)]
                _reject(part, record, error, "$", f"{error}, at offset {record.offset}")

    def _history_of(self, row: TransactionRow) -> bytes:
        """Return the prefix of the keys of the transaction's history."""
        refund = is_refund(row.amount_minor, row.transaction_type, self._refund_types)
        return history_key(history_name(row.user_id, refund=refund))

    def _alert(
        self, parts: list[PartitionBatch], verdicts: dict[int, Verdict], matrix: npt.NDArray[np.float64]
    ) -> None:
        """Explain and encode the alerts."""
        chosen = [index for index, verdict in verdicts.items() if verdict.alert]
        explained = iter(zip(chosen, self._predictor.contributions(matrix[chosen]), strict=True))
        index, moved = next(explained, (-1, None))
        for part in parts:
            encoder = self._encoder(part.batch)
            effects = part.effects
            while moved is not None and part.rows.start <= index < part.rows.stop:
                record, row = part.decoded[index - part.rows.start]
                verdict = verdicts[index]
                reasons = self._explainer.reasons(matrix[index], moved)
                effects.alerts.append(encoder.alert(record, row, verdict, reasons))
                effects.alerted.append(
                    Alerted(
                        verdict.level, record.timestamp_ms, row.event_time, record.offset, row.transaction_id
                    )
                )
                index, moved = next(explained, (-1, None))

    def _encoder(self, batch: Batch) -> Encoder:
        return Encoder(self.bundle.model_version, self._spec_hash, batch.topic, batch.partition)


def _reject(
    part: PartitionBatch, record: ConsumerRecord, error: Exception, field_name: str, reason: str
) -> None:
    outcomes = part.effects.outcomes
    outcomes[Outcome.REJECTED] = outcomes.get(Outcome.REJECTED, 0) + 1
    part.effects.reject(part.batch, record, error, field_name, reason, part.now_ms)
