"""A pipeline with its topics in memory: what one stage sends is handed to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stream.events.records import Record
from stream.pipeline.effects import Batch, gather

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stream.pipeline.effects import Plan, Sends
    from stream.pipeline.transactions import Pipeline
    from stream.state.store import MemoryRecords


class Loopback:
    """Runs a pipeline over one partition of each topic, to warm it up or to measure it.

    Parameters
    ----------
    memory
        The state; what plans write is stored there at once.
    now_ms
        The time at which everything happens.
    """

    def __init__(self, pipeline: Pipeline, memory: MemoryRecords, now_ms: int) -> None:
        self._pipeline = pipeline
        self._memory = memory
        self._now_ms = now_ms
        self._ends: dict[tuple[str, int], int] = {}

    def send(self, sends: Sends) -> Iterator[Plan]:
        """Yield the plan of each batch, of what was sent and of what became of it, until nothing is left."""
        while sends:
            plans = []
            for (topic, partition), messages in sends.items():
                first = self._ends.get((topic, partition), 0)
                self._ends[topic, partition] = first + len(messages)
                records = [
                    Record(number, self._now_ms, one.key, one.value, one.headers)
                    for number, one in enumerate(messages, first)
                ]
                plan = self._pipeline.process(Batch(topic, partition, 1, records), self._memory, self._now_ms)
                self._memory.write(plan.writes)
                plans.append(plan)
                yield plan
            sends = gather(
                item for plan in plans for each in (plan.sends, plan.asks) for item in each.items()
            )
