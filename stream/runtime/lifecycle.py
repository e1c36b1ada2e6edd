"""lifecycle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stream.errors import TopicMismatchError
from stream.kafka.admin import create_topics, records_behind, require_topics, topic_ids
from stream.kafka.topics import HISTORY_TABLE, answers_topic, changelog_topic
from stream.monitoring.watchdog import Watchdog
from stream.pipeline.entity_join.messages import owner_mark
from stream.pipeline.entity_join.topology import ProfiledPipeline
from stream.runtime.warmup import warm_up
from stream.serving.health import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from stream.kafka.fencing import Ownership
    from stream.kafka.producer import Delivery
    from stream.monitoring.metrics import Metrics
    from stream.monitoring.tracing import Tracer
    from stream.pipeline.transactions import Pipeline
    from stream.runtime.faust_adapter.app import StreamApp
    from stream.runtime.processor import Processor
    from stream.serving.forwarding import LiveScoring
    from stream.settings import Settings
    from stream.state.store import RecordReader


logger = logging.getLogger(__name__)

#: Transactions that may wait for answers before no more are fetched: memory does not grow with a slow entity.
_MOST_WAITING = 20_000

#: How long a stop waits for answers; what is undecided then is decided after the next start.
_LAST_ANSWERS_SECONDS = 1.5


@dataclass(slots=True)
class Runtime:
    """A worker's parts.

    Attributes
    ----------
    fatal:
        The error that ended processing, once there is one.
    on_fatal:
        Called when that happens; without it, the Faust app crashes with the error.
    prepared:
        Whether the topics have been checked.
    stopping:
        Whether no more transactions are to be taken.
    """

    settings: Settings
    app: StreamApp
    pipeline: Pipeline
    processor: Processor
    delivery: Delivery
    metrics: Metrics
    ownership: Ownership
    tracer: Tracer | None = None
    scoring: LiveScoring | None = None
    endpoint: Endpoint = field(init=False)
    watchdog: Watchdog = field(init=False)
    recovered: int = 0
    fatal: BaseException | None = None
    on_fatal: Callable[[], None] | None = None
    prepared: bool = False
    stopping: bool = False
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.endpoint = Endpoint(
            self.settings.metrics, self.metrics.render, lambda: self.healthy, lambda: self.ready
        )
        topics = self.settings.topics

        def on_lag(partition: int, records: int) -> None:
            self.metrics.lag.labels(str(partition)).set(records)

        async def topic_id() -> str:
            found = await asyncio.to_thread(topic_ids, self.settings, [topics.transactions])
            return found[topics.transactions]

        self.watchdog = Watchdog(
            self.settings.watchdog,
            topics.transactions,
            lambda: self.delivery.client,
            self.positions,
            lambda: self.processor.progress + self.recovered + int(self.app.rebalancing_count),
            lambda: self.ready,
            topic_id,
            on_lag,
            lambda: self.delivery.idempotent,
        )

    def assigned(self) -> dict[int, Any]:
        """Return the source partitions that are this worker's, with Faust's names of them."""
        topic = self.settings.topics.transactions
        return {tp.partition: tp for tp in self.app.consumer.assignment() if tp.topic == topic}

    def histories(self, partition: int) -> RecordReader | None:
        """Return what reads a partition's histories, None where they are not here or not restored."""
        # A read would open databases again that a stop has closed.
        if not self.ready or self.app.should_stop or partition not in self.assigned():
            return None
        return self.processor.reader(partition)

    def owners(self) -> dict[int, str]:
        """Return the address of each partition's worker, as the last rebalance left them."""
        changelog = changelog_topic(self.settings)
        workers = self.app.router.table_metadata(HISTORY_TABLE)
        return {
            partition: address for address, held in workers.items() for partition in held.get(changelog, ())
        }

    def count_prediction(self, end: str, seconds: float) -> None:
        """Count a request to the scoring endpoint."""
        self.metrics.predictions[end].inc()
        self.metrics.prediction_seconds.observe(seconds)

    def positions(self) -> dict[int, int | None]:
        """Return the offset up to which each assigned partition of the source is done."""
        if not self.ready:
            return {}
        return {partition: self.app.consumer.position_of(tp) for partition, tp in self.assigned().items()}

    def fail(self, error: BaseException) -> None:
        """End processing for good: nothing is acknowledged any more, and the process stops."""
        if self.fatal is None:
            self.fatal = error
        if self.on_fatal is not None:
            self.on_fatal()
        else:
            self.app.on_fatal = None  # a worker of Faust's own ends as Faust does
            self.tasks.append(asyncio.ensure_future(self.app.crash(error)))

    async def begin(self) -> None:
        """Start what must be there before Faust's parts."""
        if not self.prepared:
            await asyncio.to_thread(prepare, self)
        topics = self.settings.topics
        outputs = (topics.alerts, topics.decisions, topics.dead_letters)
        consumed = consumed_topics(self.settings, self.pipeline)
        await self.delivery.start([*consumed, *outputs, changelog_topic(self.settings)])
        for work in (self.processor.run(), self.watchdog.run(self.processor.topic_id)):
            self.tasks.append(asyncio.ensure_future(self._guard(work)))
        if self.settings.metrics.enabled:
            await self.endpoint.start()
        if self.scoring is not None:
            await self.scoring.start()
            # Before the consumer joins its group: it tells the others.
            self.app.conf.canonical_url = self.scoring.address

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the processor or the watchdog; whatever goes wrong in it ends the worker, never a batch."""
        try:
            await work
        except Exception as error:  # noqa: BLE001 - nothing may be skipped
            self.fail(error)

    async def end(self) -> None:
        """Stop it."""
        for task in self.tasks:
            task.cancel()
        if self.scoring is not None:
            await self.scoring.stop()
        await self.endpoint.stop()
        await self.delivery.stop()
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)

    async def take_over(self, assigned: set[Any]) -> None:
        """Become the one writer of the assigned changelog partitions.

        Raises
        ------
        TopicMismatchError
            The source has more partitions by now than there may be.
        """
        partitions = self.settings.topics.partitions
        for tp in assigned:
            if tp.partition >= partitions:
                raise TopicMismatchError(
                    f"{tp.topic} has grown beyond {partitions} partitions, and histories would not move "
                    "with their keys: restore the number, or start a new deployment with another app_id"
                )
        own = {tp.partition for tp in assigned if tp.topic == self.settings.topics.transactions}
        for topic in consumed_topics(self.settings, self.pipeline):
            if {tp.partition for tp in assigned if tp.topic == topic} != own:
                raise TopicMismatchError(
                    "workers of this group serve models with and without profiles, so that topics are shared "
                    "out differently: stop all of them, and start them with one kind of model"
                )
        changelog = changelog_topic(self.settings)
        taken = [tp.partition for tp in assigned if tp.topic == changelog]
        await self.ownership.take(taken)
        if isinstance(self.pipeline, ProfiledPipeline) and self.delivery.idempotent:
            # Behind the fence: what a former owner writes from here on was not safe, and is taken again.
            answers = answers_topic(self.settings)
            marks = await self.delivery.deliver((answers, partition, [owner_mark()]) for partition in taken)
            for partition in taken:
                epoch = self.delivery.epoch(changelog, partition)
                self.pipeline.own(partition, epoch, marks[answers, partition])

    def resume(self, assigned: set[Any]) -> None:
        """Let rounds begin again after a rebalance."""
        mine = [tp for tp in assigned if tp.topic == self.settings.topics.transactions]
        self.metrics.assigned.set(len(mine))
        self.metrics.lag.clear()  # what is left of partitions that have gone
        logger.info(
            "partitions assigned",
            extra={
                "topic": self.settings.topics.transactions,
                "partitions": sorted(tp.partition for tp in mine),
            },
        )
        self.pipeline.rebalanced()
        self.processor.resume()

    def held_up(self) -> str | None:
        """Return the transactions' topic while too many of them wait for answers, and before a stop."""
        crowded = self.stopping or self.pipeline.waiting >= _MOST_WAITING
        return self.settings.topics.transactions if crowded else None

    async def decide_waiting(self) -> None:
        """Take no more transactions, and give those that wait for answers a moment to be decided."""
        self.stopping = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_ANSWERS_SECONDS):
                while self.pipeline.waiting:  # noqa: ASYNC110 - the stages know of no event loop
                    await asyncio.sleep(_LAST_ANSWERS_SECONDS / 100)

    def recovery_remaining(self) -> int:
        """Return how many changelog records are to be restored; 0 outside of recovery."""
        recovery = self.app.tables.recovery
        return max(0, int(recovery.active_remaining_total())) if recovery.in_recovery else 0

    def count_recovered(self, records: int) -> None:
        """Count restored changelog records."""
        self.recovered += records
        self.metrics.recovered.inc(records)

    @property
    def healthy(self) -> bool:
        """Whether nothing fatal has happened and work, where there is some, goes on."""
        return self.fatal is None and self.watchdog.healthy

    @property
    def ready(self) -> bool:
        """Whether the tables are recovered and transactions are being taken."""
        return self.fatal is None and bool(self.app.tables.actives_ready) and not self.app.rebalancing


