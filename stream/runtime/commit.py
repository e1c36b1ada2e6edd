"""The commit protocol: the order in which a micro-batch's effects become durable."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Protocol

from stream.kafka.topics import changelog_topic
from stream.monitoring.logs import LineBudget
from stream.monitoring.tracing import MicroBatchTimes
from stream.pipeline.effects import gather
from stream.pipeline.encode import mask_dead_letter
from stream.runtime.fault_injection import no_fault
from stream.runtime.micro_batch import INLINE_RECORDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from stream.events.records import ProducerRecord
    from stream.kafka.producer import RecordTuple
    from stream.monitoring.metrics import Metrics
    from stream.monitoring.tracing import Tracer
    from stream.pipeline.effects import Batch, BatchEffects, Sends
    from stream.runtime.micro_batch import MicroBatch
    from stream.runtime.uncommitted import Store, UncommittedState
    from stream.settings import Settings

__all__ = ["Commit", "Deliver"]

logger = logging.getLogger(__name__)


class Deliver(Protocol):
    """The producer's method that sends records and waits for the acknowledgements."""

    def __call__(
        self,
        records: Iterable[tuple[str, int, Sequence[RecordTuple]]],
        on_sent: Callable[[], None] | None = ...,
        group: Callable[[RecordTuple], bytes] | None = ...,
    ) -> Awaitable[Mapping[tuple[str, int], int]]:
        """Send records and wait, see :meth:`.BatchProducer.deliver`."""


