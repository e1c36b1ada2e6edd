"""The processor and the commit protocol: the order of effects, and who waits for whom."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import pytest

from stream.errors import BrokerError
from stream.features.windows.records import head_key
from stream.monitoring.metrics import Metrics
from stream.pipeline.effects import PipelineConfig
from stream.pipeline.entity_join.messages import CODES
from stream.pipeline.idle_state import IdleState
from stream.pipeline.transactions import TransactionPipeline
from stream.runtime.commit import Commit
from stream.runtime.micro_batch import INLINE_RECORDS, Fetched
from stream.runtime.processor import Processor
from stream.runtime.uncommitted import UncommittedState
from stream.settings import Settings
from stream.state.store import MemoryStore
from support.bundles import made_bundle
from support.pipelines import DAY, NOW, parsed, record, transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from stream.events.records import ConsumerRecord

TOPIC, DECISIONS, CHANGELOG = "transactions", "risk-decisions", "t-history-changelog"


@dataclass
class Broker:
    """Takes records in memory, and acknowledges those of a topic only while its gate is open."""

    log: list[tuple[Any, ...]]
    records: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    closed: dict[str, asyncio.Event] = field(default_factory=dict)
    fails: str = ""

    async def deliver(
        self, records: Iterable[tuple[str, int, Sequence[Any]]], *_: Any
    ) -> dict[tuple[str, int], int]:
        offsets = {}
        for topic, partition, some in records:
            if topic == self.fails:
                raise BrokerError("not acknowledged")
            self.log.append(("sent", topic, len(some)))
            if topic in self.closed:
                await self.closed[topic].wait()
            self.records[topic] += some
            offsets[topic, partition] = len(self.records[topic]) - 1
            self.log.append(("acknowledged", topic))
        return offsets


@dataclass
class Database:
    log: list[tuple[Any, ...]]
    partitions: dict[int, MemoryStore] = field(default_factory=lambda: defaultdict(MemoryStore))

    def read(self, partition: int, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        return self.partitions[partition].read(keys)

    def scan(self, partition: int, start: bytes, count: int) -> list[tuple[bytes, bytes]]:
        return sorted(item for item in self.partitions[partition].items() if item[0] >= start)[:count]

    def write(
        self, partition: int, writes: Iterable[tuple[bytes, bytes | None]], changelog_offset: int
    ) -> None:
        self.log.append(("stored", changelog_offset))
        self.partitions[partition].write(list(writes))


class Worker:
    """A processor over a broker and a database in memory, with a log of what happens in which order."""

    def __init__(self, idle: IdleState | None = None, **kafka: Any) -> None:
        settings = Settings(app_id="t", kafka=kafka, decisions={"features": True})
        self.log: list[tuple[Any, ...]] = []
        self.broker, self.database = Broker(self.log), Database(self.log)
        bundle = made_bundle()
        metrics = Metrics(bundle.model_version, bundle.spec.hash)
        uncommitted = UncommittedState()
        self.commit = Commit(self.broker.deliver, lambda: self.database, uncommitted, settings, metrics)
        self.processor = Processor(
            TransactionPipeline(bundle, PipelineConfig(decision_features=True)),
            self.commit,
            lambda: self.database,
            uncommitted,
            settings,
            metrics,
            idle or IdleState({}, 0),
            lambda _: 10**9,
        )
        self.metrics = metrics
        self.ours = True

    def put(self, records: list[ConsumerRecord], partition: int = 0) -> None:
        self.processor.put(
            [Fetched(TOPIC, partition, records, "", lambda: self.ours, partial(self._done, partition))]
        )

    def _done(self, partition: int, offset: int) -> None:
        self.log.append(("done", partition, offset))

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the event loop go on until a condition holds; fails with an error of the processor."""
        async with asyncio.timeout(60):
            while not condition():
                if self.running.done():
                    self.running.result()
                await asyncio.sleep(0)

    async def until_done(self, offset: int) -> None:
        await self.until(lambda: ("done", 0, offset) in self.log)

    async def __aenter__(self) -> Self:
        self.running = asyncio.ensure_future(self.processor.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)


def records(first: int, count: int, user: str = "u1", begin_ms: int = NOW - DAY) -> list[ConsumerRecord]:
    return [
        record(at, transaction(at, user, event_time=begin_ms + at * 1_000), user.encode())
        for at in range(first, first + count)
    ]


def test_a_record_is_done_when_all_of_its_effects_are_durable() -> None:
    async def scenario() -> None:
        async with Worker() as worker:
            worker.put(records(0, 3))
            await worker.until_done(2)
            steps = [step for step in worker.log if step[1] != "risk-alerts"]
            assert steps == [
                ("sent", DECISIONS, 3),
                ("acknowledged", DECISIONS),
                ("sent", CHANGELOG, 1),
                ("acknowledged", CHANGELOG),
                ("stored", 0),
                ("done", 0, 2),
            ]
            assert worker.commit.progress == 3

    asyncio.run(scenario())


@pytest.mark.parametrize("topic", [DECISIONS, CHANGELOG])
def test_nothing_follows_an_acknowledgement_that_does_not_come(topic: str) -> None:
    async def scenario() -> None:
        async with Worker() as worker:
            gate = worker.broker.closed[topic] = asyncio.Event()
            worker.put(records(0, 3))
            await worker.until(lambda: worker.log and worker.log[-1][:2] == ("sent", topic))
            for _ in range(50):
                await asyncio.sleep(0)
            assert worker.log[-1][:2] == ("sent", topic)
            assert not worker.database.partitions[0]
            assert worker.commit.progress == 0
            gate.set()
            await worker.until_done(2)

    asyncio.run(scenario())