def consumed_topics(settings: Settings, pipeline: Pipeline) -> tuple[str, ...]:
    """Return the topics that a worker consumes, the transactions first."""
    if isinstance(pipeline, ProfiledPipeline):
        return pipeline.topics.names
    return (settings.topics.transactions,)


def prepare(runtime: Runtime) -> None:
    """Make and check the topics, learn which incarnation of the source this is, and compile everything.

    Raises
    ------
    BrokerError
        The broker cannot be reached, or a topic is not what the settings ask for.
    """
    settings = runtime.settings
    if settings.topics.create:
        create_topics(settings)
    require_topics(settings)
    if not isinstance(runtime.pipeline, ProfiledPipeline):
        undecided = records_behind(settings, answers_topic(settings))
        if undecided:
            raise TopicMismatchError(
                f"{answers_topic(settings)} holds {undecided} records of transactions that a model with "
                "profiles has not decided yet, and this model has none: start a worker with the former model "
                "until riskstream_waiting_cases is 0, or delete the topic to give them up"
            )
    source, changelog = settings.topics.transactions, changelog_topic(settings)
    ids = topic_ids(settings, [*consumed_topics(settings, runtime.pipeline), changelog])
    runtime.processor.topic_id = runtime.ownership.source_id = ids[source]
    runtime.app.topic_ids = ids
    runtime.app.changelog_id = ids[changelog]
    warm_up(runtime.pipeline)
    runtime.prepared = True
