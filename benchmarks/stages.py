"""Where a transaction's time goes in process: the pipeline's own functions, timed as they are called.

Each named function is replaced by one that adds up its time, less that of the named ones it calls, while
the in-process ceiling's rounds run on one thread. What is left of a round is ``the rest``: joining columns,
verdicts, counting.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable  # noqa: TC003 - the table of stages says so
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.local_store import LocalStore, PartitionReader, link_folder
from benchmarks.peers.ceiling import rounds_of
from benchmarks.peers.common import Job, pipeline_of
from benchmarks.workload import PARTITIONS
from stream.decisions.reasons import Explainer
from stream.features.vector import VectorBuilder
from stream.features.windows import history
from stream.features.windows.long import LongHistories
from stream.pipeline.columns import columns_of, events_of
from stream.pipeline.effects import Batch
from stream.pipeline.encode import Encoder
from stream.pipeline.transactions import TransactionPipeline
from stream.scoring.predictor import Predictor
from stream.settings import KafkaSettings, RocksDBSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.workload import Workload

__all__ = ["stages"]

#: Stage -> the functions that it times.
_STAGES: Final[dict[str, tuple[Callable[..., Any], ...]]] = {
    "decode": (TransactionPipeline._decode,),  # noqa: SLF001 - a stage is a part of the pipeline
    "id hashes, columns": (events_of, columns_of),
    "state read": (LocalStore.read,),
    "history": (history.advance,),
    "history, long histories": (LongHistories.__init__, LongHistories.take, LongHistories.writes),
    "history, pack heads": (history._pack_heads,),  # noqa: SLF001
    "vector": (VectorBuilder.fill, VectorBuilder.empty),
    "score": (Predictor.scores,),
    "explain": (Predictor.contributions, Explainer.reasons),
    "encode": (TransactionPipeline._decide, Encoder.alert),  # noqa: SLF001
    "state write": (LocalStore.write,),
}


class _Clock:
    """Adds up each stage's own time."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(_STAGES, 0.0)
        self._inner: list[float] = []

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its own time added to a stage."""
        inner, seconds, clock = self._inner, self.seconds, time.perf_counter

        def call(*arguments: Any, **named: Any) -> Any:
            inner.append(0.0)
            begun = clock()
            try:
                return function(*arguments, **named)
            finally:
                took = clock() - begun
                seconds[stage] += took - inner.pop()
                if inner:
                    inner[-1] += took

        return call


def _places(function: Callable[..., Any]) -> list[Any]:
    """Return where a function is looked up: in its class, or in every module that has it by its name."""
    owner, _, name = function.__qualname__.rpartition(".")
    if owner:
        return [getattr(sys.modules[function.__module__], owner)]
    return [
        found for found in list(sys.modules.values()) if getattr(found, "__dict__", {}).get(name) is function
    ]


@contextmanager
def _watched(clock: _Clock) -> Iterator[None]:
    before = [
        (place, function)
        for functions in _STAGES.values()
        for function in functions
        for place in _places(function)
    ]
    stage_of = {function: stage for stage, functions in _STAGES.items() for function in functions}
    for place, function in before:
        setattr(place, function.__name__, clock.timed(stage_of[function], function))
    try:
        yield
    finally:
        for place, function in before:
            setattr(place, function.__name__, function)


def stages(workload: Workload, folder: Path, seconds: float = 8.0) -> dict[str, Any]:
    """Return microseconds a transaction of each stage, of the whole round, and of a round of one."""
    state = folder / "stages"
    link_folder(workload.state, state)
    size = KafkaSettings().max_poll_records
    job = Job(
        "",
        "transactions",
        "",
        "",
        "",
        PARTITIONS,
        str(workload.bundle),
        str(state),
        size,
        str(workload.folder),
    )
    pipeline = pipeline_of(job)
    store = LocalStore(Path(job.state), RocksDBSettings())
    readers = [PartitionReader(store, partition) for partition in range(PARTITIONS)]
    rounds = rounds_of(job)
    skipped = len(rounds) // 10
    clock = _Clock()

    def process(batches: list[Any]) -> int:
        own = [readers[batch.partition] for batch in batches]
        all_effects = pipeline.process_all(batches, own, time.time_ns() // 1_000_000)
        for batch, effects in zip(batches, all_effects, strict=True):
            store.write(batch.partition, effects.writes, batch.records[-1].offset)
        return sum(len(batch.records) for batch in batches)

    try:
        for batches in rounds[:skipped]:
            process(batches)
        done = 0
        begun = time.perf_counter()
        with _watched(clock):
            for batches in rounds[skipped:]:
                done += process(batches)
                if time.perf_counter() - begun > seconds:
                    break
        total = time.perf_counter() - begun
        alone = [
            Batch(batch.topic, batch.partition, batch.source, [record])
            for batch in rounds[-1]
            for record in batch.records
        ]
        begun = time.perf_counter()
        for batch in alone:
            process([batch])
        single = 1e6 * (time.perf_counter() - begun) / len(alone)
    finally:
        store.close()
    micros = {stage: 1e6 * spent / done for stage, spent in clock.seconds.items()}
    whole = 1e6 * total / done
    micros["the rest"] = whole - sum(micros.values())
    return {"micros": micros, "total": whole, "round": size, "one_at_a_time": single}
