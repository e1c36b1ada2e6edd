"""The watchdog's judgement, with time as an argument, and the watchdog itself on real brokers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from aiokafka import AIOKafkaProducer

from stream.errors import StalledError, TopicMismatchError
from stream.kafka import admin
from stream.kafka.clients import aiokafka_config
from stream.monitoring import watchdog
from stream.monitoring.watchdog import Liveness, Watchdog
from stream.settings import WatchdogSettings
from support.helpers import settings_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiokafka.client import AIOKafkaClient

    from stream.kafka.local.base import Broker


def test_work_without_progress_is_a_stall() -> None:
    live = Liveness(10, moved_at=100.0)
    assert live.see(101, 5, waiting=True) == 0  # the first look counts as progress
    assert live.see(105, 5, waiting=True) == 4
    assert live.see(120, 5, waiting=True) == 19
    assert live.see(121, 6, waiting=True) == 0


def test_no_work_is_no_stall() -> None:
    live = Liveness(10, moved_at=0.0)
    live.see(1, 5, waiting=True)
    assert live.see(100, 5, waiting=False) == 0
    assert live.see(103, 5, waiting=True) == 3  # from when the work came


class Probe:
    """A worker that reports these positions, and progress whenever it is asked if it makes any."""

    def __init__(self, client: AIOKafkaClient, *, moves: bool = False, ready: bool = True) -> None:
        self.client = client
        self.ready = ready
        self.ends_are_exact = True
        self.at: dict[int, int | None] = {0: 0}
        self.moves = moves
        self.steps = 0
        self.lags: list[tuple[int, int, int]] = []
        self.topic_id = "id"

    def positions(self) -> dict[int, int | None]:
        return self.at

    def progress(self) -> int:
        self.steps += self.moves
        return self.steps

    async def source_topic_id(self) -> str:
        return self.topic_id

    def on_lag(self, partition: int, records: int, in_transactions: int) -> None:
        self.lags.append((partition, records, in_transactions))


@pytest.fixture
def watch(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Probe]:
    """Let a watchdog look at a topic with three records until it ends or a condition holds."""
    monkeypatch.setattr(watchdog, "_LOOK_SECONDS", 0.05)

    def run(until: Callable[[Probe], bool] = lambda _: False, **of: Any) -> Probe:
        async def scenario() -> Probe:
            settings = settings_for(broker, topics={"partitions": 1})
            admin.create_topics(settings)
            producer = AIOKafkaProducer(**aiokafka_config(settings.kafka))
            await producer.start()
            try:
                for _ in range(3):
                    await producer.send_and_wait(settings.topics.transactions, b"x", partition=0)
                at = of.pop("at", 0)
                topic_id = of.pop("expected", "")
                probe = Probe(producer.client, **of)
                probe.at = {0: at}
                dog = Watchdog(WatchdogSettings(stall_seconds=1), settings.topics.transactions, probe)
                task = asyncio.ensure_future(dog.run(topic_id))
                async with asyncio.timeout(60):
                    while not task.done() and not until(probe):
                        await asyncio.wait({task}, timeout=0.01)
                if task.done():
                    task.result()
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                assert dog.healthy
                return probe
            finally:
                await producer.stop()

        return asyncio.run(scenario())

    return run


def test_a_worker_that_leaves_records_lying_is_ended(watch: Callable[..., Probe]) -> None:
    with pytest.raises(StalledError, match="3 records are waiting"):
        watch()


def test_a_worker_that_restores_without_progress_is_ended(watch: Callable[..., Probe]) -> None:
    with pytest.raises(StalledError, match="0 records are waiting"):
        watch(at=3, ready=False)


@pytest.mark.parametrize(("at", "moves"), [(3, False), (0, True), (None, True)])
def test_a_worker_with_nothing_to_do_or_with_progress_goes_on(
    watch: Callable[..., Probe], at: int | None, moves: bool
) -> None:
    # Far more looks than a stall takes.
    probe = watch(lambda probe: len(probe.lags) > 60, at=at, moves=moves)
    assert set(probe.lags) == {(0, 3 if at != 3 else 0, 0)}


def test_a_topic_that_ends_before_the_position_ends_the_worker(watch: Callable[..., Probe]) -> None:
    with pytest.raises(TopicMismatchError, match="ends at 3, before offset 7"):
        watch(at=7)


def test_a_topic_with_another_id_ends_the_worker(
    watch: Callable[..., Probe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "_TOPIC_SECONDS", 0.0)
    with pytest.raises(TopicMismatchError, match="deleted and recreated"):
        watch(at=3, expected="another id")
