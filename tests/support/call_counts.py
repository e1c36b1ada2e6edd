"""The cost of a transaction in process, counted and not timed: calls, and what is read, written and sent.

A count does not depend on the machine, so it can be held to. Python's versions differ in what they call; the
baseline has one entry for each minor version it was written on, and calls are compared on those alone. Renew it,
where more calls are what you want, with ``make guard-baseline``.
"""

from __future__ import annotations

import gc
import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from stream.events.fields import format_event_time
from stream.events.records import ConsumerRecord
from stream.pipeline.effects import Batch, BatchEffects, PipelineConfig
from stream.pipeline.transactions import TransactionPipeline
from stream.scoring.bundle import Thresholds
from support.bundles import made_bundle
from support.histories import DAY, Memory
from support.paths import TESTS

if TYPE_CHECKING:
    from collections.abc import Sequence

BASELINE = TESTS / "stream/pipeline/call_counts.json"
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
USERS = 1_500
ROUND = 2_000
START_MS = 1_750_000_000_000


class Counted(Memory):
    """Counts what is read."""

    records = 0
    read_bytes = 0

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        values = super().read(keys)
        self.records += len(keys)
        self.read_bytes += sum(len(value) for value in values if value is not None)
        return values


def rounds(count: int) -> list[Batch]:
    """Every user has some 30 events in 30 days, so that some histories have sealed chunks and most have none."""
    random = np.random.default_rng(2)
    made = []
    for number in range(count):
        records = []
        for place, user in enumerate(random.integers(USERS, size=ROUND).tolist()):
            offset = number * ROUND + place
            amount = int(random.integers(100, 100_000))
            value = {
                "transaction_id": f"T{offset:08d}",
                "user_id": f"U{user:06d}",
                "event_time": format_event_time(START_MS + int(offset * 30 * DAY / (30 * USERS))),
                "amount": f"{amount // 100}.{amount % 100:02d}",
                "currency": "EUR",
                "channel": "web",
                "transaction_type": "purchase",
                "merchant_id": f"M{random.integers(200)}",
                "pre_balance": "1000.00",
                "post_balance": "900.5",
            }
            records.append(ConsumerRecord(offset, 0, value["user_id"].encode(), orjson.dumps(value)))
        made.append(Batch("transactions", 0, 7, records))
    return made


def decide(pipeline: TransactionPipeline, memory: Memory, batch: Batch) -> BatchEffects:
    effects = pipeline.process(batch, memory, START_MS + 400 * DAY)
    memory.write(effects.writes)
    return effects


def measured() -> dict[str, float]:
    """Return the counts a transaction over two rounds, after the histories have grown."""
    *before, first, second = rounds(24)
    pipeline, memory = TransactionPipeline(made_bundle(), PipelineConfig()), Counted()
    scores = np.concatenate([decide(pipeline, memory, batch).scores for batch in before])
    share = float(np.quantile(scores, 0.98))
    pipeline = TransactionPipeline(
        made_bundle(thresholds=Thresholds(high=share, medium=share, prediction=share)), PipelineConfig()
    )
    decide(pipeline, memory, first)  # what is done once is done
    memory.records = memory.read_bytes = 0
    calls = {"call": 0, "c_call": 0}

    def count(_frame: Any, event: str, _argument: Any) -> None:
        if event in calls:
            calls[event] += 1

    batch = second
    # When the collector runs depends on what other tests have left, and hypothesis has it call a function.
    gc.disable()
    sys.setprofile(count)
    try:
        effects = pipeline.process(batch, memory, START_MS + 400 * DAY)
    finally:
        sys.setprofile(None)
        gc.enable()
    sent = [*effects.alerts, *effects.decisions]
    counts = {
        "calls_python": calls["call"],
        "calls_native": calls["c_call"],
        "records_read": memory.records,
        "bytes_read": memory.read_bytes,
        "records_written": len(effects.writes),
        "bytes_written": sum(len(key) + len(value or b"") for key, value in effects.writes),
        "records_sent": len(sent),
        "bytes_sent": sum(len(message.key or b"") + len(message.value or b"") for message in sent),
    }
    return {name: value / ROUND for name, value in counts.items()}


def write() -> None:
    baseline = json.loads(BASELINE.read_text(encoding="utf-8")) if BASELINE.exists() else {}
    found = {name: round(value, 3) for name, value in measured().items()}
    baseline["any"] = {name: value for name, value in found.items() if not name.startswith("calls_")}
    baseline[VERSION] = {name: value for name, value in found.items() if name.startswith("calls_")}
    BASELINE.write_text(json.dumps(baseline, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(json.dumps(baseline, indent=2, sort_keys=True))


if __name__ == "__main__":
    write()
