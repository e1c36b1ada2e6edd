"""Record batches: every codec, within the bound, and a damaged batch never ends in anything but its error."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.events.records import ConsumerRecord
from stream.kafka.record_batches import BatchHeader, DamagedBatchError, read_records, uncompressed
from support.raw_batches import batch_of, sealed

CODECS = range(5)
MIB = 1 << 20

names = st.text(max_size=8)
headers = st.lists(st.tuples(names, st.none() | st.binary(max_size=8)), max_size=3).map(tuple)
contents = st.tuples(
    st.integers(0, 1 << 60), st.none() | st.binary(max_size=20), st.none() | st.binary(max_size=200), headers
)


@st.composite
def batches(draw: st.DrawFn) -> list[ConsumerRecord]:
    offset = draw(st.integers(0, 1 << 40))
    found = []
    for timestamp, key, value, own in draw(st.lists(contents, min_size=1, max_size=8)):
        found.append(ConsumerRecord(offset, timestamp, key, value, own))
        offset += draw(st.integers(1, 3))  # compaction leaves gaps
    return found


@given(batches(), st.sampled_from(CODECS))
def test_a_batch_is_read_as_it_was_written(records: list[ConsumerRecord], codec: int) -> None:
    batch = batch_of(records, codec)
    header = BatchHeader(batch)
    assert (header.base_offset, header.next_offset) == (records[0].offset, records[-1].offset + 1)
    assert list(read_records(batch, MIB)) == records
    plain = uncompressed(batch, MIB)
    assert plain is not None
    assert list(read_records(plain, MIB)) == records


@pytest.mark.parametrize("codec", CODECS)
@given(batches(), st.integers(1, 50))
def test_fields_are_cut_and_offsets_are_not(codec: int, records: list[ConsumerRecord], limit: int) -> None:
    found = list(read_records(batch_of(records, codec), limit))
    assert [record.offset for record in found] == [record.offset for record in records]
    for short, whole in zip(found, records, strict=True):
        assert short.key == (whole.key if whole.key is None else whole.key[:limit])
        assert short.value == (whole.value if whole.value is None else whole.value[:limit])
        assert len(short.headers) <= len(whole.headers)


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_a_bomb_is_read_within_the_bound(codec: int) -> None:
    bomb = batch_of([ConsumerRecord(at, 0, b"k", bytes(64 * MIB)) for at in range(3)], codec)
    # Snappy cannot compress more than 21 to 1, and Kafka's Java client writes it in blocks of 32 KiB.
    assert len(bomb) < (16 if codec == 2 else 1) * MIB
    tracemalloc.start()
    try:
        assert uncompressed(bomb, 4 * MIB) is None
        found = [(record.offset, len(record.value or b"")) for record in read_records(bomb, MIB)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == [(0, MIB), (1, MIB), (2, MIB)]
    assert peak < 24 * MIB


def test_header_names_need_not_be_utf_8() -> None:
    batch = batch_of([ConsumerRecord(7, 0, b"k", b"v", (("name", b"1"),))])
    [record] = read_records(sealed(batch.replace(b"name", b"n\xff\xfee")), MIB)
    assert record.headers == (("n\\xff\\xfee", b"1"),)


def test_half_a_million_empty_headers_are_bounded() -> None:
    batch = batch_of([ConsumerRecord(0, 0, b"k", b"v", (("", b""),) * 560_000)], 1)
    assert len(batch) < 4096
    [record] = read_records(batch, 1000)
    assert (record.value, len(record.headers)) == (b"v", 500)


@given(batches(), st.sampled_from(CODECS), st.data())
def test_a_damaged_batch_gives_records_or_its_error(
    records: list[ConsumerRecord], codec: int, data: st.DataObject
) -> None:
    batch = bytearray(batch_of(records, codec))
    for _ in range(data.draw(st.integers(1, 4))):
        batch[data.draw(st.integers(21, len(batch) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(batch)))
    for damaged in (bytes(batch), bytes(batch[:end])):
        for read in (lambda raw: uncompressed(raw, MIB), lambda raw: list(read_records(raw, MIB))):
            try:
                read(damaged)
            except DamagedBatchError as error:
                assert str(error)
