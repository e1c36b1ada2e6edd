"""Messages between stages of a newer version end the worker: as dead letters they leave transactions undecided."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from stream.errors import InvalidRecordError, NewerFormatError
from stream.events.records import ConsumerRecord
from stream.pipeline.effects import Batch, PipelineConfig
from stream.pipeline.entity_join.messages import (
    EntityRequest,
    EntityResponse,
    LabelUpdate,
    decode_join_record,
    decode_request,
    ownership_marker,
)
from stream.pipeline.entity_join.topology import EntityJoinPipeline
from stream.state.store import MemoryStore
from support.bundles import made_bundle
from support.entity_joins import TOPICS
from support.profiles import PROFILES, START_MS

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION = 1
NEWER = 2

MESSAGES: dict[str, tuple[bytes, Callable[[bytes], Any], str]] = {
    "request": (
        EntityRequest(1, 2, 3, 0, START_MS, 100, 100, 4, 5, 1.0).encode().value or b"",
        decode_request,
        TOPICS.requests,
    ),
    "label update": (
        LabelUpdate(1, 2, 3, 1, START_MS, 4).encode().value or b"",
        decode_request,
        TOPICS.requests,
    ),
    "response": (
        EntityResponse(1, 2, "00" * 8, None).encode().value or b"",
        lambda value: decode_join_record(ConsumerRecord(0, START_MS, None, value)),
        TOPICS.responses,
    ),
    "ownership marker": (
        ownership_marker().value or b"",
        lambda value: decode_join_record(ConsumerRecord(0, START_MS, None, value)),
        TOPICS.responses,
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_newer_message_ends_the_worker(name: str) -> None:
    value, decode, topic = MESSAGES[name]
    decode(value)
    assert value[1] == VERSION
    newer = bytes([value[0], NEWER]) + value[2:] + b"what it has more"
    with pytest.raises(
        NewerFormatError, match="version 2, newer than the 1 of this program: upgrade this worker"
    ):
        decode(newer)
    pipeline = EntityJoinPipeline(made_bundle(entities=PROFILES), PipelineConfig(), TOPICS)
    records = [ConsumerRecord(0, START_MS, None, newer)]
    with pytest.raises(NewerFormatError):
        pipeline.process(Batch(topic, 0, 1, records), MemoryStore(), START_MS)


@pytest.mark.parametrize("value", [b"", b"A", b"Z\x02", b"A\x00", b"A\xff", b"{}", b"C\x01", b"R\x11"])
@pytest.mark.parametrize("decode", ["request", "response"])
def test_what_is_no_message_is_a_dead_letter(value: bytes, decode: str) -> None:
    with pytest.raises(InvalidRecordError):
        MESSAGES[decode][1](value)
