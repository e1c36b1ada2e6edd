"""Records as Kafka has them: consumed, to be produced, and their trace headers."""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["TRACEPARENT", "ConsumerRecord", "Headers", "ProducerRecord", "trace_context"]

Headers = tuple[tuple[str, bytes], ...]

#: W3C Trace Context: the trace of a record, and the additions of tracing systems.
TRACEPARENT: Final = "traceparent"

_TRACE_HEADERS: Final = (TRACEPARENT, "tracestate")

#: The longest that tracing systems must hand on of ``tracestate``; a ``traceparent`` has 55.
_MAX_TRACE_HEADER_BYTES: Final = 512


class ConsumerRecord(NamedTuple):
    """A record of the source topic."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


class ProducerRecord(NamedTuple):
    """A record to produce."""

    key: bytes | None
    value: bytes | None
    headers: Headers = ()


def trace_context(headers: Headers) -> Headers:
    """Return the headers that a derived record keeps: the trace context."""
    found: dict[str, bytes] = {}
    for name, value in headers:
        if name in _TRACE_HEADERS and value is not None and len(value) <= _MAX_TRACE_HEADER_BYTES:
            found.setdefault(name, value)
    return tuple(found.items()) if TRACEPARENT in found else ()
