"""Partitions of keys: as Kafka's Java client and librdkafka compute them, one by one and for whole batches."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, get_args
from zlib import crc32

import pytest
from aiokafka.partitioner import murmur2
from hypothesis import given
from hypothesis import strategies as st

from stream.kafka.key_placement import place_keys
from stream.kafka.partitioner import partition_of
from stream.pipeline.effects import PipelineConfig
from stream.pipeline.placement import misplaced_keys
from stream.settings import Partitioner
from support.pipelines import record, run, transaction

if TYPE_CHECKING:
    from stream.scoring.bundle import Bundle

# Apache Kafka's own test of the hash in its Java clients, UtilsTest.testMurmur2.
JAVA = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}

# librdkafka's own test of the hash, unittest_murmur2.
LIBRDKAFKA = {
    b"kafka": 0xD067CF64,
    b"giberish123456789": 0x8F552B0C,
    b"1234": 0x9FC97B14,
    b"234": 0xE7C009CA,
    b"34": 0x873930DA,
    b"4": 0x5A4B5CA1,
    b"": 0x106E08D9,
}

#: Reversible to the hash: so many partitions that its bits without the sign are the partition.
ALL_BITS = 1 << 31


@pytest.mark.parametrize("key", JAVA)
def test_murmur2_is_that_of_kafkas_java_client(key: bytes) -> None:
    place = JAVA[key] & 0x7FFFFFFF
    assert partition_of(key, ALL_BITS, "murmur2") == place
    assert misplaced_keys([key], place, ALL_BITS, "murmur2") == 0
    assert misplaced_keys([key], place ^ 1, ALL_BITS, "murmur2") == 1


@pytest.mark.parametrize("key", LIBRDKAFKA)
def test_murmur2_is_that_of_librdkafka(key: bytes) -> None:
    assert murmur2(key) == LIBRDKAFKA[key]
    assert misplaced_keys([key], LIBRDKAFKA[key] & 0x7FFFFFFF, ALL_BITS, "murmur2") == 0


def test_crc32_is_the_common_one() -> None:
    """The check value of CRC-32, and librdkafka's partition 0 for an empty key if it is not random."""
    assert partition_of(b"123456789", 1 << 32, "crc32") == crc32(b"123456789") == 0xCBF43926
    assert partition_of(b"", 7, "crc32") == 0
    assert misplaced_keys([b"123456789", b""], 0, 7, "crc32") == (0xCBF43926 % 7 != 0)


@given(
    st.lists(st.binary(max_size=40) | st.text(max_size=20).map(str.encode), max_size=60),
    st.integers(1, 10_000),
    st.integers(0, 3),
)
def test_a_batch_is_counted_as_its_keys_one_by_one(
    keys: list[bytes], partitions: int, partition: int
) -> None:
    for partitioner in get_args(Partitioner):
        expected = 0
        if partitioner != "any":
            expected = sum(partition_of(key, partitions, partitioner) != partition for key in keys)
        assert misplaced_keys(keys, partition, partitions, partitioner) == expected


def test_no_partition_is_that_of_a_key_if_producers_choose_it() -> None:
    with pytest.raises(ValueError, match="'any' has no partition"):
        partition_of(b"user", 4, "any")


@pytest.mark.parametrize("partitioner", get_args(Partitioner))
def test_the_pipeline_counts_valid_transactions(bundle: Bundle, partitioner: Partitioner) -> None:
    """The batch is of partition 3; a rejected record is counted as rejected only."""
    users = ["ana", "bjørn", "李", *(f"user-{number}" for number in range(50)), "ana"]
    records = [
        record(at, transaction(user_id=user, transaction_id=f"t-{at}"), key=user.encode())
        for at, user in enumerate(users)
    ]
    records.append(record(len(records), transaction(user_id="ana"), key=b"somebody else"))
    config = PipelineConfig(partitioner=partitioner, partitions=4)
    expected = 0
    if partitioner != "any":
        expected = sum(partition_of(user.encode(), 4, partitioner) != 3 for user in users)
    effects = run(records, bundle, config)
    assert effects.misplaced == expected
    assert (effects.misplaced > 0) == (partitioner != "any")


@dataclasses.dataclass(frozen=True)
class Read:
    partition: int
    key: bytes | None


@given(
    st.lists(st.tuples(st.integers(0, 4), st.none() | st.binary(max_size=3)), max_size=40), st.integers(1, 5)
)
def test_a_sample_counts_each_key_of_a_partition_once(
    pairs: list[tuple[int, bytes | None]], count: int
) -> None:
    records = [Read(partition % count, key) for partition, key in pairs]
    found = place_keys(records, count)
    keys = {(item.partition, item.key) for item in records if item.key}
    assert found.keys == len(keys)
    assert found.users == len({key for _, key in keys})
    assert set(found.split) == {
        key for _, key in keys if len({partition for partition, other in keys if other == key}) > 1
    }
    for partitioner, only in (("murmur2", found.murmur2), ("crc32", found.crc32)):
        agreeing = sum(partition_of(key, count, partitioner) == place for place, key in keys)
        assert only + found.both == agreeing
        assert sum(getattr(here, partitioner) for here in found.partitions.values()) == agreeing
    assert sum(here.keys for here in found.partitions.values()) == len(keys)
