"""The watchdog: whether the broker is reachable, and whether waiting work makes progress.

It reads the ends of the worker's partitions from the broker itself, over the producer's connections, so it
notices a consumer that has stopped with work before it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from aiokafka import errors
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.structs import TopicPartition

from stream.errors import BrokerError, RiskStreamError, StalledError, TopicMismatchError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from aiokafka.client import AIOKafkaClient

    from stream.settings import WatchdogSettings

__all__ = ["Liveness", "Watchdog", "WorkerProbe", "log_ends"]


logger = logging.getLogger(__name__)
_LATEST: Final = -1
_EARLIEST: Final = -2
_NO_REPLICA: Final = -1

#: Isolation levels of a request for offsets: the end of the log, or the end of what is committed.
_READ_UNCOMMITTED: Final = 0
_READ_COMMITTED: Final = 1

#: How often the watchdog looks, and how often it compares topic ids, which takes a separate connection.
_LOOK_SECONDS: Final = 1.0

_TOPIC_SECONDS: Final = 15.0


async def log_ends(
    client: AIOKafkaClient,
    topic: str,
    partitions: Collection[int],
    *,
    earliest: bool = False,
    committed: bool = False,
) -> dict[int, int]:
    """Return the end offset of each partition (or its first offset), from its leader.

    Parameters
    ----------
    committed
        Return the last stable offset instead of the end: the first offset of the oldest open transaction.

    Raises
    ------
    aiokafka.errors.KafkaError
        A leader is unknown or does not answer.
    """
    nodes: dict[int, list[tuple[int, int]]] = {}
    for partition in partitions:
        leader = client.cluster.leader_for_partition(TopicPartition(topic, partition))
        if leader is None or leader < 0:
            await client.force_metadata_update()
            raise errors.LeaderNotAvailableError
        nodes.setdefault(leader, []).append((partition, _EARLIEST if earliest else _LATEST))
    found: dict[int, int] = {}
    for node, asked in nodes.items():
        level = _READ_COMMITTED if committed else _READ_UNCOMMITTED
        response = await client.send(node, OffsetRequest(_NO_REPLICA, level, [(topic, asked)]))
        for _, answers in response.topics:
            for partition, code, _, offset, *_ in answers:
                error_type = errors.for_code(code)
                if error_type is not errors.NoError:
                    await client.force_metadata_update()
                    raise error_type()
                found[partition] = offset
    return found


@dataclass(slots=True)
class Liveness:
    """Whether work makes progress, judged from observations; it has no clock.

    Attributes
    ----------
    stall_seconds:
        Work without progress for so long is a stall; for twice as long it ends the worker.
    """

    stall_seconds: float
    moved_at: float
    progress: int = -1

    def see(self, now: float, progress: int, *, waiting: bool) -> float:
        """Return for how many seconds there has been work and no progress."""
        if progress != self.progress or not waiting:
            self.progress = progress
            self.moved_at = now
        return now - self.moved_at


class WorkerProbe(Protocol):
    """The worker as the watchdog sees it."""

    @property
    def client(self) -> AIOKafkaClient:
        """The producer's client; the watchdog uses its connections."""

    @property
    def ready(self) -> bool:
        """Whether the worker consumes transactions; while it does not, restoring must make progress."""

    @property
    def ends_are_exact(self) -> bool:
        """Whether the broker reports exact ends of logs.

        The embedded broker may report an end before records that it has delivered.
        """

    def positions(self) -> Mapping[int, int | None]:
        """Return the offset up to which each assigned source partition is done, None before any commit."""

    def progress(self) -> int:
        """Return a number that changes with every record or restored change."""

    async def source_topic_id(self) -> str:
        """Return Kafka's current id of the source topic; empty on a broker without topic ids."""

    def on_lag(self, partition: int, records: int, in_transactions: int) -> None:
        """Take notice of how many records of a source partition wait to be read, or for open transactions."""