@pytest.mark.parametrize("topic", [DECISIONS, CHANGELOG])
def test_an_error_ends_the_processor_and_nothing_is_done(topic: str) -> None:
    async def scenario() -> None:
        worker = Worker()
        worker.broker.fails = topic
        async with worker:
            worker.put(records(0, 3))
            with pytest.raises(BrokerError, match="not acknowledged"):
                await worker.running
        assert not any(step[0] in {"done", "stored"} for step in worker.log)
        assert worker.commit.progress == 0

    asyncio.run(scenario())


def test_micro_batches_overlap_and_no_step_overtakes_the_same_step_of_the_one_before() -> None:
    async def scenario() -> None:
        async with Worker() as worker:
            gate = worker.broker.closed[CHANGELOG] = asyncio.Event()
            worker.put(records(0, 2))
            await worker.until(lambda: ("sent", CHANGELOG, 1) in worker.log)
            # Many records do not wait for the end of the first micro-batch: they are decided, and produced.
            more = INLINE_RECORDS + 6
            worker.put(records(2, more))
            await worker.until(lambda: ("sent", DECISIONS, more) in worker.log)
            for _ in range(50):
                await asyncio.sleep(0)
            assert [step for step in worker.log if step[0] == "sent" and step[1] == CHANGELOG] == [
                ("sent", CHANGELOG, 1)
            ]
            # Each sees the state that the one before has decided and not stored.
            assert not worker.database.partitions[0]
            gate.set()
            await worker.until_done(1 + more)
            counts = [one["features"]["lifetime_count"] for one in parsed(worker.broker.records[DECISIONS])]
            assert counts == [float(at) for at in range(1, 3 + more)]
            stored = [step[1] for step in worker.log if step[0] == "stored"]
            assert stored == sorted(stored)
            assert [step for step in worker.log if step[0] == "done"] == [
                ("done", 0, 1),
                ("done", 0, 1 + more),
            ]

    asyncio.run(scenario())


def test_a_few_records_wait_for_the_micro_batch_in_progress_and_go_together() -> None:
    async def scenario() -> None:
        async with Worker() as worker:
            gate = worker.broker.closed[DECISIONS] = asyncio.Event()
            worker.put(records(0, 1))
            await worker.until(lambda: ("sent", DECISIONS, 1) in worker.log)
            for at in range(1, 9):
                worker.put(records(at, 1))
            for _ in range(50):
                await asyncio.sleep(0)
            assert [step for step in worker.log if step[:2] == ("sent", DECISIONS)] == [
                ("sent", DECISIONS, 1)
            ]
            gate.set()
            await worker.until_done(8)
            assert ("sent", DECISIONS, 8) in worker.log

    asyncio.run(scenario())


def test_fetching_waits_while_two_micro_batches_are_queued() -> None:
    async def scenario() -> None:
        async with Worker(max_poll_records=10) as worker:
            gate = worker.broker.closed[DECISIONS] = asyncio.Event()
            worker.put(records(0, 1))
            await worker.until(lambda: ("sent", DECISIONS, 1) in worker.log)
            worker.put(records(1, 19))
            await worker.processor.wait_for_capacity()  # there is room for one more
            worker.put(records(20, 1))
            waiting = asyncio.ensure_future(worker.processor.wait_for_capacity())
            for _ in range(50):
                await asyncio.sleep(0)
            assert not waiting.done()
            gate.set()
            await waiting
            await worker.until_done(20)

    asyncio.run(scenario())


def test_a_rebalance_waits_for_what_is_in_progress_and_drops_what_is_queued() -> None:
    async def scenario() -> None:
        async with Worker() as worker:
            gate = worker.broker.closed[CHANGELOG] = asyncio.Event()
            worker.put(records(0, 2))
            await worker.until(lambda: ("sent", CHANGELOG, 1) in worker.log)
            worker.put(records(2, 5))
            drained = asyncio.ensure_future(worker.processor.drain())
            for _ in range(50):
                await asyncio.sleep(0)
            assert not drained.done()
            gate.set()
            await drained
            assert worker.log[-1] == ("done", 0, 1)
            # What was fetched before the rebalance and comes only now belongs to nobody.
            worker.ours = False
            worker.put(records(2, 5))
            worker.processor.resume()
            for _ in range(50):
                await asyncio.sleep(0)
            assert worker.log[-1] == ("done", 0, 1)
            worker.ours = True
            worker.put(records(2, 5))
            await worker.until_done(6)
            assert len(worker.broker.records[DECISIONS]) == 7

    asyncio.run(scenario())


def test_deletions_of_idle_users_go_the_way_of_every_change() -> None:
    async def scenario() -> None:
        idle = IdleState({CODES["user"]: 40 * DAY}, 3 * DAY)
        async with Worker(idle) as worker:
            begin = NOW - 90 * DAY
            worker.put(records(0, 100, "gone", begin))
            await worker.until_done(99)
            assert head_key(b"gone") in worker.database.partitions[0]
            # Slices are a second apart: the next one comes with some micro-batch of another user.
            at = 100
            while head_key(b"gone") in worker.database.partitions[0]:
                worker.put(records(at, 1, "busy"))
                await worker.until_done(at)
                at += 1
            last = {key: value for key, value, *_ in worker.broker.records[CHANGELOG]}
            assert {key[:-6] for key in last if last[key] is not None} == {b"busy"}
            assert {key[:-6] for key in worker.database.partitions[0]} == {b"busy"}
            assert worker.metrics.forgotten["user"]._value.get() == 1

    asyncio.run(scenario())
