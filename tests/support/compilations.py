"""What warming up compiles, and what is left to compile for the traffic after it: ``python -m support.compilations``."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from support.paths import ROOT, SEARCH_PATH
from support.run_folder import locked

if TYPE_CHECKING:
    from pathlib import Path

START_MS = 1_700_000_000_000
MINUTE_MS = 60_000


def compiled() -> set[str]:
    """Return the compiled functions of the stream's modules that have machine code, with its types."""
    from numba.core.registry import CPUDispatcher

    return {
        f"{value.__module__}.{name}{signature}"
        for module, content in list(sys.modules.items())
        if module.startswith("stream.")
        for name, value in vars(content).items()
        if isinstance(value, CPUDispatcher)
        for signature in value.signatures
    }


def main() -> None:
    """Print how many functions warming up compiles, and what the traffic after it still does."""
    from stream.events.records import ConsumerRecord
    from stream.pipeline.effects import Batch, PipelineConfig
    from stream.pipeline.transactions import TransactionPipeline
    from stream.runtime.warmup import warm_up
    from stream.state.store import MemoryStore
    from support.bundles import trained_bundle

    pipeline = TransactionPipeline(trained_bundle(), PipelineConfig(partitioner="murmur2", partitions=4))
    cold = compiled()
    warm_up(pipeline)
    warm = compiled()

    memory = MemoryStore()
    minutes = [*range(2_000), 30, 1_990, *range(2_000, 2_600), 2_599, 100_000, 1]
    for begin in range(0, len(minutes), 400):
        records = []
        for number, minute in enumerate(minutes[begin : begin + 400], begin):
            time_ms = START_MS + minute * MINUTE_MS
            content = {
                "transaction_id": str(number),
                "event_time": time_ms,
                "currency": "EUR",
                "channel": "online",
                "transaction_type": "purchase",
            }
            for user in ("u", f"v{number % 90}"):
                value = json.dumps(content | {"user_id": user, "amount": 1 + number**2}).encode()
                records.append(ConsumerRecord(2 * number, time_ms, user.encode(), value))
        memory.write(pipeline.process(Batch("t", 0, 1, records), memory, START_MS + 10**10).writes)
        pipeline.forget()
    by_traffic = compiled() - warm
    by_stages, by_traffic_of_stages = stages()
    json.dump([len(warm - cold), by_stages, sorted(by_traffic | by_traffic_of_stages)], sys.stdout)


def stages() -> tuple[int, set[str]]:
    """The same of a model with profiles, whose stages have kernels of their own."""
    from stream.pipeline.effects import PipelineConfig
    from stream.runtime.warmup import warm_up
    from support.bundles import made_bundle
    from support.entity_joins import TOPICS, Bus, Worker, run
    from support.profiles import PROFILES, corrected, labels_of, out_of_order, transactions

    bundle, now_ms = made_bundle(entities=PROFILES), START_MS + 10**11
    cold = compiled()
    warm_up(Worker(Bus(1), bundle, PipelineConfig(), now_ms).pipeline)
    warm = compiled()
    rng, bus = random.Random(1), Bus(1)
    rows = out_of_order(rng, transactions(rng, 300))
    for label in corrected(rng, labels_of(rng, rows)):
        bus.produce(TOPICS.labels, label["user_id"], label)
    for begin in range(0, len(rows), 50):
        for row in rows[begin : begin + 50]:
            bus.produce(TOPICS.transactions, row["user_id"], row)
        run(bus, bundle, PipelineConfig(), now_ms, rng=rng)
    return len(warm - cold), compiled() - warm


def compile_once(folder: Path) -> Any:
    """Return what a process of its own has printed, run by whoever asks first in this test run.

    Workers that start afterwards find their machine code; two that start without it would both compile it, for longer
    than a test waits for a worker.
    """
    found = folder / "compilations"
    with locked(folder, "compilations"):
        if not found.exists():
            done = subprocess.run(
                [sys.executable, "-m", "support.compilations"],
                capture_output=True,
                text=True,
                check=False,
                cwd=ROOT,
                env={"PYTHONPATH": SEARCH_PATH, "PATH": ""},
            )
            assert done.returncode == 0, done.stderr
            found.write_text(done.stdout, encoding="utf-8")
    return json.loads(found.read_bytes())


if __name__ == "__main__":
    main()
