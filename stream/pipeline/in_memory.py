"""A pipeline with its topics in memory: each stage receives the records that another stage sends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stream.events.records import ConsumerRecord
from stream.pipeline.effects import Batch, gather

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stream.pipeline.effects import BatchEffects, Sends
    from stream.pipeline.transactions import TransactionPipeline
    from stream.state.store import MemoryStore

__all__ = ["InMemoryTopology"]


class InMemoryTopology:
    """Runs a pipeline over one partition of each topic, to warm it up or to measure it.

    Parameters
    ----------
    memory
        The state; the writes of every batch are stored there at once.
    now_ms
        The time at which everything happens.
    """

    def __init__(self, pipeline: TransactionPipeline, memory: MemoryStore, now_ms: int) -> None:
        self._pipeline = pipeline
        self._memory = memory
        self._now_ms = now_ms
        self._ends: dict[tuple[str, int], int] = {}

    def send(self, outputs: Sends) -> Iterator[BatchEffects]:
        """Yield the effects of each batch of ``outputs`` and of the records that follow from it."""
        while outputs:
            all_effects = []
            for (topic, partition), messages in outputs.items():
                first = self._ends.get((topic, partition), 0)
                self._ends[topic, partition] = first + len(messages)
                records = [
                    ConsumerRecord(number, self._now_ms, message.key, message.value, message.headers)
                    for number, message in enumerate(messages, first)
                ]
                effects = self._pipeline.process(
                    Batch(topic, partition, 1, records), self._memory, self._now_ms
                )
                self._memory.write(effects.writes)
                all_effects.append(effects)
                yield effects
            outputs = gather(
                item
                for effects in all_effects
                for each in (effects.outputs, effects.requests)
                for item in each.items()
            )
