"""The records that leave the pipeline: alerts, decisions and dead letters, as bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from stream.decisions.policy import Verdict, alert_id
from stream.events.card_numbers import MASKED, mask
from stream.events.fields import MAX_TIME_MS, format_event_time
from stream.events.models import DeadLetterHeader, Outcome
from stream.events.records import ConsumerRecord, ProducerRecord, trace_context

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stream.events.decode import TransactionRow

__all__ = ["MAX_DEAD_LETTER_BYTES", "Encoder", "dead_letter", "mask_dead_letter"]


#: Most bytes of a record that its dead letter carries. A broker accepts 1 MiB by default, measured after
#: compression, so an accepted record may be too large once more headers are added.
MAX_DEAD_LETTER_BYTES: Final = 1_000_000

_MAX_CUT_KEY_BYTES: Final = 1_000

#: The lengths of a header's name and value.
_HEADER_OVERHEAD_BYTES: Final = 2


class Encoder:
    """Encodes the alerts and decisions of one batch; their common members are encoded once."""

    def __init__(self, model_version: str, feature_spec: str, topic: str, partition: int) -> None:
        common = {
            "model_version": model_version,
            "feature_spec": feature_spec,
            "source_topic": topic,
            "source_partition": partition,
        }
        #: The members between a record's time and its offset.
        self._common = b'",' + orjson.dumps(common)[1:-1] + b',"source_offset":'

    def decision(
        self,
        record: ConsumerRecord,
        row: TransactionRow,
        outcome: Outcome,
        verdict: Verdict | None = None,
        features: dict[str, float] | None = None,
        *,
        truncated: bool = False,
    ) -> ProducerRecord:
        """Return the decision on a transaction; a NaN in ``features`` becomes null."""
        body = self._head(record, row) + _OUTCOMES[outcome]
        if truncated:
            body += b',"truncated":true'
        if verdict is not None:
            body += b"," + verdict.members
            if verdict.alert:
                body += b',"alert_id":"%b"' % alert_id(row.user_id, row.transaction_id).encode()
        if features is not None:
            body += b',"features":' + orjson.dumps(features)
        return ProducerRecord(record.key, body + b"}", record.headers and trace_context(record.headers))

    def alert(
        self, record: ConsumerRecord, row: TransactionRow, verdict: Verdict, reasons: Sequence[dict[str, Any]]
    ) -> ProducerRecord:
        """Return the alert on a transaction."""
        body = b'%b,"alert_id":"%b",%b,"reasons":%b}' % (
            self._head(record, row),
            alert_id(row.user_id, row.transaction_id).encode(),
            verdict.members,
            orjson.dumps(reasons),
        )
        return ProducerRecord(record.key, body, record.headers and trace_context(record.headers))

    def _head(self, record: ConsumerRecord, row: TransactionRow) -> bytes:
        """Return the JSON that alerts and decisions begin with; to dump it all costs thrice."""
        scored_at_ms = record.timestamp_ms
        if not 0 <= scored_at_ms <= MAX_TIME_MS:
            scored_at_ms = row.event_time  # the producer's timestamp is missing or in another unit
        return b'{"transaction_id":%b,"user_id":%b,"event_time":"%b","scored_at":"%b%b%d' % (
            orjson.dumps(row.transaction_id),
            orjson.dumps(row.user_id),
            format_event_time(row.event_time).encode(),
            format_event_time(scored_at_ms).encode(),
            self._common,
            record.offset,
        )


#: The JSON member of each outcome.
_OUTCOMES: Final = {outcome: b',"outcome":"%b"' % outcome.value.encode() for outcome in Outcome}


def dead_letter(
    topic: str,
    partition: int,
    record: ConsumerRecord,
    error: Exception,
    field: str,
    reason: str,
    refused_at_ms: int,
) -> ProducerRecord:
    """Return the dead letter of a rejected record: its key, bytes and headers, and the reason in headers.

    A record that is too large to be sent again is cut and keeps only the trace headers; the reason says so.
    """
    key, value, own = record.key, record.value, record.headers
    # An empty header takes some bytes too, and one record may have half a million.
    size = len(key or b"") + len(value or b"")
    size += sum(len(name) + len(text or b"") + _HEADER_OVERHEAD_BYTES for name, text in own)
    if size > MAX_DEAD_LETTER_BYTES:
        key = key and key[:_MAX_CUT_KEY_BYTES]
        value = value and value[: MAX_DEAD_LETTER_BYTES - _MAX_CUT_KEY_BYTES]
        own = trace_context(own)
        reason += (
            f"; cut to {len(key or b'') + len(value or b'')} of {size} bytes, the source topic "
            "has the whole record"
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
    return ProducerRecord(key, value, headers)


def mask_dead_letter(letter: ProducerRecord) -> ProducerRecord:
    """Return a dead letter without card numbers in clear; its reason says if there were any."""
    key, value = letter.key and mask(letter.key), letter.value and mask(letter.value)
    headers = tuple((name, text and mask(text)) for name, text in letter.headers)
    if (key, value, headers) == (letter.key, letter.value, tuple(letter.headers)):
        return letter
    reason = DeadLetterHeader.REASON.value
    return ProducerRecord(
        key,
        value,
        tuple((name, (text or b"") + MASKED.encode() if name == reason else text) for name, text in headers),
    )
