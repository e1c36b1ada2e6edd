"""From settings to parts: the composition root of a worker."""

from __future__ import annotations

import logging
from datetime import date
from typing import TYPE_CHECKING

from stream.events.card_numbers import CardNumbers
from stream.events.fields import MS_PER_DAY
from stream.events.mapping import load_mapping
from stream.events.message_mapping import MessageMapping
from stream.events.models import RiskLevel
from stream.kafka.clients import aiokafka_config
from stream.kafka.producer import BatchProducer
from stream.kafka.topics import requests_topic, responses_topic
from stream.monitoring.metrics import Metrics
from stream.monitoring.tracing import build_tracer
from stream.pipeline.effects import PipelineConfig
from stream.pipeline.entity_join.messages import CODES, EntityJoinTopics
from stream.pipeline.entity_join.topology import EntityJoinPipeline
from stream.pipeline.idle_state import IdleState
from stream.pipeline.times import EventTimeLimits
from stream.pipeline.transactions import TransactionPipeline
from stream.runtime.cpu_affinity import pin_to_core
from stream.runtime.fault_injection import fault_from_environment
from stream.runtime.lifecycle import Runtime
from stream.scoring.bundle import Bundle, describe_ttl

if TYPE_CHECKING:
    from stream.monitoring.drift import Drift
    from stream.runtime.faust_adapter.app import StreamApp
    from stream.settings import Settings

__all__ = ["build_app", "build_pipeline", "build_runtime", "pipeline_config"]

logger = logging.getLogger(__name__)

_FIRST_DAY_MS = date(1970, 1, 1).toordinal() * MS_PER_DAY


def pipeline_config(settings: Settings, bundle: Bundle) -> PipelineConfig:
    """Return the settings of the pipeline."""
    lateness_ms = int(settings.history.allowed_lateness_days * MS_PER_DAY)
    trained_ms = bundle.allowed_lateness_ms
    if trained_ms is not None and trained_ms != lateness_ms:
        logger.warning(
            "the model was trained with an allowed lateness of %.3g days, this worker uses %.3g",
            trained_ms / MS_PER_DAY,
            settings.history.allowed_lateness_days,
        )
    user_ttl_ms = _ttl_ms(settings.history.user_ttl_days)
    if user_ttl_ms != bundle.user_ttl_ms:
        logger.warning(
            "the model was trained with a time to live of users of %s, this worker uses %s: their lifetime "
            "features differ",
            describe_ttl(bundle.user_ttl_ms),
            describe_ttl(user_ttl_ms),
        )
    return PipelineConfig(
        source_topic=settings.topics.transactions,
        lateness_ms=lateness_ms,
        times=EventTimeLimits(
            settings.history.min_event_time.toordinal() * MS_PER_DAY - _FIRST_DAY_MS,
            int(settings.history.max_future_seconds * 1000),
        ),
        max_record_bytes=settings.max_record_bytes,
        alert_level=RiskLevel(settings.alert_level),
        max_reasons=settings.max_reasons,
        language=settings.language,
        decisions=settings.decisions.enabled,
        decision_features=settings.decisions.features,
        cache_bytes=settings.history.cache_mib << 20,
        user_ttl_ms=user_ttl_ms,
        mapping=None if settings.mapping is None else MessageMapping(load_mapping(settings.mapping)),
        card_numbers=CardNumbers(settings.card_numbers.policy, settings.card_numbers.hmac_key()),
        partitioner=settings.topics.partitioner,
        partitions=settings.topics.partitions,
    )


def _ttl_ms(days: float | None) -> int:
    return 0 if days is None else round(days * MS_PER_DAY)


def build_idle_state(settings: Settings, pipeline: TransactionPipeline) -> IdleState:
    """Return what finds the users and entities whose time to live has passed."""
    history = settings.history
    days = {
        "user": history.user_ttl_days,
        "merchant": history.merchant_ttl_days,
        "card": history.card_ttl_days,
        "device": history.device_ttl_days,
        "ip": history.ip_ttl_days,
    }
    return IdleState(
        {
            CODES[kind]: max(_ttl_ms(ttl), pipeline.horizon_ms(kind))
            for kind, ttl in days.items()
            if ttl is not None
        },
        pipeline.config.lateness_ms,
    )


def build_pipeline(settings: Settings, bundle: Bundle) -> TransactionPipeline:
    """Return the pipeline of a bundle: with the entity join only if the model has entity profiles."""
    config = pipeline_config(settings, bundle)
    if not bundle.spec.entities:
        return TransactionPipeline(bundle, config)
    topics = settings.topics
    join_topics = EntityJoinTopics(
        topics.transactions,
        topics.labels,
        requests_topic(settings),
        responses_topic(settings),
        topics.partitions,
    )
    return EntityJoinPipeline(bundle, config, join_topics)


def build_runtime(settings: Settings) -> Runtime:
    """Return a worker's parts; nothing has started yet.

    Raises
    ------
    BundleError
        The model bundle cannot be used.
    ConfigError
        The process may not run on the configured core.
    """
    if settings.core is not None:
        pin_to_core(settings.core)
    step = fault_from_environment()
    bundle = Bundle.load(settings.bundle, settings.bundle_public_key)
    metrics = Metrics(
        bundle.model_version, bundle.spec.hash, bundle.trained_at_seconds, drift_of(settings, bundle)
    )
    kafka = settings.kafka
    producer = BatchProducer(
        aiokafka_config(kafka), kafka.request_timeout_seconds, kafka.delivery_timeout_seconds
    )
    pipeline = build_pipeline(settings, bundle)
    idle = build_idle_state(settings, pipeline)
    return Runtime(settings, pipeline, producer, metrics, build_tracer(settings), step, idle)


def build_app(settings: Settings) -> StreamApp:
    """Return the Faust app of these settings, for ``faust -A stream.app worker``."""
    return build_runtime(settings).app


def drift_of(settings: Settings, bundle: Bundle) -> Drift | None:
    """Return the drift detectors of the bundle; None if they are off or the bundle has no reference."""
    if not settings.drift.enabled:
        return None
    # Only if needed: importing river takes a second.
    from stream.monitoring.drift import Drift, choose_watched  # noqa: PLC0415

    try:
        watched = choose_watched(bundle.reference, bundle.training.get("gains", ()))
        return Drift(bundle.reference, bundle.spec.names, watched, settings.drift.window_transactions)
    except (KeyError, TypeError, ValueError) as error:
        logger.warning("drift is not measured: the bundle's reference statistics cannot be used: %r", error)
        return None
