"""The life of a worker: prepare, take partitions over, fail, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from stream.control.skips import offsets_by_partition
from stream.errors import FencedError, TopicMismatchError
from stream.kafka.admin import create_topics, require_topics, topic_ids
from stream.kafka.fencing import PartitionFencing
from stream.kafka.offsets import records_behind
from stream.kafka.topics import HISTORY_TABLE, changelog_topic, responses_topic
from stream.monitoring import store_metrics
from stream.monitoring.watchdog import Watchdog
from stream.pipeline.entity_join.messages import ownership_marker
from stream.pipeline.idle_state import IdleState
from stream.pipeline.preview import Preview
from stream.runtime.commit import Commit
from stream.runtime.control import read_skips
from stream.runtime.fault_injection import no_fault
from stream.runtime.faust_adapter.config import build_faust_app
from stream.runtime.faust_adapter.hooks import WorkerHooks
from stream.runtime.micro_batch import Fetched
from stream.runtime.processor import Processor
from stream.runtime.uncommitted import UncommittedState
from stream.runtime.warmup import warm_up
from stream.serving.forwarding import PredictForwarder
from stream.serving.health import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Mapping

    from aiokafka.client import AIOKafkaClient

    from stream.kafka.producer import BatchProducer
    from stream.monitoring.metrics import Metrics
    from stream.monitoring.tracing import Tracer
    from stream.pipeline.transactions import TransactionPipeline
    from stream.runtime.faust_adapter.store import RocksDBStore
    from stream.settings import Settings
    from stream.state.store import StateReader

__all__ = ["Runtime", "prepare"]

logger = logging.getLogger(__name__)

#: The worker fetches no more transactions while this many are pending: memory does not grow with a slow
#: entity.
_MAX_PENDING: Final = 20_000

#: How often a worker renews its ownership of changelog partitions. Brokers forget after a day by default.
_RENEW_SECONDS: Final = 4 * 3600.0

#: How long a stop waits for pending transactions; the next start decides the rest.
_LAST_RESPONSES_SECONDS: Final = 1.5


class Runtime(WorkerHooks):
    """A worker's parts, wired to one another; the Faust app calls it through :class:`.WorkerHooks`.

    Attributes
    ----------
    fatal:
        The error that ended processing; None before.
    on_fatal_error:
        Called when that happens. Without it, the Faust app crashes with the error.
    prepared:
        Whether the topics have been checked.
    stopping:
        Whether the worker consumes no more transactions.
    skips:
        The offsets that an operator asked to skip, by topic and partition.
    """

    def __init__(
        self,
        settings: Settings,
        pipeline: TransactionPipeline,
        producer: BatchProducer,
        metrics: Metrics,
        tracer: Tracer | None = None,
        step: Callable[[str], None] = no_fault,
        idle: IdleState | None = None,
    ) -> None:
        self.settings = settings
        self.pipeline = pipeline
        self.producer = producer
        self.metrics = metrics
        self.tracer = tracer
        self._step = step
        self.recovered = 0
        self.fatal: BaseException | None = None
        self.on_fatal_error: Callable[[], None] | None = None
        self.prepared = False
        self.stopping = False
        self.skips: Mapping[tuple[str, int], Collection[int]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.app, source, self._table = build_faust_app(settings, pipeline.consumed_topics, self)
        self.app.agent(source, name="score")(self._consume)
        self.fencing = PartitionFencing(settings, producer, self._store)
        uncommitted = UncommittedState()
        self.commit = Commit(producer.deliver, self._store, uncommitted, settings, metrics, step, tracer)
        self._idle_state = idle or IdleState({}, 0)
        self.processor = Processor(
            pipeline, self.commit, self._store, uncommitted, settings, metrics, self._idle_state,
            self._committed, step,
        )  # fmt: skip
        self.watchdog = Watchdog(
            settings.watchdog,
            settings.topics.transactions,
            self,
            read_committed=settings.kafka.isolation_level == "read_committed",
        )
        self.endpoint = Endpoint(settings.metrics, metrics.render, lambda: self.healthy, lambda: self.ready)
        self.scoring = self._forwarder() if settings.scoring.enabled else None
        metrics.measure_with(self._store_metrics)

    def _committed(self, partition: int) -> int | None:
        """Return the committed offset of a partition of the transactions, None if it is not known."""
        topic = self.settings.topics.transactions
        offset: int | None = self.app.consumer.committed_offset(topic, partition)
        return offset

    def _store(self) -> RocksDBStore:
        """Return the table's store; Faust makes it on first use."""
        store: RocksDBStore = self._table.data
        return store

    def _forwarder(self) -> PredictForwarder:
        config = self.pipeline.config
        preview = Preview(
            self.pipeline.bundle,
            lateness_ms=config.lateness_ms,
            times=config.times,
            max_reasons=config.max_reasons,
            language=config.language,
            user_ttl_ms=config.user_ttl_ms,
            card_numbers=config.card_numbers,
        )
        topics = self.settings.topics
        return PredictForwarder(
            self.settings.scoring,
            topics.partitions,
            topics.partitioner,
            preview,
            self.histories,
            self.owners,
            self._count_prediction,
        )

    # --- what the endpoints read -------------------------------------------------------------------

    @property
    def healthy(self) -> bool:
        """Whether nothing fatal has happened and waiting work makes progress."""
        return self.fatal is None and self.watchdog.healthy

    @property
    def ready(self) -> bool:
        """Whether the tables are restored and the worker consumes transactions."""
        return self.fatal is None and bool(self.app.tables.actives_ready) and not self.app.rebalancing

    def assigned(self) -> dict[int, Any]:
        """Return the assigned partitions of the source, with Faust's names of them."""
        topic = self.settings.topics.transactions
        return {tp.partition: tp for tp in self.app.consumer.assignment() if tp.topic == topic}

    def histories(self, partition: int) -> StateReader | None:
        """Return a reader of a partition's state, None if it is not assigned here or not restored."""
        # A read would open databases again that a stop has closed.
        if not self.ready or self.app.should_stop or partition not in self.assigned():
            return None
        return self.processor.reader(partition)

    def owners(self) -> dict[int, str]:
        """Return the address of each partition's worker, as of the last rebalance."""
        changelog = changelog_topic(self.settings)
        workers = self.app.router.table_metadata(HISTORY_TABLE)
        return {
            partition: address for address, held in workers.items() for partition in held.get(changelog, ())
        }

    def _count_prediction(self, end: str, seconds: float) -> None:
        """Count a request to the scoring endpoint."""
        self.metrics.predictions[end].inc()
        self.metrics.prediction_seconds.observe(seconds)

    def _store_metrics(self) -> Any:
        recovery = self.app.tables.recovery
        remaining = int(recovery.active_remaining_total()) if recovery.in_recovery else 0
        return store_metrics.read(
            self._store().databases(),
            recovery_remaining=max(0, remaining),
            stalled_seconds=self.watchdog.stalled_seconds,
            rebalances=int(self.app.rebalancing_count),
        )

    # --- what the watchdog reads -------------------------------------------------------------------

    @property
    def client(self) -> AIOKafkaClient:
        """The producer's client."""
        return self.producer.client

    @property
    def ends_are_exact(self) -> bool:
        """Whether the broker reports exact ends of logs: brokers with producer ids do."""
        return self.producer.idempotent

    def positions(self) -> dict[int, int | None]:
        """Return the offset up to which each assigned partition of the source is done."""
        if not self.ready:
            return {}
        return {partition: self.app.consumer.position_of(tp) for partition, tp in self.assigned().items()}

    def progress(self) -> int:
        """Return a number that changes with every committed record, restored change and rebalance."""
        return self.commit.progress + self.recovered + int(self.app.rebalancing_count)

    async def source_topic_id(self) -> str:
        """Return Kafka's current id of the source topic."""
        topic = self.settings.topics.transactions
        ids = await asyncio.to_thread(topic_ids, self.settings, [topic])
        return ids[topic]

    def on_lag(self, partition: int, records: int, in_transactions: int) -> None:
        """Set the lag metrics of a partition."""
        self.metrics.lag.labels(str(partition)).set(records)
        self.metrics.open_transactions.labels(str(partition)).set(in_transactions)

    # --- start and stop ----------------------------------------------------------------------------

    async def on_starting(self) -> None:
        """Start the producer, the processor, the watchdog and the endpoints before Faust's parts."""
        if not self.prepared:
            await asyncio.to_thread(prepare, self)
        topics = self.settings.topics
        outputs = (topics.alerts, topics.decisions, topics.dead_letters)
        await self.producer.start([*self.pipeline.consumed_topics, *outputs, changelog_topic(self.settings)])
        for work in (
            self.processor.run(),
            self.watchdog.run(self.processor.topic_id),
            self._renew_fences(),
        ):
            self._tasks.append(asyncio.ensure_future(self._guard(work)))
        if self.settings.metrics.enabled:
            await self.endpoint.start()
        if self.scoring is not None:
            await self.scoring.start()
            # Before the consumer joins its group: the group's metadata carries the address.
            self.app.conf.canonical_url = self.scoring.address

    async def _renew_fences(self) -> None:
        """Keep the brokers from forgetting who owns the changelog partitions."""
        changelog = changelog_topic(self.settings)
        while self.producer.idempotent:
            await asyncio.sleep(_RENEW_SECONDS)
            for partition in self.assigned():
                try:
                    await self.producer.renew(changelog, partition)
                except FencedError:
                    if partition in self.assigned():
                        raise  # otherwise a rebalance has given it to another worker meanwhile

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the processor or the watchdog; an error in it ends the worker and skips no batch."""
        try:
            await work
        except Exception as error:  # noqa: BLE001 - nothing may be skipped
            self.app.report(error)

    async def on_stopped(self) -> None:
        """Stop them."""
        for task in self._tasks:
            task.cancel()
        if self.scoring is not None:
            await self.scoring.stop()
        await self.endpoint.stop()
        await self.producer.stop()
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)

    def on_fatal(self, error: BaseException) -> bool:
        """End processing for good: the worker acknowledges nothing more, and the process stops."""
        if self.fatal is None:
            self.fatal = error
        if self.on_fatal_error is None:
            return False  # a worker that Faust runs ends as Faust does
        self.on_fatal_error()
        return True

    async def decide_pending(self) -> None:
        """Consume no more transactions, and give the pending ones a moment to be decided."""
        self.stopping = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_RESPONSES_SECONDS):
                while self.pipeline.backlog:  # noqa: ASYNC110 - the pipeline has no event loop
                    await asyncio.sleep(_LAST_RESPONSES_SECONDS / 100)

    # --- rebalances and fetches --------------------------------------------------------------------

    async def wait_for_capacity(self) -> None:
        """Wait until the processor's queue has room."""
        await self.processor.wait_for_capacity()

    async def drain(self) -> None:
        """Wait for the micro-batches in progress."""
        await self.processor.drain()

    async def take_over(self, assigned: set[Any]) -> None:
        """Become the one writer of the assigned changelog partitions.

        Raises
        ------
        TopicMismatchError
            The source has more partitions than the settings, or the group mixes two kinds of models.
        """
        partitions = self.settings.topics.partitions
        for tp in assigned:
            if tp.partition >= partitions:
                raise TopicMismatchError(
                    f"{tp.topic} has grown beyond {partitions} partitions, so keys no longer map to the "
                    "partitions of their histories: restore the number, or start a new deployment with "
                    "another app_id"
                )
        own = {tp.partition for tp in assigned if tp.topic == self.settings.topics.transactions}
        for topic in self.pipeline.consumed_topics:
            if {tp.partition for tp in assigned if tp.topic == topic} != own:
                raise TopicMismatchError(
                    "workers of this group serve models with and without profiles, and the two kinds "
                    "assign topics differently: stop all of them, and start them with one kind of model"
                )
        changelog, responses = changelog_topic(self.settings), responses_topic(self.settings)
        taken = [tp.partition for tp in assigned if tp.topic == changelog]
        await self.fencing.take(taken)
        if responses in self.pipeline.consumed_topics and self.producer.idempotent:
            # Behind the fence: a record that a former owner writes after it is consumed again.
            markers = await self.producer.deliver(
                (responses, partition, [ownership_marker()]) for partition in taken
            )
            for partition in taken:
                epoch = self.producer.epoch(changelog, partition)
                self.pipeline.on_partition_owned(partition, epoch, markers[responses, partition])

    def resume(self, assigned: set[Any]) -> None:
        """Let micro-batches begin again after a rebalance."""
        topic = self.settings.topics.transactions
        partitions = sorted(tp.partition for tp in assigned if tp.topic == topic)
        self.metrics.assigned.set(len(partitions))
        self.metrics.lag.clear()  # partitions that went to other workers
        self.metrics.open_transactions.clear()
        logger.info("partitions assigned", extra={"topic": topic, "partitions": partitions})
        self.pipeline.on_rebalanced()
        self._idle_state.on_rebalanced()
        self.processor.resume()

    def paused_topic(self) -> str | None:
        """Return the transactions' topic while too many of them are pending, and before a stop."""
        paused = self.stopping or self.pipeline.backlog >= _MAX_PENDING
        return self.settings.topics.transactions if paused else None

    def on_committed(self) -> None:
        """Reach the step ``committed`` of the fault injection."""
        self._step("committed")

    def skipped_offsets(self, topic: str, partition: int) -> Collection[int]:
        """Return the offsets that an operator asked to skip, as of the worker's start."""
        return self.skips.get((topic, partition), ())

    def on_skipped(self, topic: str, records: int) -> None:  # noqa: ARG002 - the log line has the topic
        """Count skipped records."""
        self.metrics.skipped.inc(records)

    def on_expired(self, topic: str, records: int) -> None:  # noqa: ARG002 - the log line has the topic
        """Count offsets that were deleted before they were read."""
        self.metrics.expired.inc(records)

    def on_recovered(self, records: int) -> None:
        """Count restored changelog records."""
        self.recovered += records
        self.metrics.recovered.inc(records)

    async def _consume(self, stream: Any) -> None:
        """Hand fetched batches to the processor."""
        app, consumer, scoring = self.app, self.app.consumer, self.scoring
        source = self.settings.topics.transactions
        async for event in stream.events():
            if scoring is not None:
                for tp, records in event.value.items():
                    scoring.notice(tp.partition, (record.key for record in records))
            generation = event.message.generation_id

            def still_ours(generation: int = generation) -> bool:
                return bool(generation == app.consumer_generation_id)

            self.processor.put(
                Fetched(
                    tp.topic,
                    tp.partition,
                    records,
                    consumer.incarnation(tp) if tp.topic == source else self.processor.topic_id,
                    still_ours,
                    partial(consumer.done, tp, generation=generation),
                )
                for tp, records in event.value.items()
            )


def prepare(runtime: Runtime) -> None:
    """Create and check the topics, read the ids of this incarnation of them, and compile everything.

    Raises
    ------
    BrokerError
        The broker cannot be reached, or a topic differs from the settings.
    """
    settings, consumed = runtime.settings, runtime.pipeline.consumed_topics
    if settings.topics.create:
        create_topics(settings)
    require_topics(settings)
    responses = responses_topic(settings)
    if responses not in consumed:
        undecided = records_behind(settings, responses)
        if undecided:
            raise TopicMismatchError(
                f"{responses} holds {undecided} records of transactions that a model with profiles "
                "has not decided yet, and this model has no profiles: start a worker with the "
                "previous model until riskstream_pending_transactions is 0, or delete the topic to "
                "discard them"
            )
    source, changelog = settings.topics.transactions, changelog_topic(settings)
    ids = topic_ids(settings, [*consumed, changelog])
    runtime.processor.topic_id = runtime.fencing.source_id = ids[source]
    runtime.topic_ids = ids
    runtime.changelog_id = ids[changelog]
    runtime.skips = offsets_by_partition(read_skips(settings))
    warm_up(runtime.pipeline)
    runtime.prepared = True
