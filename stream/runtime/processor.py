"""The order of effects: how a batch's plan becomes real, so that at-least-once is effectively once."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from stream.features.identity import identity
from stream.pipeline import Batch, Message, Record
from stream.runtime.faults import no_fault
from stream.topics import changelog_topic

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from typing import Protocol

    from stream.monitoring.metrics import Metrics
    from stream.pipeline import Pipeline, Plan
    from stream.settings import Settings

    class Store(Protocol):
        """What the processor needs of the table's store."""

        def read(self, partition: int, keys: Sequence[bytes]) -> Sequence[bytes | None]: ...

        def write(
            self, partition: int, writes: Iterable[tuple[bytes, bytes | None]], changelog_offset: int
        ) -> None: ...

    class Deliver(Protocol):
        """What the processor needs of the producer."""

        def __call__(
            self, records: Iterable[tuple[str, int, list[Message]]], on_sent: Callable[[], None] = ...
        ) -> Awaitable[Mapping[tuple[str, int], int]]: ...


__all__ = ["Fetched", "Processor"]


class _PartitionReader:
    """Reads the records of one partition."""

    def __init__(self, store: Store, partition: int) -> None:
        self._store = store
        self._partition = partition

    def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        return self._store.read(self._partition, keys) if keys else []


#: Fewer records than this are decided on the event loop: a thread's handover costs more than they do.
_INLINE_RECORDS: Final = 64


@dataclass(frozen=True, slots=True)
class Fetched:
    """A fetched batch of one partition, as it waits for its turn.

    Attributes
    ----------
    still_ours
        Says whether the partition is assigned as it was when the batch was fetched.
    done
        Called once all effects of the batch are safe.
    """

    topic: str
    partition: int
    records: Sequence[Any]
    still_ours: Callable[[], bool]
    done: Callable[[], None]


class Processor:
    """Carries out batches, one round at a time; a round takes all that waits, of every partition.

    So nothing waits for a timer, and rounds grow only as far as the load makes them. For each round,
    each step awaited before the next:

    1. decide everything in memory (:meth:`Pipeline.process_all`; no effects);
    2. produce alerts, decisions and dead letters, and wait for the acknowledgements;
    3. produce the changelog of the changed state, and wait for the acknowledgements;
    4. write the state to RocksDB, with the changelog's offset, in one atomic batch per partition;
    5. say that the batches are done, upon which Faust may commit their offsets.

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
        settings: Settings,
        metrics: Metrics,
        step: Callable[[str], None] = no_fault,
    ) -> None:
        self._step = step
        self.pipeline = pipeline
        self._deliver = deliver
        self._store = store
        self._topics = settings.topics
        self._changelog = changelog_topic(settings)
        self._most_records = settings.kafka.max_poll_records
        self._metrics = metrics
        #: Kafka's ids of the source topic's incarnation; empty where the broker has none.
        self.topic_id = ""
        self._waiting: deque[Fetched] = deque()
        self._waiting_records = 0
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._idle = asyncio.Event()
        self._room.set()
        self._idle.set()
        self._open = True

    async def put(self, fetched: Fetched) -> None:
        """Let a batch wait for the next round; waits itself while two rounds' records are waiting."""
        await self._room.wait()
        self._waiting.append(fetched)
        self._waiting_records += len(fetched.records)
        if self._waiting_records >= 2 * self._most_records:
            self._room.clear()
        self._work.set()

    async def settle(self) -> None:
        """Let the round under way end, and forget what waits: it is fetched again after a rebalance."""
        self._open = False
        self._waiting.clear()
        self._waiting_records = 0
        self._room.set()
        await self._idle.wait()

    def resume(self) -> None:
        """Let rounds begin again."""
        self._open = True
        self._work.set()

    async def run(self) -> None:
        """Carry out rounds until cancelled.

        Raises
        ------
        RiskStreamError, OSError
            A step failed. Nothing of the round was acknowledged; the process must end and start again.
        """
        while True:
            await self._work.wait()
            self._work.clear()
            while self._open and (batches := self._take()):
                self._idle.clear()
                try:
                    await self._round(batches)
                finally:
                    self._idle.set()

    def _take(self) -> list[Fetched]:
        """Return what waits and is still ours, up to about the most records of a round."""
        taken: list[Fetched] = []
        records = 0
        while self._waiting and records < self._most_records:
            fetched = self._waiting.popleft()
            self._waiting_records -= len(fetched.records)
            if fetched.still_ours():
                taken.append(fetched)
                records += len(fetched.records)
        if self._waiting_records < 2 * self._most_records:
            self._room.set()
        return taken

    async def _round(self, fetched: list[Fetched]) -> None:
        metrics, store = self._metrics, self._store()
        batches = self._batches(fetched)
        readers = [_PartitionReader(store, batch.partition) for batch in batches]
        records = sum(len(batch.records) for batch in batches)
        started = time.perf_counter()
        now_ms = time.time_ns() // 1_000_000
        if records <= _INLINE_RECORDS:
            plans = self.pipeline.process_all(batches, readers, now_ms)
        else:
            plans = await asyncio.to_thread(self.pipeline.process_all, batches, readers, now_ms)
        decided = time.perf_counter()
        metrics.stages["decide"].observe(decided - started)
        step = self._step
        step("decided")
        outputs = (
            (name, batch.partition, messages)
            for batch, plan in zip(batches, plans, strict=True)
            for name, messages in (
                (self._topics.alerts, plan.alerts),
                (self._topics.decisions, plan.decisions),
                (self._topics.dead_letters, plan.dead_letters),
            )
        )
        await self._deliver(outputs, lambda: step("outputs_sent"))
        step("outputs_acked")
        produced = time.perf_counter()
        metrics.stages["produce"].observe(produced - decided)
        changes = (
            (self._changelog, batch.partition, [Message(key, value) for key, value in plan.writes])
            for batch, plan in zip(batches, plans, strict=True)
        )
        offsets = await self._deliver(changes, lambda: step("changelog_sent"))
        step("changelog_acked")
        logged = time.perf_counter()
        metrics.stages["changelog"].observe(logged - produced)
        for number, (batch, plan) in enumerate(zip(batches, plans, strict=True)):
            if number == 1:
                step("part_stored")
            if plan.writes:
                offset = offsets[self._changelog, batch.partition]
                if len(plan.writes) <= _INLINE_RECORDS:
                    store.write(batch.partition, plan.writes, offset)
                else:
                    await asyncio.to_thread(store.write, batch.partition, plan.writes, offset)
        metrics.stages["store"].observe(time.perf_counter() - logged)
        step("stored")
        for item in fetched:
            item.done()
        step("done")
        metrics.batch_size.observe(records)
        for plan in plans:
            self._count(plan)

    def _batches(self, fetched: list[Fetched]) -> list[Batch]:
        """Join the fetches of each partition, in their order."""
        records: dict[tuple[str, int], list[Record]] = {}
        for item in fetched:
            records.setdefault((item.topic, item.partition), []).extend(
                Record(record.offset, record.timestamp, record.key, record.value, tuple(record.headers))
                for record in item.records
            )
        return [
            Batch(topic, partition, identity(f"{topic}:{self.topic_id}:{partition}"), part)
            for (topic, partition), part in records.items()
        ]

    def _count(self, plan: Plan) -> None:
        metrics = self._metrics
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
