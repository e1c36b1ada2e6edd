"""The partition of a key, as Kafka's Java clients and librdkafka choose it."""

from __future__ import annotations

from typing import Final
from zlib import crc32

from aiokafka.partitioner import murmur2

__all__ = ["partition_of"]

_MAX_INT32: Final = 0x7FFFFFFF


def partition_of(key: bytes, partitions: int, partitioner: str) -> int:
    """Return the partition that producers with such a partitioner choose for a key."""
    hashed = murmur2(key) & _MAX_INT32 if partitioner == "murmur2" else crc32(key)
    return int(hashed % partitions)
