"""Quix Streams: a stateful ``StreamingDataFrame``, state in RocksDB, changelog on, two output topics.

As Quix's documentation writes it. Chosen in its favour: bytes for keys, values and state (no codec), state
keyed by the message's key with the records' own suffixes, its default checkpoint every five seconds (one
changelog record per user and checkpoint, where the others write one per event), and its default producer
settings but for a larger local queue.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from quixstreams import Application
from quixstreams.context import message_context

from benchmarks.peers.common import Job, pipeline_of, source_of
from stream.events.records import ConsumerRecord
from stream.pipeline.effects import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

#: A record's key is the user's id and these many bytes.
_SUFFIX = 6


class _StateReader:
    """Reads a user's records from the state of the message under way."""

    state: Any = None

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.state.get_bytes(key[-_SUFFIX:]) for key in keys]


def build(job: Job) -> Application:
    """Return the application."""
    pipeline = pipeline_of(job)
    app = Application(
        broker_address=job.bootstrap_servers,
        consumer_group=job.group,
        auto_offset_reset="earliest",
        state_dir=job.state,
        loglevel="WARNING",
        producer_extra_config={"queue.buffering.max.messages": 1_000_000},
    )
    raw = {"key_deserializer": "bytes", "value_deserializer": "bytes"}
    source = app.topic(job.source, **raw)
    alerts = app.topic(job.alerts, key_serializer="bytes", value_serializer="bytes")
    decisions = app.topic(job.decisions, key_serializer="bytes", value_serializer="bytes")
    sources = [source_of(job, partition) for partition in range(job.partitions)]
    reader = _StateReader()

    def score(value: bytes, key: bytes, timestamp: int, _headers: Any, state: Any) -> Any:
        context = message_context()
        partition = context.partition
        record = ConsumerRecord(context.offset, timestamp, key, value)
        batch = Batch(job.source, partition, sources[partition], [record])
        reader.state = state
        effects = pipeline.process(batch, reader, time.time_ns() // 1_000_000)
        for changed, content in effects.writes:
            if content is None:
                state.delete(changed[-_SUFFIX:])
            else:
                state.set_bytes(changed[-_SUFFIX:], content)
        return effects

    scored = app.dataframe(source).apply(score, stateful=True, metadata=True)
    scored.apply(lambda effects: [message.value for message in effects.decisions], expand=True).to_topic(
        decisions
    )
    scored.apply(lambda effects: [message.value for message in effects.alerts], expand=True).to_topic(alerts)
    return app


if __name__ == "__main__":
    build(Job.from_command()).run()
