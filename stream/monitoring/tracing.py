"""Tracing: spans of transactions whose producer traces them, exported by OTLP; off by default.

A trace continues behind the worker without this module: alerts, decisions and dead letters carry their
transaction's ``traceparent`` unchanged (:func:`stream.events.records.trace_context`), so that an alert that
is delivered twice is equal to the byte. The spans here are children of the producer's span and siblings of
the alert consumers' spans.

OpenTelemetry is imported only when a tracer is built. Spans are created once a micro-batch's effects are
durable, from the times of the whole micro-batch, and only for transactions with a sampled ``traceparent``.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from stream.errors import ConfigError
from stream.events.records import TRACEPARENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stream.events.records import Headers
    from stream.pipeline.effects import Batch, BatchEffects
    from stream.settings import Settings

__all__ = ["MicroBatchTimes", "Tracer", "build_tracer", "remote_parent"]


logger = logging.getLogger(__name__)

#: https://www.w3.org/TR/trace-context/#traceparent-header; later versions may append fields after the flags.
_TRACEPARENT: Final = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?"
)

_SAMPLED: Final = 1

#: Most transactions of a micro-batch that are traced: nobody needs a trace of each of thousands.
_MAX_PER_ROUND: Final = 100

#: Longest wait for the last spans when a worker stops; the stop itself is cut off after four seconds.
_FLUSH_MS: Final = 1_500


@dataclass(frozen=True, slots=True)
class MicroBatchTimes:
    """The times of a micro-batch's steps, in ns since 1970."""

    taken: int
    decided: int
    producing: int
    produced: int
    done: int


def remote_parent(headers: Headers) -> tuple[int, int] | None:
    """Return the trace's and the parent span's id of a record that is sampled, otherwise None."""
    for name, value in headers:
        if name == TRACEPARENT:
            found = _TRACEPARENT.fullmatch(value or b"")
            if found is None or not int(found[3], 16) & _SAMPLED:
                return None
            return int(found[1], 16), int(found[2], 16)
    return None


class Tracer:
    """Creates the spans of micro-batches and exports them in the background.

    Each traced transaction gets a span ``process``, from its Kafka timestamp until its effects are durable,
    with three children: ``receive`` (until its micro-batch begins), ``decide``, and the output: ``alert``,
    ``decision`` or ``dead letter``.

    Parameters
    ----------
    provider
        An SDK's ``TracerProvider``.
    group
        The consumer group.
    """

    def __init__(self, provider: Any, group: str) -> None:
        from opentelemetry import trace  # noqa: PLC0415 - not a dependency of a worker that does not trace

        self._api = trace
        self._provider = provider
        self._tracer = provider.get_tracer("riskstream")
        self._group = group

    def trace(self, decided: Sequence[tuple[Batch, BatchEffects]], times: MicroBatchTimes) -> None:
        """Create the spans of a finished micro-batch."""
        left = _MAX_PER_ROUND
        for batch, effects in decided:
            traced = [
                (record, parent)
                for record in batch.records
                if record.headers and (parent := remote_parent(record.headers)) is not None
            ][:left]
            if not traced:
                continue
            left -= len(traced)
            alerted = {item.offset: item for item in effects.alerted}
            refused = {offset for _, offset in effects.rejected}
            for record, parent in traced:
                attributes: dict[str, Any] = {
                    "messaging.system": "kafka",
                    "messaging.operation.type": "process",
                    "messaging.destination.name": batch.topic,
                    "messaging.destination.partition.id": str(batch.partition),
                    "messaging.consumer.group.name": self._group,
                    "messaging.kafka.offset": record.offset,
                }
                sent = "decision" if effects.decisions else None
                if record.offset in refused:
                    sent = "dead letter"
                if (alert := alerted.get(record.offset)) is not None:
                    sent = "alert"
                    attributes["riskstream.transaction.id"] = alert.transaction_id
                    attributes["riskstream.risk.level"] = alert.level.value
                self._spans(parent, record.timestamp_ms * 1_000_000, times, sent, attributes)

    def _spans(
        self,
        parent: tuple[int, int],
        timestamp: int,
        times: MicroBatchTimes,
        sent: str | None,
        attributes: dict[str, Any],
    ) -> None:
        api = self._api
        remote = api.SpanContext(
            trace_id=parent[0],
            span_id=parent[1],
            is_remote=True,
            trace_flags=api.TraceFlags(api.TraceFlags.SAMPLED),
        )
        # A producer's clock may be ahead of this clock, and a record may have no time.
        begun = timestamp if 0 <= timestamp < times.taken else times.taken
        whole = self._tracer.start_span(
            "process",
            api.set_span_in_context(api.NonRecordingSpan(remote)),
            api.SpanKind.CONSUMER,
            attributes,
            start_time=begun,
        )
        inside = api.set_span_in_context(whole)
        steps = [("receive", begun, times.taken), ("decide", times.taken, times.decided)]
        if sent is not None:
            steps.append((sent, times.producing, times.produced))
        for name, start, end in steps:
            self._tracer.start_span(name, inside, start_time=start).end(end)
        whole.end(times.done)

    def close(self) -> None:
        """Export the remaining spans, in bounded time."""
        self._provider.force_flush(_FLUSH_MS)


def build_tracer(settings: Settings) -> Tracer | None:
    """Return the tracer of the settings, None where they name no collector.

    Raises
    ------
    ConfigError
        OpenTelemetry is not installed.
    """
    endpoint = settings.tracing.endpoint
    if endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"RISKSTREAM_TRACING__ENDPOINT: {error.name} is not installed: pip install 'riskstream[tracing]'"
        ) from error
    provider = TracerProvider(
        resource=Resource.create({"service.name": "riskstream", "service.namespace": settings.app_id}),
        shutdown_on_exit=False,
    )
    address = endpoint if urlsplit(endpoint).path.strip("/") else endpoint.rstrip("/") + "/v1/traces"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(address, timeout=5)))
    logger.info("tracing to %s", address)
    return Tracer(provider, settings.app_id)
