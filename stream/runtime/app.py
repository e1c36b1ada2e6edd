"""``build_app(settings)``: the Faust app with everything wired to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import faust
from faust.types.auth import SASLMechanism

from stream.brokers.admin import create_topics, records_behind, require_topics, topic_ids
from stream.errors import TopicMismatchError
from stream.events import RiskLevel
from stream.hop import owner_mark
from stream.monitoring.metrics import Metrics
from stream.pipeline import Pipeline, PipelineConfig
from stream.preview import Preview
from stream.profiled import HopTopics, ProfiledPipeline
from stream.runtime.cores import stay_on
from stream.runtime.delivery import Delivery
from stream.runtime.endpoint import Endpoint
from stream.runtime.faults import fault_from_environment
from stream.runtime.faust_seams import Assignor, HistoryStore, HistoryTable, PassThroughSchema, StreamApp
from stream.runtime.live_scoring import LiveScoring
from stream.runtime.ownership import Ownership
from stream.runtime.processor import Fetched, Processor
from stream.runtime.readings import drift_of, read
from stream.runtime.tracing import Tracer, build_tracer
from stream.runtime.warmup import warm_up
from stream.runtime.watchdog import Watchdog
from stream.scoring.bundle import Bundle
from stream.topics import HISTORY_TABLE, answers_topic, changelog_topic, questions_topic

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from stream.features.history import RecordReader
    from stream.settings import KafkaSettings, Settings

__all__ = ["Runtime", "aiokafka_config", "build_app", "build_runtime", "prepare"]

logger = logging.getLogger(__name__)

DAY_MS = 86_400_000

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


def pipeline_config(settings: Settings, bundle: Bundle) -> PipelineConfig:
    """Return the pipeline's part of the settings."""
    lateness_ms = int(settings.history.allowed_lateness_days * DAY_MS)
    trained_ms = bundle.allowed_lateness_ms
    if trained_ms is not None and trained_ms != lateness_ms:
        logger.warning(
            "the model was trained with an allowed lateness of %.3g days, this worker has %.3g",
            trained_ms / DAY_MS,
            settings.history.allowed_lateness_days,
        )
    return PipelineConfig(
        lateness_ms=lateness_ms,
        max_future_ms=int(settings.history.max_future_seconds * 1000),
        max_record_bytes=settings.max_record_bytes,
        alert_level=RiskLevel(settings.alert_level),
        max_reasons=settings.max_reasons,
        language=settings.language,
        decisions=settings.decisions.enabled,
        decision_features=settings.decisions.features,
        resident_bytes=settings.history.resident_mib << 20,
    )


def build_pipeline(settings: Settings, bundle: Bundle) -> Pipeline:
    """Return the pipeline that a bundle needs: in stages only where the model has profiles."""
    config = pipeline_config(settings, bundle)
    if not bundle.spec.entities:
        return Pipeline(bundle, config)
    topics = settings.topics
    hop = HopTopics(
        topics.transactions,
        topics.labels,
        questions_topic(settings),
        answers_topic(settings),
        topics.partitions,
    )
    return ProfiledPipeline(bundle, config, hop)


def consumed_topics(settings: Settings, pipeline: Pipeline) -> tuple[str, ...]:
    """Return the topics that a worker consumes, the transactions first."""
    if isinstance(pipeline, ProfiledPipeline):
        return pipeline.topics.names
    return (settings.topics.transactions,)


def ssl_context(kafka: KafkaSettings) -> ssl.SSLContext | None:
    """Return the TLS context of the settings, hostname check on, or None without TLS."""
    if kafka.security_protocol not in {"SSL", "SASL_SSL"}:
        return None
    context = ssl.create_default_context(cafile=None if kafka.ssl_ca_file is None else str(kafka.ssl_ca_file))
    if kafka.ssl_cert_file is not None and kafka.ssl_key_file is not None:
        context.load_cert_chain(str(kafka.ssl_cert_file), str(kafka.ssl_key_file))
    return context


def aiokafka_config(kafka: KafkaSettings) -> dict[str, Any]:
    """Return how to reach the broker, as keyword arguments of aiokafka's clients."""
    config: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap_servers.split(","),
        "security_protocol": kafka.security_protocol,
        "ssl_context": ssl_context(kafka),
    }
    if kafka.security_protocol.startswith("SASL"):
        config |= {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_plain_username": kafka.sasl_username,
            "sasl_plain_password": kafka.password(),
        }
    return config


def _faust_credentials(kafka: KafkaSettings) -> Any:
    context = ssl_context(kafka)
    if kafka.security_protocol.startswith("SASL"):
        return faust.SASLCredentials(
            username=kafka.sasl_username,
            password=kafka.password(),
            mechanism=SASLMechanism(kafka.sasl_mechanism),
            ssl_context=context,
        )
    return None if context is None else faust.SSLCredentials(context)


