"""Transactions as records, and what one batch of them gives."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator

from stream.events.models import DeadLetterHeader, RiskLevel
from stream.events.records import ConsumerRecord, ProducerRecord
from stream.pipeline.effects import Batch, BatchEffects, PipelineConfig
from stream.pipeline.transactions import TransactionPipeline
from support.bundles import simulated
from support.histories import Memory
from support.paths import SCHEMAS

if TYPE_CHECKING:
    from stream.scoring.bundle import Bundle

NOW = 1_790_000_000_000

DAY = 86_400_000


FEATURES = PipelineConfig(decision_features=True, alert_level=RiskLevel.LOW)


def transaction(number: int = 0, user: str = "u1", **changes: Any) -> dict[str, Any]:
    body = {
        "transaction_id": f"t{number}",
        "user_id": user,
        "event_time": NOW - 100 * DAY + number * 3_600_000,
        "amount": "12.34",
        "currency": "EUR",
        "channel": "web",
        "transaction_type": "purchase",
        "merchant_id": f"m{number % 3}",
    } | changes
    return {name: value for name, value in body.items() if value is not None}


def record(offset: int, value: object, key: bytes | None = b"u1", headers: Any = ()) -> ConsumerRecord:
    raw = value if isinstance(value, bytes) or value is None else json.dumps(value).encode()
    return ConsumerRecord(offset, NOW - 1_000 + offset, key, raw, headers)


def simulated_records(rows: range) -> list[ConsumerRecord]:
    pairs = simulated().to_records(list(rows))
    return [ConsumerRecord(at, NOW, key, value) for at, (key, value) in enumerate(pairs)]


def batch(records: list[ConsumerRecord]) -> Batch:
    return Batch("transactions", 3, 99, records)


def run(
    records: list[ConsumerRecord],
    bundle: Bundle,
    config: PipelineConfig = FEATURES,
    memory: Memory | None = None,
    now_ms: int = NOW,
) -> BatchEffects:
    """Process one batch and store what it writes."""
    memory = Memory() if memory is None else memory
    effects = TransactionPipeline(bundle, config).process(batch(records), memory, now_ms)
    memory.write(effects.writes)
    return effects


def parsed(messages: list[ProducerRecord]) -> list[dict[str, Any]]:
    return [json.loads(message.value or b"") for message in messages]


def reason_of(message: ProducerRecord) -> dict[str, str]:
    names = {header.value for header in DeadLetterHeader}
    return {name: value.decode() for name, value in message.headers if name in names}


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(
        json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8")),
        format_checker=Draft202012Validator.FORMAT_CHECKER,
    )
