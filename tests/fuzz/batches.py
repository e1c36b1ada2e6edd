"""Hostile bytes of a fetch: batches of every codec and version, changed before the client has parsed them."""

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING

from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.structs import TopicPartition

from stream.errors import UnreadableBatchError
from stream.events.records import ConsumerRecord
from stream.runtime.faust_adapter.hooks import WorkerHooks
from stream.runtime.faust_adapter.records import FetchLimits, _RawBatches, _SlimRecords
from support.raw_batches import batch_of, sealed

if TYPE_CHECKING:
    import random

PLACE = TopicPartition("transactions", 0)
LIMITS = FetchLimits(1 << 20, 70_000, WorkerHooks())
#: The header of a batch of version 2.
_HEADER = 61
#: None, gzip, snappy, lz4 and zstd.
_CODECS = range(5)
_EXTREMES = (0, 1, -1, 127, -128, 2**15, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))


class _Records(_SlimRecords):
    limits = LIMITS


def ordinary(rng: random.Random, first: int = 0) -> tuple[bytes, list[ConsumerRecord]]:
    """Return a batch of version 2, and its records."""
    records = []
    for at in range(rng.choice([1, 1, 2, 5, 40])):
        value = (
            None if rng.random() < 0.1 else rng.randbytes(rng.choice([0, 3, 200])) * rng.choice([1, 1, 50])
        )
        headers = [(f"h{number}", rng.randbytes(3)) for number in range(rng.choice([0, 0, 1, 3]))]
        key = None if rng.random() < 0.1 else rng.randbytes(5)
        records.append(ConsumerRecord(first + at, 1_700_000_000_000 + at, key, value, tuple(headers)))
    return batch_of(records, rng.choice(_CODECS)), records


def old(rng: random.Random) -> tuple[bytes, int]:
    """Return a message set of version 0 or 1, and how many messages it has."""
    count = rng.choice([1, 3, 20])
    builder = LegacyRecordBatchBuilder(rng.choice([0, 1]), rng.choice([0, 1, 2]), 1 << 20)
    for at in range(count):
        builder.append(at, 1_700_000_000_000 + at, rng.randbytes(4), rng.randbytes(rng.choice([0, 60])))
    return bytes(builder.build()), count


def hostile(rng: random.Random) -> bytes:
    """Return the bytes of a partition in a fetch, most of them with something wrong."""
    batches = []
    for at in range(rng.choice([1, 1, 1, 2, 3])):
        batch = old(rng)[0] if rng.random() < 0.2 else ordinary(rng, 100 * at)[0]
        if rng.random() < 0.85:
            batch = _spoilt(rng, batch)
        batches.append(batch)
    data = b"".join(batches)
    return data[: rng.randrange(len(data) + 1)] if rng.random() < 0.1 else data


def _spoilt(rng: random.Random, batch: bytes) -> bytes:
    made = bytearray(batch)
    for _ in range(rng.choice([1, 1, 2, 8])):
        kind = rng.randrange(5)
        at = rng.randrange(len(made)) if made else 0
        if kind == 0 and made:
            made[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del made[at : at + rng.choice([1, 4, 30])]
        elif kind == 2:
            made[at:at] = rng.randbytes(rng.choice([1, 4, 30]))
        elif kind == 3:
            layout = rng.choice([">b", ">h", ">i", ">q"])
            low = -(1 << (8 * struct.calcsize(layout) - 1))
            number = max(low, min(-low - 1, rng.choice(_EXTREMES)))
            where = rng.randrange(min(len(made), _HEADER) + 1)
            made[where : where + struct.calcsize(layout)] = struct.pack(layout, number)
        elif len(made) > _HEADER:
            made[_HEADER:] = (
                rng.randbytes(rng.choice([0, 1, 50])) + made[_HEADER:][: rng.randrange(len(made))]
            )
    # With a checksum that is right the damage gets as far as the parser.
    return sealed(bytes(made)) if rng.random() < 0.8 and len(made) > _HEADER else bytes(made)


def check(data: bytes) -> int:
    """Read a partition's bytes as a worker does; returns the number of records.

    Raises
    ------
    AssertionError
        A record has fields that the pipeline does not expect, or offsets that go back.
    """
    records = _Records(PLACE, _RawBatches(data), [], 0, None, None, check_crcs=True, isolation_level=1)
    count, before = 0, -1
    try:
        for record in itertools.islice(records, 1_000_000):
            assert record.offset > before, "offsets go back"
            before = record.offset
            assert type(record.timestamp_ms) is int
            for part in (record.key, record.value):
                assert part is None or isinstance(part, bytes | memoryview | bytearray)
            assert all(isinstance(name, str) for name, _ in record.headers)
            count += 1
    except UnreadableBatchError as error:
        assert "transactions" in str(error)
    return count
