"""A worker's stages over topics in memory, with crashes between any two effects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from stream.events.records import ConsumerRecord, ProducerRecord
from stream.pipeline.bisection import decide
from stream.pipeline.effects import Batch, BatchEffects
from stream.pipeline.entity_join.messages import EntityRequest, decode_request
from stream.pipeline.entity_join.topology import EntityJoinPipeline, EntityJoinTopics
from stream.state.hashing import hash_id
from stream.state.store import MemoryStore
from support.profiles import START_MS

if TYPE_CHECKING:
    import random

    from stream.pipeline.effects import PipelineConfig
    from stream.scoring.bundle import Bundle

TOPICS = EntityJoinTopics("transactions", "labels", "questions", "answers", 1)
#: Where a worker may fall: before anything is sent, and after each effect.
STEPS = ("decided", "sent", "asked", "logged", "stored", "committed")


@dataclass
class Bus:
    """Topics, committed places and stores that outlive workers."""

    partitions: int
    topics: dict[tuple[str, int], list[ConsumerRecord]] = field(default_factory=dict)
    committed: dict[tuple[str, int], int] = field(default_factory=dict)
    stores: dict[int, MemoryStore] = field(default_factory=dict)
    alerts: list[tuple[int, ProducerRecord]] = field(default_factory=list)
    decisions: list[tuple[int, ProducerRecord]] = field(default_factory=list)
    dead: list[ProducerRecord] = field(default_factory=list)
    join_counts: dict[tuple[str, str], int] = field(default_factory=dict)

    def of(self, topic: str, partition: int) -> list[ConsumerRecord]:
        return self.topics.setdefault((topic, partition), [])

    def send(self, topic: str, partition: int, message: ProducerRecord) -> None:
        records = self.of(topic, partition)
        records.append(ConsumerRecord(len(records), START_MS, message.key, message.value, message.headers))

    def produce(self, topic: str, user: str, value: dict[str, Any]) -> None:
        key = user.encode()
        self.send(topic, sum(key) % self.partitions, ProducerRecord(key, orjson.dumps(value)))

    def requests(self) -> list[EntityRequest]:
        """Every question in the order of its log, each once."""
        found: dict[int, EntityRequest] = {}
        for partition in range(self.partitions):
            for record in self.of(TOPICS.requests, partition):
                what = decode_request(record.value)
                if isinstance(what, EntityRequest):
                    found.setdefault((what.pending_id, what.entity), what)
        return list(found.values())


class Worker:
    """One worker that has every partition."""

    def __init__(
        self,
        bus: Bus,
        bundle: Bundle,
        config: PipelineConfig,
        now_ms: int,
        kind: type[EntityJoinPipeline] = EntityJoinPipeline,
    ) -> None:
        names = EntityJoinTopics(
            TOPICS.transactions, TOPICS.labels, TOPICS.requests, TOPICS.responses, bus.partitions
        )
        self.bus = bus
        self.pipeline = kind(bundle, config, names)
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
            batches.append(Batch(topic, partition, hash_id(f"{topic}:{partition}"), records))
        stores = [bus.stores.setdefault(batch.partition, MemoryStore()) for batch in batches]
        decided = decide(self.pipeline, batches, stores, self.now_ms)
        return self._carry_out([batch for batch, _ in decided], [effects for _, effects in decided], falls_at)

    def _carry_out(self, batches: list[Batch], all_effects: list[BatchEffects], falls_at: str) -> bool:
        bus = self.bus
        for step in STEPS:
            if step == "sent":
                for batch, effects in zip(batches, all_effects, strict=True):
                    bus.alerts += [(batch.partition, message) for message in effects.alerts]
                    bus.decisions += [(batch.partition, message) for message in effects.decisions]
                    bus.dead += effects.dead_letters
                self._send(effects.outputs for effects in all_effects)
            elif step == "asked":
                self._send(effects.requests for effects in all_effects)
            elif step == "stored":
                for batch, effects in zip(batches, all_effects, strict=True):
                    bus.stores[batch.partition].write(effects.writes)
                    for what, count in effects.join_counts.items():
                        bus.join_counts[what] = bus.join_counts.get(what, 0) + count
            elif step == "committed":
                for batch, effects in zip(batches, all_effects, strict=True):
                    place = (
                        self.places[batch.topic, batch.partition]
                        if effects.resume_offset is None
                        else effects.resume_offset
                    )
                    bus.committed[batch.topic, batch.partition] = place
            if step == falls_at:
                return False
        return True

    def _send(self, outputs: Any) -> None:
        for each in outputs:
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
    kind: type[EntityJoinPipeline] = EntityJoinPipeline,
) -> None:
    """Let workers work, one after another's fall, so many of them, until nothing waits."""
    worker = Worker(bus, bundle, config, now_ms, kind)
    while waiting := worker.waiting():
        chosen = rng.sample(waiting, rng.randint(1, len(waiting)))
        falls_at = rng.choice(STEPS) if crashes and rng.random() < 0.3 else ""
        crashes -= bool(falls_at)
        if not worker.round(chosen, rng.randint(1, most), falls_at):
            worker = Worker(bus, bundle, config, now_ms, kind)
    assert worker.pipeline.backlog == 0
