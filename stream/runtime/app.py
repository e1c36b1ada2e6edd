"""``build_app(settings)``: the Faust app with everything wired to it."""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import faust
from faust.types.auth import SASLMechanism

from stream.brokers.admin import create_topics, require_topics, topic_ids
from stream.events import RiskLevel
from stream.monitoring.metrics import Metrics
from stream.pipeline import Pipeline, PipelineConfig
from stream.runtime.delivery import Delivery
from stream.runtime.endpoint import Endpoint
from stream.runtime.faults import fault_from_environment
from stream.runtime.faust_seams import HistoryStore, HistoryTable, PassThroughSchema, StreamApp
from stream.runtime.processor import Fetched, Processor
from stream.runtime.warmup import warm_up
from stream.scoring.bundle import Bundle
from stream.topics import HISTORY_TABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from stream.settings import KafkaSettings, Settings

__all__ = ["Runtime", "aiokafka_config", "build_app", "build_runtime", "prepare"]

logger = logging.getLogger(__name__)

DAY_MS = 86_400_000


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
    """

    settings: Settings
    app: StreamApp
    pipeline: Pipeline
    processor: Processor
    delivery: Delivery
    metrics: Metrics
    endpoint: Endpoint = field(init=False)
    fatal: BaseException | None = None
    on_fatal: Callable[[], None] | None = None
    prepared: bool = False
    processing: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.endpoint = Endpoint(
            self.settings.metrics, self.metrics.render, lambda: self.fatal is None, lambda: self.ready
        )

    async def fail(self, error: BaseException) -> None:
        """End processing for good: nothing is acknowledged any more, and the process stops."""
        self.fatal = error
        if self.on_fatal is not None:
            self.on_fatal()
        else:
            await self.app.crash(error)

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
        decisions=settings.decisions.enabled,
        decision_features=settings.decisions.features,
        resident_bytes=settings.history.resident_mib << 20,
    )


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
        broker_max_poll_records=kafka.max_poll_records,
        broker_session_timeout=kafka.session_timeout_seconds,
        broker_rebalance_timeout=kafka.rebalance_timeout_seconds,
        broker_heartbeat_interval=min(2.0, kafka.session_timeout_seconds / 3),
        broker_request_timeout=max(kafka.request_timeout_seconds, kafka.session_timeout_seconds),
        broker_commit_interval=1.0,
        # Batches, not records: few may wait, or memory grows with the lag.
        stream_buffer_maxsize=8,
        stream_wait_empty=True,
        worker_redirect_stdouts=False,
    )


def build_runtime(settings: Settings) -> Runtime:
    """Return a worker's parts, nothing started.

    Raises
    ------
    BundleError
        The model bundle cannot be used.
    """
    step = fault_from_environment()
    bundle = Bundle.load(settings.bundle)
    pipeline = Pipeline(bundle, pipeline_config(settings, bundle))
    metrics = Metrics(bundle.model_version, bundle.spec.hash)
    delivery = Delivery(aiokafka_config(settings.kafka), settings.kafka.request_timeout_seconds)
    app = _build_faust_app(settings)
    schema = PassThroughSchema(allow_empty=True)
    source = app.topic(settings.topics.transactions, schema=schema, partitions=settings.topics.partitions)
    table = app.Table(
        HISTORY_TABLE,
        schema=schema,
        key_type=bytes,
        value_type=bytes,
        partitions=settings.topics.partitions,
        # In fetched batches; 1 would make Faust keep reading the changelog after recovery.
        recovery_buffer_size=2,
    )
    processor = Processor(pipeline, delivery.deliver, lambda: table.data, settings, metrics, step)
    runtime = Runtime(settings, app, pipeline, processor, delivery, metrics)
    app.fetch_max_wait_ms = settings.kafka.fetch_max_wait_ms
    app.settle = processor.settle

    def resume(assigned: set[Any]) -> None:
        mine = [tp for tp in assigned if tp.topic == settings.topics.transactions]
        metrics.assigned.set(len(mine))
        metrics.lag.clear()  # what is left of partitions that have gone
        processor.resume()

    app.resume = resume
    app.on_committed = lambda: step("committed")
    app.on_recovered = metrics.recovered.inc

    async def score(stream: Any) -> None:
        await _score(runtime, stream)

    app.agent(source, name="score")(score)

    async def begin() -> None:
        if not runtime.prepared:
            await asyncio.to_thread(prepare, runtime)
        await delivery.start()
        runtime.processing = asyncio.ensure_future(_process(runtime))
        if settings.metrics.enabled:
            await runtime.endpoint.start()

    async def end() -> None:
        if runtime.processing is not None:
            runtime.processing.cancel()
        await runtime.endpoint.stop()
        await delivery.stop()

    app.prepare = begin
    app.release = end
    return runtime


async def _score(runtime: Runtime, stream: Any) -> None:
    """Hand fetched batches to the processor, which takes all that waits at once."""
    app, consumer = runtime.app, runtime.app.consumer
    async for event in stream.events():
        message = event.message

        def still_ours(generation: int = message.generation_id) -> bool:
            return bool(generation == app.consumer_generation_id)

        def done(message: Any = message) -> None:
            consumer.done(message)
            highwater = consumer.highwater(message.tp) or 0
            runtime.metrics.lag.labels(str(message.partition)).set(max(0, highwater - message.offset - 1))

        await runtime.processor.put(
            Fetched(message.topic, message.partition, message.value, still_ours, done)
        )


async def _process(runtime: Runtime) -> None:
    """Run the processor; whatever goes wrong in it ends the worker, never a batch."""
    try:
        await runtime.processor.run()
    except Exception as error:  # noqa: BLE001 - nothing may be skipped
        await runtime.fail(error)


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
    source = settings.topics.transactions
    runtime.processor.topic_id = topic_ids(settings, [source])[source]
    warm_up(runtime.pipeline)
    runtime.prepared = True
