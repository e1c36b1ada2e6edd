"""What the peers have in common; imports nothing but the core."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from stream.pipeline.effects import PipelineConfig
from stream.pipeline.transactions import TransactionPipeline
from stream.runtime.warmup import warm_up
from stream.scoring.bundle import Bundle
from stream.state.hashing import hash_id

__all__ = ["Job", "pipeline_of", "source_of"]


@dataclass(frozen=True, slots=True)
class Job:
    """What a peer is told.

    Attributes
    ----------
    group:
        Consumer group and application id, new in every round.
    round_records:
        Most records of one batch, for those that have batches.
    seconds:
        How long to run, for the peer that nobody watches from outside.
    """

    bootstrap_servers: str
    source: str
    alerts: str
    decisions: str
    group: str
    partitions: int
    bundle: str
    state: str
    round_records: int = 2_000
    data: str = ""
    seconds: float = 0.0

    def to_argument(self) -> str:
        """Return the job as a command's argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_command(cls) -> Self:
        """Return the job of this process."""
        return cls(**json.loads(sys.argv[1]))


def pipeline_of(job: Job) -> TransactionPipeline:
    """Return the pipeline with the worker's own defaults, everything compiled."""
    config = PipelineConfig(cache_bytes=256 << 20, partitioner="murmur2", partitions=job.partitions)
    pipeline = TransactionPipeline(Bundle.load(Path(job.bundle)), config)
    warm_up(pipeline)
    return pipeline


def source_of(job: Job, partition: int) -> int:
    """Return the identity of a source partition."""
    return hash_id(f"{job.source}:bench:{partition}")
