"""A worker's stages over topics in memory, with crashes between any two effects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
from profiles import START_MS

from stream.events.records import Message, Record
from stream.pipeline.effects import Batch, Plan
from stream.pipeline.entity_join.messages import Question, decode_question
from stream.pipeline.entity_join.topology import HopTopics, ProfiledPipeline
from stream.state.hashing import identity
from stream.state.store import MemoryRecords

if TYPE_CHECKING:
    import random

    from stream.pipeline.effects import PipelineConfig
    from stream.scoring.bundle import Bundle

TOPICS = HopTopics("transactions", "labels", "questions", "answers", 1)
#: Where a worker may fall: before anything is sent, and after each effect.
STEPS = ("decided", "sent", "asked", "logged", "stored", "committed")


@dataclass
class Bus:
    """Topics, committed places and stores that outlive workers."""

    partitions: int
    topics: dict[tuple[str, int], list[Record]] = field(default_factory=dict)
    committed: dict[tuple[str, int], int] = field(default_factory=dict)
    stores: dict[int, MemoryRecords] = field(default_factory=dict)
    alerts: list[tuple[int, Message]] = field(default_factory=list)
    decisions: list[tuple[int, Message]] = field(default_factory=list)
    dead: list[Message] = field(default_factory=list)
    hop: dict[tuple[str, str], int] = field(default_factory=dict)

    def of(self, topic: str, partition: int) -> list[Record]:
        return self.topics.setdefault((topic, partition), [])

    def send(self, topic: str, partition: int, message: Message) -> None:
        records = self.of(topic, partition)
        records.append(Record(len(records), START_MS, message.key, message.value, message.headers))

    def produce(self, topic: str, user: str, value: dict[str, Any]) -> None:
        key = user.encode()
        self.send(topic, sum(key) % self.partitions, Message(key, orjson.dumps(value)))

    def questions(self) -> list[Question]:
        """Every question in the order of its log, each once."""
        found: dict[int, Question] = {}
        for partition in range(self.partitions):
            for record in self.of(TOPICS.questions, partition):
                what = decode_question(record.value)
                if isinstance(what, Question):
                    found.setdefault((what.case, what.entity), what)
        return list(found.values())


class Worker:
    """One worker that has every partition."""

    def __init__(self, bus: Bus, bundle: Bundle, config: PipelineConfig, now_ms: int) -> None:
        names = HopTopics(
            TOPICS.transactions, TOPICS.labels, TOPICS.questions, TOPICS.answers, bus.partitions
        )
        self.bus = bus
        self.pipeline = ProfiledPipeline(bundle, config, names)
        self.places = dict(bus.committed)
        self.now_ms = now_ms

    def waiting(self) -> list[tuple[str, int]]:
        return [at for at, records in self.bus.topics.items() if self.places.get(at, 0) < len(records)]

    def round(self, chosen: list[tuple[str, int]], most: int, falls_at: str = "") -> bool:
        """Carry out a round; False where the worker fell on the way."""
        bus = self.bus
        batches = []
        for topic, partition in chosen:
            place = self.places.get((topic, partition), 0)
            records = bus.of(topic, partition)[place : place + most]
            self.places[topic, partition] = place + len(records)
            batches.append(Batch(topic, partition, identity(f"{topic}:{partition}"), records))
        stores = [bus.stores.setdefault(batch.partition, MemoryRecords()) for batch in batches]
        plans = self.pipeline.process_all(batches, stores, self.now_ms)
        return self._carry_out(batches, plans, falls_at)

    def _carry_out(self, batches: list[Batch], plans: list[Plan], falls_at: str) -> bool:
        bus = self.bus
        for step in STEPS:
            if step == "sent":
                for batch, plan in zip(batches, plans, strict=True):
                    bus.alerts += [(batch.partition, message) for message in plan.alerts]
                    bus.decisions += [(batch.partition, message) for message in plan.decisions]
                    bus.dead += plan.dead_letters
                self._send(plan.sends for plan in plans)
            elif step == "asked":
                self._send(plan.asks for plan in plans)
            elif step == "stored":
                for batch, plan in zip(batches, plans, strict=True):
                    bus.stores[batch.partition].write(plan.writes)
                    for what, count in plan.hop.items():
                        bus.hop[what] = bus.hop.get(what, 0) + count
            elif step == "committed":
                for batch, plan in zip(batches, plans, strict=True):
                    place = self.places[batch.topic, batch.partition] if plan.hold is None else plan.hold
                    bus.committed[batch.topic, batch.partition] = place
            if step == falls_at:
                return False
        return True

    def _send(self, sends: Any) -> None:
        for each in sends:
            for (topic, partition), messages in each.items():
                for message in messages:
                    self.bus.send(topic, partition, message)


def run(
    bus: Bus,
    bundle: Bundle,
    config: PipelineConfig,
    now_ms: int,
    *,
    rng: random.Random,
    most: int = 7,
    crashes: int = 0,
) -> None:
    """Let workers work, one after another's fall, so many of them, until nothing waits."""
    worker = Worker(bus, bundle, config, now_ms)
    while waiting := worker.waiting():
        chosen = rng.sample(waiting, rng.randint(1, len(waiting)))
        falls_at = rng.choice(STEPS) if crashes and rng.random() < 0.3 else ""
        crashes -= bool(falls_at)
        if not worker.round(chosen, rng.randint(1, most), falls_at):
            worker = Worker(bus, bundle, config, now_ms)
    assert worker.pipeline.waiting == 0