class Watchdog:
    """Watches a worker, and ends it if it cannot go on and does not notice."""

    def __init__(
        self, settings: WatchdogSettings, topic: str, probe: WorkerProbe, *, read_committed: bool = False
    ) -> None:
        self._read_committed = read_committed
        self._settings = settings
        self._topic = topic
        self._probe = probe
        self._first: dict[int, int] = {}
        #: For how many seconds work has waited without progress, and how much, as of the last look.
        self.stalled_seconds = 0.0
        self.lag: dict[int, int] = {}

    @property
    def healthy(self) -> bool:
        """Whether work makes progress, as of the last look."""
        return self.stalled_seconds < self._settings.stall_seconds

    async def run(self, expected_topic_id: str) -> None:
        """Watch until cancelled.

        Raises
        ------
        BrokerError
            The broker has not answered for longer than ``broker_gone_seconds``.
        StalledError
            Work has waited without progress for twice ``stall_seconds``.
        TopicMismatchError
            The source topic was recreated, or has lost its end.
        """
        now = answered_at = topic_at = time.monotonic()
        live = Liveness(self._settings.stall_seconds, now)
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            lag = 0
            reason = ""
            try:
                async with asyncio.timeout(self._settings.broker_gone_seconds):
                    lag = await self._lag()
                    answered_at = now = time.monotonic()
                    if expected_topic_id and now - topic_at >= _TOPIC_SECONDS:
                        topic_at = now
                        await self._compare(expected_topic_id)
            except TopicMismatchError:
                raise
            except (errors.KafkaError, RiskStreamError, TimeoutError, OSError) as error:
                reason = repr(error)
            now = time.monotonic()
            if now - answered_at > self._settings.broker_gone_seconds:
                raise BrokerError(
                    f"the broker has not responded for {now - answered_at:.0f} s ({reason}); nothing is "
                    "lost: restart the worker when the broker is back"
                )
            waiting = lag > 0 or not self._probe.ready
            self.stalled_seconds = live.see(now, self._probe.progress(), waiting=waiting)
            if self.stalled_seconds > 2 * self._settings.stall_seconds:
                raise StalledError(
                    f"{lag} records are waiting and none was processed for {self.stalled_seconds:.0f} s: "
                    "the worker exits so that its supervisor restarts it"
                )

    async def _lag(self) -> int:
        """Return how many records wait in this worker's partitions, and report them by partition."""
        positions = dict(self._probe.positions())
        client = self._probe.client
        if not positions:
            await client.fetch_all_metadata()  # only to hear from the broker
            return 0
        unknown = [partition for partition, at in positions.items() if at is None]
        missing = [partition for partition in unknown if partition not in self._first]
        if missing:
            self._first |= await log_ends(client, self._topic, missing, earliest=True)
        ends = await log_ends(client, self._topic, positions)
        readable = ends
        if self._read_committed:
            # In this order: a transaction that ends in between must not look like an end before its records.
            readable = await log_ends(client, self._topic, positions, committed=True)
        total = 0
        self.lag.clear()
        for partition, at in positions.items():
            start = self._first[partition] if at is None else at
            if ends[partition] < start and self._probe.ends_are_exact:
                raise TopicMismatchError(
                    f"{self._topic} [{partition}] ends at {ends[partition]}, before offset {start} that "
                    "the worker has already read: the broker has lost records, or the topic was recreated; "
                    "restart the worker, which finds the offset to continue from or says what to do"
                )
            waiting = self.lag[partition] = max(0, readable[partition] - start)
            self._probe.on_lag(partition, waiting, max(0, ends[partition] - readable[partition]))
            total += waiting
        return total

    async def _compare(self, expected: str) -> None:
        found = await self._probe.source_topic_id()
        if found != expected:
            raise TopicMismatchError(
                f"{self._topic} was deleted and recreated while this worker ran; restart the worker: "
                "it reads the topic from its beginning"
            )
