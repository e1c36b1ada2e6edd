"""The order of effects: how a batch's plan becomes real, so that at-least-once is effectively once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from stream.kafka.topics import changelog_topic
from stream.monitoring.logs import LineBudget
from stream.monitoring.tracing import RoundTimes
from stream.pipeline.effects import Batch, gather
from stream.runtime.fault_injection import no_fault
from stream.runtime.micro_batch import _INLINE_RECORDS, Fetched, _Round
from stream.runtime.uncommitted import _PartitionReader, _Unstored
from stream.state.hashing import identity

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from stream.events.records import Message, Record
    from stream.kafka.producer import Sendable
    from stream.monitoring.metrics import Metrics
    from stream.monitoring.tracing import Tracer
    from stream.pipeline.effects import Plan, Sends
    from stream.pipeline.transactions import Pipeline
    from stream.runtime.uncommitted import Store
    from stream.settings import Settings
    from stream.state.store import RecordReader

logger = logging.getLogger(__name__)

#: Rounds whose effects may be under way at once, one in each half of the order: while the changelog of one
#: is being acknowledged, the outputs of the next are.
_MOST_UNDER_WAY: Final = 2

#: Longest pause between two fetches while a round is decided in a thread.
_FETCH_PAUSE_SECONDS: Final = 0.1

#: How many fetches a round waits for once the one before, a large one, is decided, and how long at the most.
#: The first finds what the client fetched when the pause began; only then does it fetch what has come.
_CATCH_UP_FETCHES: Final = 2

_CATCH_UP_SECONDS: Final = 0.05


class Deliver(Protocol):
    """What the processor needs of the producer."""

    def __call__(
        self,
        records: Iterable[tuple[str, int, Sequence[Sendable]]],
        on_sent: Callable[[], None] | None = ...,
        group: Callable[[Sendable], bytes] | None = ...,
    ) -> Awaitable[Mapping[tuple[str, int], int]]:
        """Produce records and wait for their acknowledgements, see :meth:`Delivery.deliver`."""


class Processor:
    """Carries out batches in rounds; a round takes all that waits, of every partition.

    So nothing waits for a timer, and rounds grow only as far as the load makes them. For each round,
    each step awaited before the next:

    1. decide everything in memory (:meth:`Pipeline.process_all`; no effects);
    2. produce alerts, decisions and dead letters, and wait for the acknowledgements; of a model with profiles
       the cases and answers as well, and then, in the same way, the questions;
    3. produce the changelog of the changed state, and wait for the acknowledgements;
    4. write the state to RocksDB, with the changelog's offset, in one atomic batch per partition;
    5. say that the batches are done, upon which Faust may commit their offsets.

    Whatever the state holds had its alert delivered before (2 before 3), and carries the source offset
    it came from: a replayed record is recognised and skipped. Whatever it does not hold is decided
    again from the same state, with the same ``alert_id``.

    Under load a round is decided while the one before it is being carried out, from RocksDB and what that
    one has not stored yet; its own steps 2 to 5 begin and end in turn: no step of a round overtakes the same
    step of the one before, so the changelog and the commits keep the order of the source.

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
        tracer: Tracer | None = None,
    ) -> None:
        self._step = step
        self._tracer = tracer
        self.pipeline = pipeline
        self._deliver = deliver
        self._store = store
        self._topics = settings.topics
        self._changelog = changelog_topic(settings)
        self._most_records = settings.kafka.max_poll_records
        self._metrics = metrics
        #: Kafka's ids of the source topic's incarnation; empty where the broker has none.
        self.topic_id = ""
        #: Records done since the start; the watchdog looks at it.
        self.progress = 0
        self._waiting: deque[Fetched] = deque()
        self._waiting_records = 0
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._idle = asyncio.Event()
        #: Clear while a round is decided in a thread, and until the fetches after it are there.
        self._decided = asyncio.Event()
        self._caught_up = asyncio.Event()
        self._fetches_left = 0
        #: How long the last large round took to decide.
        self._last_seconds = 0.0
        self._decided.set()
        self._caught_up.set()
        self._room.set()
        self._idle.set()
        self._open = True
        self._numbers = 0
        self._under_way: dict[asyncio.Task[None], _Round] = {}
        self._unstored = _Unstored()
        self._producing = asyncio.Lock()
        self._warned: set[int] = set()
        self._alert_lines, self._refusal_lines = LineBudget(), LineBudget()

    async def room(self) -> None:
        """Wait while two rounds' records are waiting: memory does not grow with the lag.

        And while a large round is decided and something waits for the next one: a fetch costs the same for
        one record as for a hundred, and takes the interpreter from the round.
        """
        await self._room.wait()
        if self._waiting and not self._decided.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FETCH_PAUSE_SECONDS):
                    await self._decided.wait()

    def put(self, fetched: Iterable[Fetched]) -> None:
        """Let what a fetch has brought wait for the next round."""
        for one in fetched:
            self._waiting.append(one)
            self._waiting_records += len(one.records)
        if self._waiting_records >= 2 * self._most_records:
            self._room.clear()
        self._fetches_left -= 1
        if self._fetches_left <= 0:
            self._caught_up.set()
        self._work.set()

    async def settle(self) -> None:
        """Let the rounds under way end, and forget what waits: it is fetched again after a rebalance."""
        self._open = False
        self._waiting.clear()
        self._waiting_records = 0
        self._room.set()
        await self._idle.wait()

    def describe(self) -> str:
        """Return in a line what waits and what is under way, for a person."""
        rounds = ", ".join(
            f"round {one.number} of {one.records} records{' (logged)' if one.logged.is_set() else ''}"
            for one in self._under_way.values()
        )
        return (
            f"{'open' if self._open else 'settling'}, waiting: {len(self._waiting)} batches of "
            f"{self._waiting_records} records, under way: {rounds or 'nothing'}"
        )

    def reader(self, partition: int) -> RecordReader:
        """Return what reads a partition's histories as the last decided round left them, stored or not.

        Only for a partition that is this worker's and restored, and only until the event loop goes on.
        """
        return _PartitionReader(self._store(), partition, self._unstored)

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
        working = asyncio.ensure_future(self._work.wait())
        try:
            while True:
                await asyncio.wait({working, *self._under_way}, return_when=asyncio.FIRST_COMPLETED)
                self._reap()
                if working.done():
                    self._work.clear()
                    working = asyncio.ensure_future(self._work.wait())
                while self._open and self._waiting and self._may_begin():
                    await self._begin()
                    self._reap()
                if not self._under_way:
                    self._idle.set()
        finally:
            working.cancel()
            for task in self._under_way:
                task.cancel()
            self._idle.set()

    def _reap(self) -> None:
        """Forget rounds that have ended; raises what one of them failed with."""
        for task in [task for task in self._under_way if task.done()]:
            del self._under_way[task]
            task.result()

    def _may_begin(self) -> bool:
        """Say whether to decide a round now.

        While one is under way a few records wait for its end, to go together with what comes until then; many
        are decided at once.
        """
        under_way = len(self._under_way)
        return under_way == 0 or (under_way < _MOST_UNDER_WAY and self._waiting_records > _INLINE_RECORDS)

    async def _begin(self) -> None:
        """Decide a round, and let its effects begin."""
        await self._catch_up()
        fetched = self._take() if self._open else []
        if not fetched:
            return
        self._idle.clear()
        try:
            one = await self._decide(fetched)
        except BaseException:
            self._idle.set()
            raise
        before = [task_round for task, task_round in self._under_way.items() if not task.done()]
        task = asyncio.ensure_future(self._carry_out(one, before[-1] if before else None))
        self._under_way[task] = one

    async def _catch_up(self) -> None:
        """Wait for what has come while the last round was decided, unless there is a round's worth already.

        Otherwise it would wait for this round and the next: so the wait may be as long as a round takes, but
        not longer, or the last records of a burst would wait for what does not come. No processor is idle
        meanwhile: the last round's effects begin.
        """
        if not self._caught_up.is_set() and self._waiting_records < self._most_records:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(self._last_seconds, _CATCH_UP_SECONDS)):
                    await self._caught_up.wait()
        self._caught_up.set()

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

    async def _decide(self, fetched: list[Fetched]) -> _Round:
        store = self._store()
        batches = self._batches(fetched)
        readers = [_PartitionReader(store, batch.partition, self._unstored) for batch in batches]
        records = sum(len(batch.records) for batch in batches)
        started = time.perf_counter()
        taken_ns = time.time_ns()
        now_ms = taken_ns // 1_000_000
        if records <= _INLINE_RECORDS:
            plans = self.pipeline.process_all(batches, readers, now_ms)
        else:
            self._decided.clear()
            try:
                plans = await asyncio.to_thread(self.pipeline.process_all, batches, readers, now_ms)
            finally:
                self._decided.set()
            self._fetches_left = _CATCH_UP_FETCHES
            self._caught_up.clear()
            self._last_seconds = time.perf_counter() - started
        self._metrics.stages["decide"].observe(time.perf_counter() - started)
        self._step("decided")
        self._numbers += 1
        writes = gather((batch.partition, plan.writes) for batch, plan in zip(batches, plans, strict=True))
        for partition, changed in writes.items():
            self._unstored.add(self._numbers, partition, changed)
        return _Round(self._numbers, fetched, batches, plans, writes, records, taken_ns, time.time_ns())

    async def _carry_out(self, one: _Round, before: _Round | None) -> None:
        """Make a decided round's effects real, in turn behind the round before it."""
        metrics, step = self._metrics, self._step
        watched = step is not no_fault
        outputs = self._outputs(one)
        asks = gather(item for plan in one.plans for item in plan.asks.items())
        async with self._producing:
            begun = time.perf_counter()
            producing_ns = time.time_ns()
            await self._deliver(_lists(outputs), (lambda: step("outputs_sent")) if watched else None)
            if asks:
                # An answer must not come before its case.
                await self._deliver(_lists(asks), (lambda: step("asks_sent")) if watched else None)
        step("outputs_acked")
        produced = time.perf_counter()
        produced_ns = time.time_ns()
        metrics.stages["produce"].observe(produced - begun)
        if before is not None:
            await before.logged.wait()
            produced = time.perf_counter()
        changes = (
            (self._changelog, partition, [(key, value, ()) for key, value in writes])
            for partition, writes in one.writes.items()
        )
        sent = (lambda: step("changelog_sent")) if watched else None
        # A user's or entity's records go together: what is restored has all of a change or nothing of it.
        offsets = await self._deliver(changes, sent, _owner)
        one.logged.set()
        step("changelog_acked")
        logged = time.perf_counter()
        metrics.stages["changelog"].observe(logged - produced)
        if before is not None:
            await before.finished.wait()
            logged = time.perf_counter()
        await self._write(one, offsets)
        metrics.stages["store"].observe(time.perf_counter() - logged)
        holds = {
            (batch.topic, batch.partition): plan.hold
            for batch, plan in zip(one.batches, one.plans, strict=True)
        }
        for item in one.fetched:
            hold = holds[item.topic, item.partition]
            item.done(item.records[-1].offset if hold is None else hold - 1)
        step("done")
        self.progress += one.records
        one.finished.set()
        metrics.batch_size.observe(one.records)
        metrics.cases.set(self.pipeline.waiting)
        if self._tracer is not None:
            times = RoundTimes(one.taken_ns, one.decided_ns, producing_ns, produced_ns, time.time_ns())
            self._tracer.trace(one.batches, one.plans, times)
        for batch, plan in zip(one.batches, one.plans, strict=True):
            self._count(plan)
            self._tell(batch, plan)
            if plan.other_source and batch.partition not in self._warned:
                self._warned.add(batch.partition)
                logger.warning(
                    "users' state of partition %d comes from another incarnation of %s: offsets are not "
                    "compared, and what was taken before is recognised by its transaction id",
                    batch.partition,
                    batch.topic,
                )

    async def _write(self, one: _Round, offsets: Mapping[tuple[str, int], int]) -> None:
        """Write a round's state to RocksDB."""
        store = self._store()
        for number, (partition, writes) in enumerate(one.writes.items()):
            if number == 1:
                self._step("part_stored")
            offset = offsets[self._changelog, partition]
            if len(writes) <= _INLINE_RECORDS:
                store.write(partition, writes, offset)
            else:
                await asyncio.to_thread(store.write, partition, writes, offset)
            self._unstored.drop(one.number, partition)
        self._step("stored")

    def _outputs(self, one: _Round) -> Sends:
        """Return what a round sends first."""
        topics = self._topics
        return gather(
            item
            for batch, plan in zip(one.batches, one.plans, strict=True)
            for item in (
                ((topics.alerts, batch.partition), plan.alerts),
                ((topics.decisions, batch.partition), plan.decisions),
                ((topics.dead_letters, batch.partition), plan.dead_letters),
                *plan.sends.items(),
            )
        )

    def _batches(self, fetched: list[Fetched]) -> list[Batch]:
        """Join the fetches of each partition, in their order."""
        records: dict[tuple[str, int], list[Record]] = {}
        for item in fetched:
            records.setdefault((item.topic, item.partition), []).extend(item.records)
        return [
            Batch(topic, partition, identity(f"{topic}:{self.topic_id}:{partition}"), part)
            for (topic, partition), part in records.items()
        ]

    def _count(self, plan: Plan) -> None:
        metrics = self._metrics
        for outcome, count in plan.outcomes.items():
            metrics.transactions[outcome].inc(count)
        for name, _ in plan.rejected:
            metrics.dead_letters.labels(name.split(".", 1)[0]).inc()
        metrics.replayed.inc(plan.replayed)
        metrics.unknown_fields.inc(plan.unknown_fields)
        for event, count in plan.hop.items():
            metrics.hop[event].inc(count)
        metrics.other_source.inc(plan.other_source)
        metrics.score.observe(plan.scores)
        metrics.see(plan.features, plan.scores)
        now_ms = time.time() * 1000
        for level, taken_ms, event_ms, _, _ in plan.alerted:
            metrics.alerts[level].inc()
            metrics.alert_latency.observe(max(0.0, now_ms - taken_ms) / 1000)
            metrics.event_to_alert.observe(max(0.0, now_ms - event_ms) / 1000)

    def _tell(self, batch: Batch, plan: Plan) -> None:
        """Log what was sent and is not everyday, as far as the log's budget goes."""
        now = time.monotonic()
        if plan.alerted:
            for alerted in plan.alerted[: self._alert_lines.take(len(plan.alerted), now)]:
                said: dict[str, object] = {
                    "transaction_id": alerted.transaction_id,
                    "risk_level": alerted.level.value,
                    "topic": self._topics.transactions,
                    "partition": batch.partition,
                    "offset": alerted.offset,
                }
                logger.info("alert sent", extra=said | _suppressed(self._alert_lines))
        if plan.rejected:
            for name, offset in plan.rejected[: self._refusal_lines.take(len(plan.rejected), now)]:
                said = {
                    # What a producer calls an attribute is a part of its data.
                    "field": name.split(".", 1)[0],
                    "topic": batch.topic,
                    "partition": batch.partition,
                    "offset": offset,
                }
                logger.warning(
                    "record refused, its dead letter sent", extra=said | _suppressed(self._refusal_lines)
                )


def _owner(record: Sendable) -> bytes:
    """Return whose state a changelog record belongs to."""
    key = record[0]
    assert key is not None
    return key[:-6]


def _lists(sends: Sends) -> Iterable[tuple[str, int, list[Message]]]:
    """Return records as they are delivered."""
    return ((topic, partition, messages) for (topic, partition), messages in sends.items())


def _suppressed(lines: LineBudget) -> dict[str, object]:
    """Return what a line says of the events before it that had none."""
    count = lines.told()
    return {"suppressed": count} if count else {}