def _build_faust_app(settings: Settings) -> StreamApp:
    kafka = settings.kafka
    HistoryStore.block_cache_bytes = settings.rocksdb.block_cache_mib << 20
    HistoryStore.write_buffer_bytes = settings.rocksdb.write_buffer_mib << 20
    return StreamApp(
        settings.app_id,
        broker="kafka://" + ";".join(kafka.bootstrap_servers.split(",")),
        broker_credentials=_faust_credentials(kafka),
        store="rocksdb://",
        datadir=str(settings.state_dir),
        Table=HistoryTable,
        PartitionAssignor=Assignor,
        autodiscover=False,
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        topic_partitions=settings.topics.partitions,
        topic_replication_factor=settings.topics.replication_factor,
        table_standby_replicas=0,
        # The end offset of the embedded broker may lie behind the last acknowledged one, and upstream
        # takes that for a damaged store and dies (ConsistencyError).
        recovery_consistency_check=False,
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=kafka.group_instance_id,
        broker_max_poll_records=kafka.max_poll_records,
        broker_session_timeout=kafka.session_timeout_seconds,
        broker_rebalance_timeout=kafka.rebalance_timeout_seconds,
        broker_heartbeat_interval=min(2.0, kafka.session_timeout_seconds / 3),
        broker_request_timeout=max(kafka.request_timeout_seconds, kafka.session_timeout_seconds),
        broker_commit_interval=1.0,
        # Batches, not records. Fetches wait for room (see BatchConsumer.getmany), so this is never full.
        stream_buffer_maxsize=64,
        stream_wait_empty=True,
        worker_redirect_stdouts=False,
    )


def build_runtime(settings: Settings) -> Runtime:
    """Return a worker's parts, nothing started.

    Raises
    ------
    BundleError
        The model bundle cannot be used.
    ConfigError
        The process may not run on the core that it was told.
    """
    if settings.core is not None:
        stay_on(settings.core)
    step = fault_from_environment()
    bundle = Bundle.load(settings.bundle)
    pipeline = build_pipeline(settings, bundle)
    metrics = Metrics(
        bundle.model_version, bundle.spec.hash, bundle.trained_at_seconds, drift_of(settings, bundle)
    )
    kafka = settings.kafka
    delivery = Delivery(aiokafka_config(kafka), kafka.request_timeout_seconds, kafka.delivery_timeout_seconds)
    app = _build_faust_app(settings)
    schema = PassThroughSchema(allow_empty=True)
    source = app.topic(
        *consumed_topics(settings, pipeline), schema=schema, partitions=settings.topics.partitions
    )
    table = app.Table(
        HISTORY_TABLE,
        schema=schema,
        key_type=bytes,
        value_type=bytes,
        partitions=settings.topics.partitions,
        # In fetched batches; 1 would make Faust keep reading the changelog after recovery.
        recovery_buffer_size=2,
    )
    tracer = build_tracer(settings)
    processor = Processor(pipeline, delivery.deliver, lambda: table.data, settings, metrics, step, tracer)
    ownership = Ownership(settings, delivery, lambda: table.data)
    runtime = Runtime(settings, app, pipeline, processor, delivery, metrics, ownership, tracer)
    if settings.scoring.enabled:
        runtime.scoring = _live_scoring(runtime)
    metrics.measure_with(lambda: read(runtime, table.data))
    app.fetch_max_wait_ms = settings.kafka.fetch_max_wait_ms
    app.prepare = runtime.begin
    app.release = runtime.end
    app.settle = processor.settle
    app.room = processor.room
    if isinstance(pipeline, ProfiledPipeline):
        app.held_up = runtime.held_up
    app.resume = runtime.resume
    app.take_over = runtime.take_over
    app.on_fatal = runtime.fail
    app.on_committed = lambda: step("committed")
    app.on_recovered = runtime.count_recovered

    async def score(stream: Any) -> None:
        await _score(runtime, stream)

    app.agent(source, name="score")(score)
    return runtime


def _live_scoring(runtime: Runtime) -> LiveScoring:
    settings, config = runtime.settings, runtime.pipeline.config
    preview = Preview(
        runtime.pipeline.bundle,
        lateness_ms=config.lateness_ms,
        max_future_ms=config.max_future_ms,
        max_reasons=config.max_reasons,
        language=config.language,
    )
    return LiveScoring(
        settings.scoring,
        settings.topics.partitions,
        preview,
        runtime.histories,
        runtime.owners,
        runtime.count_prediction,
    )


async def _score(runtime: Runtime, stream: Any) -> None:
    """Hand fetched batches to the processor, which takes all that waits at once."""
    app, consumer, processor = runtime.app, runtime.app.consumer, runtime.processor
    scoring = runtime.scoring
    async for event in stream.events():
        if scoring is not None:
            for tp, records in event.value.items():
                scoring.notice(tp.partition, (record.key for record in records))
        generation = event.message.generation_id

        def still_ours(generation: int = generation) -> bool:
            return bool(generation == app.consumer_generation_id)

        processor.put(
            Fetched(
                tp.topic,
                tp.partition,
                records,
                still_ours,
                partial(consumer.done, tp, generation=generation),
            )
            for tp, records in event.value.items()
        )


def build_app(settings: Settings) -> StreamApp:
    """Return the Faust app of these settings, for people who know Faust."""
    return build_runtime(settings).app


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
