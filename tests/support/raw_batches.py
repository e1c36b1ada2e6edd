"""Record batches as bytes, as a producer with a defect would send them."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING

from aiokafka import errors
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stream.events.records import ConsumerRecord

#: Offsets of the CRC and of what it covers.
_CRC_AT, _COVERED_AT = 17, 21


def batch_of(records: Sequence[ConsumerRecord], codec: int = 0) -> bytes:
    """Return a batch of records; their offsets begin with the first one's and need not be contiguous."""
    first = records[0].offset
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 1 << 30)
    for record in records:
        made = builder.append(
            record.offset - first, record.timestamp_ms, record.key, record.value, list(record.headers)
        )
        assert made is not None
    batch = builder.build()
    struct.pack_into(">q", batch, 0, first)
    return bytes(batch)


def sealed(batch: bytes) -> bytes:
    """Return the batch with the length and the checksum of its bytes."""
    made = bytearray(batch)
    struct.pack_into(">i", made, 8, len(made) - 12)
    struct.pack_into(">I", made, _CRC_AT, calc_crc32c(bytes(made[_COVERED_AT:])))
    return bytes(made)


def send_batch(servers: str, topic: str, partition: int, batch: bytes) -> int:
    """Produce the bytes of a batch, and return the offset of its first record."""

    async def send() -> int:
        client = AIOKafkaClient(bootstrap_servers=servers)
        await client.bootstrap()
        try:
            await client.set_topics([topic])
            request = ProduceRequest(
                transactional_id=None,
                required_acks=-1,
                timeout=30_000,
                topics=[(topic, [(partition, batch)])],
            )
            while True:
                leader = client.cluster.leader_for_partition(TopicPartition(topic, partition))
                response = await client.send(leader, request)
                [(_, [(_, code, offset, *_)])] = response.topics
                if code != errors.NotLeaderForPartitionError.errno:
                    assert code == 0, errors.for_code(code)
                    return int(offset)
                await client.force_metadata_update()
        finally:
            await client.close()

    return asyncio.run(send())
