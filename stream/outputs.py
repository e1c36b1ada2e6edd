"""The records that leave the pipeline: alerts, decisions and dead letters, as bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from stream.events import DeadLetterHeader, Outcome, format_event_time
from stream.scoring.policy import Verdict, alert_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stream.errors import RiskStreamError
    from stream.intake import Row

__all__ = ["Encoder", "Headers", "Message", "Record", "dead_letter"]

Headers = tuple[tuple[str, bytes], ...]

#: Most bytes of a record that its dead letter carries. Brokers take 1 MiB unless told otherwise, measured
#: after compression, so that with its headers more a record that came in may not go out again.
MAX_DEAD_LETTER_BYTES: Final = 1_000_000
_MAX_CUT_KEY_BYTES: Final = 1_000


class Record(NamedTuple):
    """One record of the source topic."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


class Message(NamedTuple):
    """One record to produce."""

    key: bytes | None
    value: bytes | None
    headers: Headers = ()


class Encoder:
    """Encodes one batch's alerts and decisions: what they all have in common is given once."""

    def __init__(self, model_version: str, feature_spec: str, topic: str, partition: int) -> None:
        self._common = {
            "model_version": model_version,
            "feature_spec": feature_spec,
            "source_topic": topic,
            "source_partition": partition,
        }

    def decision(
        self,
        record: Record,
        row: Row,
        outcome: Outcome,
        verdict: Verdict | None = None,
        features: dict[str, float] | None = None,
    ) -> Message:
        """Return the decision on one transaction; ``features`` may hold NaN, which JSON says as null."""
        body = self._body(record, row)
        body["outcome"] = outcome.value
        if verdict is not None:
            self._judge(body, verdict)
            if verdict.alert:
                body["alert_id"] = alert_id(row.user_id, row.transaction_id)
        if features is not None:
            body["features"] = features
        return Message(record.key, orjson.dumps(body))

    def alert(self, record: Record, row: Row, verdict: Verdict, reasons: Sequence[dict[str, Any]]) -> Message:
        """Return the alert on one transaction."""
        body = self._body(record, row)
        body["alert_id"] = alert_id(row.user_id, row.transaction_id)
        self._judge(body, verdict)
        body["reasons"] = reasons
        return Message(record.key, orjson.dumps(body))

    def _body(self, record: Record, row: Row) -> dict[str, Any]:
        return {
            "transaction_id": row.transaction_id,
            "user_id": row.user_id,
            "event_time": format_event_time(row.event_time),
            "scored_at": format_event_time(
                record.timestamp_ms if record.timestamp_ms >= 0 else row.event_time
            ),
            **self._common,
            "source_offset": record.offset,
        }

    @staticmethod
    def _judge(body: dict[str, Any], verdict: Verdict) -> None:
        body["risk_score"] = verdict.score
        body["risk_level"] = verdict.level.value
        body["prediction"] = verdict.prediction


def dead_letter(
    topic: str,
    partition: int,
    record: Record,
    error: RiskStreamError,
    field: str,
    reason: str,
    refused_at_ms: int,
) -> Message:
    """Return a record that could not be taken: its own key, bytes and headers, and why in more headers.

    One too large to be sent again is cut, without its own headers, and the reason says so.
    """
    key, value, own = record.key, record.value, record.headers
    size = len(key or b"") + len(value or b"") + sum(len(name) + len(text or b"") for name, text in own)
    if size > MAX_DEAD_LETTER_BYTES:
        key = key and key[:_MAX_CUT_KEY_BYTES]
        value = value and value[: MAX_DEAD_LETTER_BYTES - _MAX_CUT_KEY_BYTES]
        own = ()
        reason += (
            f"; cut to {len(key or b'') + len(value or b'')} of {size} bytes, the whole is at the source"
        )
    headers = (
        *own,
        (DeadLetterHeader.EXCEPTION.value, type(error).__name__.encode()),
        (DeadLetterHeader.MESSAGE.value, str(error).encode()),
        (DeadLetterHeader.TOPIC.value, topic.encode()),
        (DeadLetterHeader.PARTITION.value, str(partition).encode()),
        (DeadLetterHeader.OFFSET.value, str(record.offset).encode()),
        (DeadLetterHeader.FIELD.value, field.encode()),
        (DeadLetterHeader.REASON.value, reason.encode()),
        (DeadLetterHeader.TIMESTAMP.value, format_event_time(refused_at_ms).encode()),
    )
    return Message(key, value, headers)