class Commit:
    """Carries out the effects of micro-batches, each step awaited before the next.

    1. Produce alerts, decisions, dead letters and the entity join's pending transactions and responses, and
       wait for the acknowledgements; then produce the entity join's requests and label updates likewise.
    2. Produce the changelog of the changed state, and wait.
    3. Write the state to RocksDB, with the changelog's offset, in one atomic batch per partition.
    4. Declare the batches done, upon which Faust may commit their offsets.

    No step of a micro-batch overtakes the same step of the one before, so the changelog and the commits keep
    the order of the source.

    Parameters
    ----------
    store
        Returns the table's store; Faust makes it when the app starts.
    step
        Called at each step by its name, see :mod:`.fault_injection`.
    """

    def __init__(
        self,
        deliver: Deliver,
        store: Callable[[], Store],
        uncommitted: UncommittedState,
        settings: Settings,
        metrics: Metrics,
        step: Callable[[str], None] = no_fault,
        tracer: Tracer | None = None,
    ) -> None:
        self._deliver = deliver
        self._store = store
        self._uncommitted = uncommitted
        self._topics = settings.topics
        self._changelog = changelog_topic(settings)
        self._metrics = metrics
        self._step = step
        self._tracer = tracer
        #: Records whose effects are durable, since the start; the watchdog compares it.
        self.progress = 0
        self._producing = asyncio.Lock()
        self._warned: set[int] = set()
        self._warned_of_misplaced = False
        self._card_numbers_allowed = settings.card_numbers.policy == "allow"
        self._partitioner = settings.topics.partitioner
        self._alert_lines, self._rejection_lines = LineBudget(), LineBudget()

    async def __call__(self, batch: MicroBatch, previous: MicroBatch | None) -> None:
        """Carry out a decided micro-batch's effects, each step behind the same step of the previous one.

        Raises
        ------
        RiskStreamError, OSError
            A step failed. None of the micro-batch's records is declared done.
        """
        metrics, step = self._metrics, self._step
        outputs_ns, started = await self._produce(batch)
        produced_ns = time.time_ns()
        if previous is not None:
            await previous.logged.wait()
            started = time.perf_counter()
        offsets = await self._log(batch)
        logged = time.perf_counter()
        metrics.stages["changelog"].observe(logged - started)
        if previous is not None:
            await previous.finished.wait()
            logged = time.perf_counter()
        await self._write(batch, offsets)
        metrics.stages["store"].observe(time.perf_counter() - logged)
        resume_offsets = {
            (part.topic, part.partition): effects.resume_offset for part, effects in batch.decided
        }
        for fetched in batch.fetched:
            resume_offset = resume_offsets[fetched.topic, fetched.partition]
            fetched.done(fetched.records[-1].offset if resume_offset is None else resume_offset - 1)
        step("done")
        self.progress += batch.records
        batch.finished.set()
        metrics.batch_size.observe(batch.records)
        if self._tracer is not None:
            times = MicroBatchTimes(batch.taken_ns, batch.decided_ns, outputs_ns, produced_ns, time.time_ns())
            self._tracer.trace(batch.decided, times)
        for part, effects in batch.decided:
            self._count(effects)
            self._log_lines(part, effects)

    async def _produce(self, batch: MicroBatch) -> tuple[int, float]:
        """Produce the outputs; returns when that began, in ns since 1970, and when it ended."""
        step = self._step
        watched = step is not no_fault
        outputs = self._outputs(batch)
        requests = gather(item for _, effects in batch.decided for item in effects.requests.items())
        async with self._producing:
            started = time.perf_counter()
            started_ns = time.time_ns()
            await self._deliver(_lists(outputs), (lambda: step("outputs_sent")) if watched else None)
            if requests:
                # A response must not arrive before its pending transaction.
                await self._deliver(_lists(requests), (lambda: step("requests_sent")) if watched else None)
        step("outputs_acked")
        produced = time.perf_counter()
        self._metrics.stages["produce"].observe(produced - started)
        return started_ns, produced

    async def _log(self, batch: MicroBatch) -> Mapping[tuple[str, int], int]:
        """Produce the changelog; returns the last offset by topic and partition."""
        step = self._step
        changes = (
            (self._changelog, partition, [(key, value, ()) for key, value in writes])
            for partition, writes in batch.writes.items()
        )
        on_sent = None if step is no_fault else lambda: step("changelog_sent")
        # One record batch per user or entity: a restore finds all of a change or none of it.
        offsets = await self._deliver(changes, on_sent, _owner)
        batch.logged.set()
        step("changelog_acked")
        return offsets

    async def _write(self, batch: MicroBatch, offsets: Mapping[tuple[str, int], int]) -> None:
        """Write a micro-batch's state to RocksDB."""
        store = self._store()
        for number, (partition, writes) in enumerate(batch.writes.items()):
            if number == 1:
                self._step("part_stored")
            offset = offsets[self._changelog, partition]
            if len(writes) <= INLINE_RECORDS:
                store.write(partition, writes, offset)
            else:
                await asyncio.to_thread(store.write, partition, writes, offset)
            self._uncommitted.drop(batch.number, partition)
        self._step("stored")

    def _outputs(self, batch: MicroBatch) -> Sends:
        """Return the records of the first step."""
        topics = self._topics
        return gather(
            item
            for part, effects in batch.decided
            for item in (
                ((topics.alerts, part.partition), effects.alerts),
                ((topics.decisions, part.partition), effects.decisions),
                ((topics.dead_letters, part.partition), self._masked(effects.dead_letters)),
                *effects.outputs.items(),
            )
        )

    def _masked(self, letters: list[ProducerRecord]) -> list[ProducerRecord]:
        """Return dead letters without card numbers in clear, unless these are allowed."""
        return letters if self._card_numbers_allowed else list(map(mask_dead_letter, letters))

    def _count(self, effects: BatchEffects) -> None:
        metrics = self._metrics
        for outcome, count in effects.outcomes.items():
            metrics.transactions[outcome].inc(count)
        for name, _ in effects.rejected:
            metrics.dead_letters.labels(name.split(".", 1)[0]).inc()
        metrics.replayed.inc(effects.replayed)
        metrics.unknown_fields.inc(effects.unknown_fields)
        for event, count in effects.join_counts.items():
            metrics.entity_join[event].inc(count)
        metrics.other_source.inc(effects.other_source)
        metrics.internal_errors.inc(len(effects.internal_errors))
        metrics.misplaced.inc(effects.misplaced)
        for action, count in effects.card_numbers.items():
            metrics.card_numbers[action].inc(count)
        metrics.refunds.inc(effects.refunds)
        metrics.truncated.inc(effects.truncated)
        metrics.score.observe(effects.scores)
        metrics.see(effects.features, effects.scores)
        now_ms = time.time() * 1000
        for level, taken_ms, event_ms, _, _ in effects.alerted:
            metrics.alerts[level].inc()
            if taken_ms >= 0:  # the record has a timestamp
                metrics.alert_latency.observe(max(0.0, now_ms - taken_ms) / 1000)
            metrics.event_to_alert.observe(max(0.0, now_ms - event_ms) / 1000)

    def _log_lines(self, part: Batch, effects: BatchEffects) -> None:
        """Log alerts, rejections and offsets of another topic, within the budget of lines."""
        now = time.monotonic()
        for offset, error in effects.internal_errors:
            logger.error(
                "internal error at %s [%d], offset %d: the record is in the dead letters; report this defect",
                part.topic, part.partition, offset, exc_info=error,
            )  # fmt: skip
        for alerted in effects.alerted[: self._alert_lines.take(len(effects.alerted), now)]:
            fields: dict[str, object] = {
                "transaction_id": alerted.transaction_id,
                "risk_level": alerted.level.value,
                "topic": self._topics.transactions,
                "partition": part.partition,
                "offset": alerted.offset,
            }
            logger.info("alert sent", extra=fields | _suppressed(self._alert_lines))
        for name, offset in effects.rejected[: self._rejection_lines.take(len(effects.rejected), now)]:
            fields = {
                # A producer's name of an attribute is part of its data.
                "field": name.split(".", 1)[0],
                "topic": part.topic,
                "partition": part.partition,
                "offset": offset,
            }
            logger.warning(
                "record rejected, dead letter sent", extra=fields | _suppressed(self._rejection_lines)
            )
        if effects.misplaced and not self._warned_of_misplaced:
            self._warned_of_misplaced = True
            logger.warning(
                "records of partition %d have keys that RISKSTREAM_TOPICS__PARTITIONER=%s puts on other "
                "partitions: users may be split, 'riskstream check' shows how producers choose partitions",
                part.partition,
                self._partitioner,
            )
        if effects.other_source and part.partition not in self._warned:
            self._warned.add(part.partition)
            logger.warning(
                "users' state of partition %d comes from another incarnation of %s: the worker does "
                "not compare offsets, and recognises transactions it has already applied by their ids",
                part.partition,
                part.topic,
            )


def _owner(record: RecordTuple) -> bytes:
    """Return the user or entity of a changelog record."""
    key = record[0]
    assert key is not None
    return key[:-6]


def _lists(sends: Sends) -> Iterable[tuple[str, int, list[ProducerRecord]]]:
    """Return records in the producer's form."""
    return ((topic, partition, messages) for (topic, partition), messages in sends.items())


def _suppressed(lines: LineBudget) -> dict[str, object]:
    """Return the number of events before this line that had no line."""
    count = lines.take_suppressed()
    return {"suppressed": count} if count else {}
