"""The processor: fetched batches wait in a queue, and micro-batches take everything that waits."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from stream.pipeline.bisection import decide
from stream.pipeline.effects import Batch, gather
from stream.pipeline.idle_state import SLICE_RECORDS
from stream.runtime.fault_injection import no_fault
from stream.runtime.micro_batch import INLINE_RECORDS, Fetched, MicroBatch
from stream.runtime.uncommitted import UncommittedReader
from stream.state.hashing import hash_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stream.events.records import ConsumerRecord
    from stream.monitoring.metrics import Metrics
    from stream.pipeline.effects import BatchEffects
    from stream.pipeline.idle_state import IdleState
    from stream.pipeline.transactions import TransactionPipeline
    from stream.runtime.commit import Commit
    from stream.runtime.uncommitted import Store, UncommittedState
    from stream.settings import Settings
    from stream.state.store import StateReader

__all__ = ["Processor"]

#: Micro-batches that may be in progress at once, one in each half of the commit protocol: the broker
#: acknowledges the changelog of one while it acknowledges the outputs of the next.
_MAX_IN_PROGRESS: Final = 2

#: Bytes of keys and values in a micro-batch; the fetched batch that reaches them is the last one.
_MAX_MICRO_BATCH_BYTES: Final = 16 << 20

#: Longest pause between two fetches while a thread decides a micro-batch.
_FETCH_PAUSE_SECONDS: Final = 0.1

#: After a large micro-batch the next one waits for this many fetches, and for this long at most. The first
#: fetch returns the records that the client had when the pause began; only the second asks the broker again.
_CATCH_UP_FETCHES: Final = 2
_CATCH_UP_SECONDS: Final = 0.05


class Processor:
    """Decides fetched batches in micro-batches and hands them to the commit protocol.

    A micro-batch takes everything that waits, of every partition, up to a number of records and of bytes. No
    timer is involved: an idle stream has micro-batches of one record, and load alone makes them larger. Each
    micro-batch is decided in memory (:func:`stream.pipeline.bisection.decide`, without effects), then carried
    out (:class:`.Commit`).

    The state holds no transaction whose alert the broker has not acknowledged, and it holds the source offset
    of each: a replayed record is recognised and skipped. A transaction that the state does not hold is
    decided again from the same state, with the same ``alert_id``.

    Under load the next micro-batch is decided while the previous one is carried out, from RocksDB and the
    uncommitted writes.

    All output goes to the partition of the source record. A worker checks before it starts that all topics
    have the same number of partitions, so a user's records stay together under any partitioner.
    """

    def __init__(
        self,
        pipeline: TransactionPipeline,
        commit: Commit,
        store: Callable[[], Store],
        uncommitted: UncommittedState,
        settings: Settings,
        metrics: Metrics,
        idle: IdleState,
        committed: Callable[[int], int | None],
        step: Callable[[str], None] = no_fault,
    ) -> None:
        self.pipeline = pipeline
        self._commit = commit
        self._store = store
        self._uncommitted = uncommitted
        self._max_records = settings.kafka.max_poll_records
        self._metrics = metrics
        self._idle_state = idle
        self._committed = committed
        self._step = step
        #: Kafka's id of the source topic; empty on a broker without topic ids.
        self.topic_id = ""
        self._waiting: deque[Fetched] = deque()
        self._waiting_records = 0
        self._waiting_bytes = 0
        self._work = asyncio.Event()
        self._capacity = asyncio.Event()
        self._idle = asyncio.Event()
        #: Clear while a thread decides a micro-batch, and until the fetches after it have arrived.
        self._decided = asyncio.Event()
        self._caught_up = asyncio.Event()
        self._fetches_left = 0
        #: How long the last large micro-batch took to decide.
        self._last_seconds = 0.0
        self._decided.set()
        self._caught_up.set()
        self._capacity.set()
        self._idle.set()
        self._open = True
        self._numbers = 0
        self._in_progress: dict[asyncio.Task[None], MicroBatch] = {}

    async def wait_for_capacity(self) -> None:
        """Wait while the records of two micro-batches are queued, so that memory does not grow with the lag.

        Wait also while a large micro-batch is being decided and records are queued for the next one: a fetch
        costs the same for one record as for a hundred, and it takes the interpreter from the micro-batch.
        """
        await self._capacity.wait()
        if self._waiting and not self._decided.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FETCH_PAUSE_SECONDS):
                    await self._decided.wait()

    def put(self, fetched: Iterable[Fetched]) -> None:
        """Queue fetched batches for the next micro-batch."""
        for batch in fetched:
            self._waiting.append(batch)
            self._waiting_records += len(batch.records)
            self._waiting_bytes += batch.size
        if self._is_full():
            self._capacity.clear()
        self._fetches_left -= 1
        if self._fetches_left <= 0:
            self._caught_up.set()
        self._work.set()

    def _is_full(self) -> bool:
        """Return whether two micro-batches are queued."""
        return (
            self._waiting_records >= 2 * self._max_records
            or self._waiting_bytes >= 2 * _MAX_MICRO_BATCH_BYTES
        )

    async def drain(self) -> None:
        """Finish the micro-batches in progress and clear the queue: a rebalance fetches its records again."""
        self._open = False
        self._waiting.clear()
        self._waiting_records = self._waiting_bytes = 0
        self._capacity.set()
        await self._idle.wait()

    def describe(self) -> str:
        """Return the queue and the micro-batches in progress in one line, for a person."""
        in_progress = ", ".join(
            f"micro-batch {batch.number} of {batch.records} records"
            + (" (logged)" if batch.logged.is_set() else "")
            for batch in self._in_progress.values()
        )
        return (
            f"{'open' if self._open else 'draining'}, waiting: {len(self._waiting)} batches of "
            f"{self._waiting_records} records, in progress: {in_progress or 'nothing'}"
        )

    def reader(self, partition: int) -> StateReader:
        """Return a reader of a partition's state as the last decided micro-batch left it, stored or not.

        The partition must be this worker's and restored. The reader is valid until control returns to the
        event loop.
        """
        return UncommittedReader(self._store(), partition, self._uncommitted)

    def resume(self) -> None:
        """Let micro-batches begin again."""
        self._open = True
        self._work.set()

    async def run(self) -> None:
        """Decide and carry out micro-batches until cancelled.

        Raises
        ------
        RiskStreamError, OSError
            A step failed. No record of the micro-batch was acknowledged; the process must be restarted.
        """
        working = asyncio.ensure_future(self._work.wait())
        try:
            while True:
                await asyncio.wait({working, *self._in_progress}, return_when=asyncio.FIRST_COMPLETED)
                self._reap()
                if working.done():
                    self._work.clear()
                    working = asyncio.ensure_future(self._work.wait())
                while self._open and self._waiting and self._may_begin():
                    await self._begin()
                    self._reap()
                if not self._in_progress:
                    self._idle.set()
        finally:
            working.cancel()
            for task in self._in_progress:
                task.cancel()
            self._idle.set()

    def _reap(self) -> None:
        """Drop finished micro-batches; raises the error of a failed one."""
        for task in [task for task in self._in_progress if task.done()]:
            del self._in_progress[task]
            task.result()

    def _may_begin(self) -> bool:
        """Return whether to decide a micro-batch now.

        While one is in progress a few records wait for its end, and more records join them; many records are
        decided at once.
        """
        in_progress = len(self._in_progress)
        return in_progress == 0 or (in_progress < _MAX_IN_PROGRESS and self._waiting_records > INLINE_RECORDS)

    async def _begin(self) -> None:
        """Decide a micro-batch and start to carry out its effects."""
        await self._catch_up()
        fetched = self._take() if self._open else []
        if not fetched:
            return
        self._idle.clear()
        try:
            batch = await self._decide(fetched)
        except BaseException:
            self._idle.set()
            raise
        previous = [other for task, other in self._in_progress.items() if not task.done()]
        task = asyncio.ensure_future(self._carry_out(batch, previous[-1] if previous else None))
        self._in_progress[task] = batch

    async def _carry_out(self, batch: MicroBatch, previous: MicroBatch | None) -> None:
        await self._commit(batch, previous)
        self._metrics.pending.set(self.pipeline.backlog)

    async def _catch_up(self) -> None:
        """Wait for the records that arrived while the last micro-batch was decided, unless the queue is full.

        Without the wait those records would miss this micro-batch and be one full micro-batch older in the
        next. The wait is at most as long as the last micro-batch took, so that the last records of a burst do
        not wait for records that never arrive. The processor is not idle meanwhile: the effects of the last
        micro-batch are being carried out.
        """
        if not self._caught_up.is_set() and self._waiting_records < self._max_records:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(self._last_seconds, _CATCH_UP_SECONDS)):
                    await self._caught_up.wait()
        self._caught_up.set()

    def _take(self) -> list[Fetched]:
        """Return queued batches of assigned partitions: ``max_poll_records`` records or a few more."""
        taken: list[Fetched] = []
        records = size = 0
        while self._waiting and records < self._max_records and size < _MAX_MICRO_BATCH_BYTES:
            fetched = self._waiting.popleft()
            self._waiting_records -= len(fetched.records)
            self._waiting_bytes -= fetched.size
            if fetched.still_ours():
                taken.append(fetched)
                records += len(fetched.records)
                size += fetched.size
        if not self._is_full():
            self._capacity.set()
        return taken

    async def _decide(self, fetched: list[Fetched]) -> MicroBatch:
        store = self._store()
        batches = self._batches(fetched)
        readers = [UncommittedReader(store, batch.partition, self._uncommitted) for batch in batches]
        records = sum(len(batch.records) for batch in batches)
        started = time.perf_counter()
        taken_ns = time.time_ns()
        now_ms = taken_ns // 1_000_000
        if records <= INLINE_RECORDS:
            decided = decide(self.pipeline, batches, readers, now_ms)
        else:
            self._decided.clear()
            try:
                decided = await asyncio.to_thread(decide, self.pipeline, batches, readers, now_ms)
            finally:
                self._decided.set()
            self._fetches_left = _CATCH_UP_FETCHES
            self._caught_up.clear()
            self._last_seconds = time.perf_counter() - started
        self._metrics.stages["decide"].observe(time.perf_counter() - started)
        self._step("decided")
        self._numbers += 1
        writes = gather((batch.partition, effects.writes) for batch, effects in decided)
        self._forget_idle(decided, writes)
        for partition, changed in writes.items():
            self._uncommitted.add(self._numbers, partition, changed)
        return MicroBatch(self._numbers, fetched, decided, writes, records, taken_ns, time.time_ns())

    def _forget_idle(
        self,
        decided: list[tuple[Batch, BatchEffects]],
        writes: dict[int, list[tuple[bytes, bytes | None]]],
    ) -> None:
        """Add the deletion of idle users and entities to the micro-batch's writes."""
        idle, now = self._idle_state, time.monotonic()
        for batch, effects in decided:
            if effects.newest_ms is not None:
                idle.see(batch.partition, batch.source, effects.newest_ms)
        for partition in dict.fromkeys(batch.partition for batch, _ in decided):
            start = idle.start(partition, now)
            if start is None:
                continue
            store = self._store()
            busy = {key[:-6] for key, _ in writes.get(partition, ())}
            reader = UncommittedReader(store, partition, self._uncommitted)
            records = store.scan(partition, start, SLICE_RECORDS)
            forgotten = idle.forget(partition, records, reader, busy, self._committed(partition))
            if forgotten.writes:
                writes.setdefault(partition, []).extend(forgotten.writes)
                self.pipeline.drop_state(partition, forgotten.prefixes)
            for kind, count in forgotten.kinds.items():
                self._metrics.forgotten[kind].inc(count)

    def _batches(self, fetched: list[Fetched]) -> list[Batch]:
        """Join the fetched batches of each partition, in order."""
        records: dict[tuple[str, int, str], list[ConsumerRecord]] = {}
        for batch in fetched:
            records.setdefault((batch.topic, batch.partition, batch.incarnation), []).extend(batch.records)
        return [
            Batch(topic, partition, hash_id(f"{topic}:{incarnation}:{partition}"), part)
            for (topic, partition, incarnation), part in records.items()
        ]
