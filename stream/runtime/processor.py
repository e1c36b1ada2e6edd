"""The order of effects: how a batch's plan becomes real, so that at-least-once is effectively once."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from stream.features.identity import identity
from stream.pipeline import Batch, Message, Record

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from typing import Any, Protocol

    from stream.monitoring.metrics import Metrics
    from stream.pipeline import Pipeline, Plan
    from stream.settings import TopicSettings

    class Store(Protocol):
        """What the processor needs of the table's store."""

        def read(self, partition: int, keys: Sequence[bytes]) -> Sequence[bytes | None]: ...

        def write(
            self, partition: int, writes: Iterable[tuple[bytes, bytes | None]], changelog_offset: int
        ) -> None: ...

    Deliver = Callable[[Iterable[tuple[str, int, list[Message]]]], Awaitable[int]]

__all__ = ["Processor"]


class _PartitionReader:
    """Reads the records of one partition."""

    def __init__(self, store: Store, partition: int) -> None:
        self._store = store
        self._partition = partition

    def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        return self._store.read(self._partition, keys) if keys else []


class Processor:
    """Carries out one batch at a time.

    For each batch, each step awaited before the next:

    1. decide everything in memory (:meth:`Pipeline.process`; no effects);
    2. produce alerts, decisions and dead letters, and wait for the acknowledgements;
    3. produce the changelog of the changed state, and wait for the acknowledgements;
    4. write the state to RocksDB, with the changelog's offset, in one atomic batch;
    5. return, upon which Faust may commit the source offset.

    Whatever the state holds had its alert delivered before (2 before 3), and carries the source offset
    it came from: a replayed record is recognised and skipped. Whatever it does not hold is decided
    again from the same state, with the same ``alert_id``.

    All output goes to the source record's partition: the topics have as many, which is checked before
    a worker starts, so a user's records stay together whatever partitioner the producer used.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        deliver: Deliver,
        store: Callable[[], Store],
        topics: TopicSettings,
        changelog: str,
        metrics: Metrics,
    ) -> None:
        self.pipeline = pipeline
        self._deliver = deliver
        self._store = store
        self._topics = topics
        self._changelog = changelog
        self._metrics = metrics
        #: Kafka's ids of the source topic's incarnation; empty where the broker has none.
        self.topic_id = ""
        self._idle = asyncio.Event()
        self._idle.set()
        self._open = asyncio.Event()
        self._open.set()

    async def settle(self) -> None:
        """Let the batch under way end; none begins until :meth:`resume`."""
        self._open.clear()
        await self._idle.wait()

    def resume(self) -> None:
        """Let batches begin again."""
        self._open.set()

    async def process(
        self, topic: str, partition: int, fetched: Sequence[Any], still_ours: Callable[[], bool]
    ) -> bool:
        """Take one fetched batch through all steps; False where a rebalance has taken it away meanwhile.

        Raises
        ------
        RiskStreamError, OSError
            A step failed. Nothing was acknowledged; the process must end and start again.
        """
        await self._open.wait()
        if not still_ours():
            return False
        self._idle.clear()
        try:
            await self._process(topic, partition, fetched)
        finally:
            self._idle.set()
        return True

    async def _process(self, topic: str, partition: int, fetched: Sequence[Any]) -> None:
        metrics = self._metrics
        store = self._store()
        batch = Batch(
            topic=topic,
            partition=partition,
            source=identity(f"{topic}:{self.topic_id}:{partition}"),
            records=[
                Record(record.offset, record.timestamp, record.key, record.value, tuple(record.headers))
                for record in fetched
            ],
        )
        started = time.perf_counter()
        plan = await asyncio.to_thread(
            self.pipeline.process, batch, _PartitionReader(store, partition), time.time_ns() // 1_000_000
        )
        decided = time.perf_counter()
        metrics.stages["decide"].observe(decided - started)
        await self._deliver(
            (name, partition, messages)
            for name, messages in (
                (self._topics.alerts, plan.alerts),
                (self._topics.decisions, plan.decisions),
                (self._topics.dead_letters, plan.dead_letters),
            )
            if messages
        )
        produced = time.perf_counter()
        metrics.stages["produce"].observe(produced - decided)
        self._count(plan, len(batch.records))
        if plan.writes:
            offset = await self._deliver(
                [(self._changelog, partition, [Message(key, value) for key, value in plan.writes])]
            )
            logged = time.perf_counter()
            metrics.stages["changelog"].observe(logged - produced)
            await asyncio.to_thread(store.write, partition, plan.writes, offset)
            metrics.stages["store"].observe(time.perf_counter() - logged)

    def _count(self, plan: Plan, records: int) -> None:
        metrics = self._metrics
        metrics.batch_size.observe(records)
        for outcome, count in plan.outcomes.items():
            metrics.transactions[outcome].inc(count)
        for field in plan.rejected_fields:
            metrics.dead_letters.labels(field.split(".", 1)[0]).inc()
        metrics.replayed.inc(plan.replayed)
        metrics.unknown_fields.inc(plan.unknown_fields)
        metrics.other_source.inc(plan.other_source)
        for score in plan.scores.tolist():
            metrics.score.observe(score)
        now_ms = time.time() * 1000
        for level, (taken_ms, _) in zip(plan.alert_levels, plan.alert_times, strict=True):
            metrics.alerts[level].inc()
            metrics.alert_latency.observe(max(0.0, now_ms - taken_ms) / 1000)
