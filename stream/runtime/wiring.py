"""``build_app(settings)``: the Faust app with everything wired to it."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from stream.events.models import RiskLevel
from stream.kafka.clients import aiokafka_config
from stream.kafka.fencing import Ownership
from stream.kafka.producer import Delivery
from stream.kafka.topics import HISTORY_TABLE, answers_topic, questions_topic
from stream.monitoring.metrics import Metrics
from stream.monitoring.store_metrics import read
from stream.monitoring.tracing import build_tracer
from stream.pipeline.effects import PipelineConfig
from stream.pipeline.entity_join.topology import HopTopics, ProfiledPipeline
from stream.pipeline.preview import Preview
from stream.pipeline.transactions import Pipeline
from stream.runtime.cpu_affinity import stay_on
from stream.runtime.fault_injection import fault_from_environment
from stream.runtime.faust_adapter.app import PassThroughSchema, StreamApp
from stream.runtime.faust_adapter.config import _build_faust_app
from stream.runtime.lifecycle import Runtime, consumed_topics
from stream.runtime.micro_batch import Fetched
from stream.runtime.processor import Processor
from stream.scoring.bundle import Bundle
from stream.serving.forwarding import LiveScoring

if TYPE_CHECKING:
    from stream.monitoring.drift import Drift
    from stream.settings import Settings


logger = logging.getLogger(__name__)
DAY_MS = 86_400_000


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
    metrics.measure_with(
        lambda: read(
            table.data.databases(),
            recovery_remaining=runtime.recovery_remaining(),
            stalled_seconds=runtime.watchdog.stalled_seconds,
            rebalances=int(app.rebalancing_count),
        )
    )
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


def drift_of(settings: Settings, bundle: Bundle) -> Drift | None:
    """Return what compares the stream with the bundle's training; None where it is off or has nothing."""
    if not settings.drift.enabled:
        return None
    # Not before it is wanted: river takes a second to import.
    from stream.monitoring.drift import Drift, choose_watched  # noqa: PLC0415

    try:
        watched = choose_watched(bundle.reference, bundle.training.get("gains", ()))
        return Drift(bundle.reference, bundle.spec.names, watched, settings.drift.window_transactions)
    except (KeyError, TypeError, ValueError) as error:
        logger.warning("drift is not measured: the bundle's reference statistics cannot be used: %r", error)
        return None
