"""Record batches as brokers store them: decompression within a bound, and a tolerant reader of the records.

The client's own parser decompresses a whole batch at once, however large, and gives up a whole batch for one
odd byte in a header's name. Here a batch is decompressed in chunks. A batch that stays within the bound goes
to the client's parser, which is fast; :func:`read_records` reads any other batch record by record.

The format is described in https://kafka.apache.org/documentation/#recordbatch.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final

import cramjam
import lz4.frame
import zstandard

from stream.events.records import ConsumerRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["BatchHeader", "DamagedBatchError", "read_records", "uncompressed"]

#: Base offset, length, leader epoch, magic, CRC, attributes, last offset delta, first and largest timestamp,
#: producer id, producer epoch, base sequence, number of records.
_HEADER: Final = struct.Struct(">qiibIhiqqqhii")
_ATTRIBUTES: Final = struct.Struct(">h")
_ATTRIBUTES_AT: Final = 21
_CODEC_MASK: Final = 0x07
_LOG_APPEND_TIME: Final = 0x08

_GZIP, _SNAPPY, _LZ4, _ZSTD = 1, 2, 3, 4

#: Uncompressed bytes that a decompressor returns at once.
_CHUNK_BYTES: Final = 1 << 20

#: Largest window of a zstd frame, that of the highest level of compression.
_ZSTD_WINDOW_BYTES: Final = 1 << 27

#: Snappy's densest element copies 64 bytes and takes 3.
_SNAPPY_RATIO: Final = 64

_XERIAL: Final = b"\x82SNAPPY\x00"
_XERIAL_HEADER_BYTES: Final = 16

_MAX_VARINT_BYTES: Final = 10


class DamagedBatchError(Exception):
    """A record batch cannot be decoded; the text says why."""


class BatchHeader:
    """The header of a record batch.

    Parameters
    ----------
    batch
        The bytes of the batch, from its base offset on.
    """

    def __init__(self, batch: bytes | memoryview) -> None:
        if len(batch) < _HEADER.size:
            raise DamagedBatchError(f"{len(batch)} bytes are less than a header")
        fields = _HEADER.unpack_from(batch)
        self.base_offset: int = fields[0]
        attributes: int = fields[5]
        self.next_offset: int = fields[0] + fields[6] + 1
        self.first_timestamp: int = fields[7]
        self.largest_timestamp: int = fields[8]
        self.count: int = fields[12]
        self.codec = attributes & _CODEC_MASK
        self.log_append_time = bool(attributes & _LOG_APPEND_TIME)


def uncompressed(batch: bytes | memoryview, max_bytes: int) -> bytes | None:
    """Return the batch without compression, None if its records take more than ``max_bytes``.

    Raises
    ------
    DamagedBatchError
        The records cannot be decompressed.
    """
    header = BatchHeader(batch)
    if header.codec == 0:
        return bytes(batch)
    parts = [b""]
    size = 0
    for chunk in _chunks(batch, header.codec):
        parts.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            return None
    head = bytearray(batch[: _HEADER.size])
    [attributes] = _ATTRIBUTES.unpack_from(head, _ATTRIBUTES_AT)
    _ATTRIBUTES.pack_into(head, _ATTRIBUTES_AT, attributes & ~_CODEC_MASK)
    parts[0] = bytes(head)
    return b"".join(parts)


def read_records(batch: bytes | memoryview, max_field_bytes: int) -> Iterator[ConsumerRecord]:
    r"""Yield the records of a batch of any size, one at a time.

    A key or value longer than ``max_field_bytes`` is cut there, and so are the headers, all of them together:
    such a record is too large for every purpose but a dead letter. Bytes of a header's name that are not
    UTF-8 are replaced by escapes such as ``\xff``.

    Raises
    ------
    DamagedBatchError
        The batch cannot be decoded from the next record on.
    """
    header = BatchHeader(batch)
    records = _Bytes(_chunks(batch, header.codec))
    for _ in range(header.count):
        yield _read_record(records, header, max_field_bytes)


def _read_record(records: _Bytes, header: BatchHeader, max_bytes: int) -> ConsumerRecord:
    length = records.varint()
    end = records.position + length
    records.take(1)  # attributes, unused
    timestamp = header.first_timestamp + records.varint()
    offset = header.base_offset + records.varint()
    key = _field(records, end, max_bytes)
    value = _field(records, end, max_bytes)
    headers: list[tuple[str, bytes]] = []
    left = max_bytes
    for _ in range(records.varint()):
        name = _field(records, end, max(left, 0)) or b""
        text = _field(records, end, max(left, 0))
        left -= len(name) + len(text or b"") + 2
        if left >= 0:
            # Kafka allows a header without a value; the type of headers in this project does not say so.
            headers.append((name.decode(errors="backslashreplace"), text))  # type: ignore[arg-type]
    if records.position != end:
        raise DamagedBatchError(
            f"the record at offset {offset} has {length} bytes, its fields {length + records.position - end}"
        )
    if header.log_append_time:
        timestamp = header.largest_timestamp
    return ConsumerRecord(offset, timestamp, key, value, tuple(headers))


def _field(records: _Bytes, end: int, max_bytes: int) -> bytes | None:
    """Return bytes preceded by their length, cut to ``max_bytes``; None if the length is negative."""
    length = records.varint()
    if length < 0:
        return None
    if records.position + length > end:
        raise DamagedBatchError(f"a field of {length} bytes ends behind its record")
    found = records.take(min(length, max_bytes))
    records.skip(length - len(found))
    return found


class _Bytes:
    """The bytes of chunks, in order."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._at = 0
        #: How many bytes were taken or skipped.
        self.position = 0

    def _more(self) -> None:
        for chunk in self._chunks:
            if chunk:
                self._chunk, self._at = chunk, 0
                return
        raise DamagedBatchError("the records end early")

    def take(self, count: int) -> bytes:
        parts = []
        missing = count
        while missing:
            if self._at == len(self._chunk):
                self._more()
            part = self._chunk[self._at : self._at + missing]
            self._at += len(part)
            missing -= len(part)
            parts.append(part)
        self.position += count
        return b"".join(parts)

    def skip(self, count: int) -> None:
        missing = count
        while missing:
            if self._at == len(self._chunk):
                self._more()
            step = min(missing, len(self._chunk) - self._at)
            self._at += step
            missing -= step
        self.position += count

    def varint(self) -> int:
        """Return the next integer, in zigzag encoding."""
        found = 0
        for index in range(_MAX_VARINT_BYTES):
            [byte] = self.take(1)
            found |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:  # noqa: PLR2004 - the last one has no high bit
                return (found >> 1) ^ -(found & 1)
        raise DamagedBatchError("an integer has more than ten bytes")


def _chunks(batch: bytes | memoryview, codec: int) -> Iterator[bytes]:
    """Yield the uncompressed bytes of a batch's records, about a MiB at a time."""
    payload = memoryview(batch)[_HEADER.size :]
    if codec == 0:
        yield bytes(payload)
        return
    decoder = _DECODERS.get(codec)
    if decoder is None:
        raise DamagedBatchError(f"there is no codec {codec}")
    try:
        yield from decoder(payload)
    except DamagedBatchError:
        raise
    except Exception as error:
        raise DamagedBatchError(f"the records cannot be decompressed: {error}") from error


def _gzip(payload: memoryview) -> Iterator[bytes]:
    decompressor = zlib.decompressobj(wbits=31)
    rest: bytes | memoryview = payload
    while not decompressor.eof:
        found = decompressor.decompress(rest, _CHUNK_BYTES)
        rest = decompressor.unconsumed_tail
        yield found
        if not found and not rest and not decompressor.eof:
            raise DamagedBatchError("the compressed records end early")


def _snappy(payload: memoryview) -> Iterator[bytes]:
    if bytes(payload[: len(_XERIAL)]) != _XERIAL:
        yield _snappy_block(payload)
        return
    at = _XERIAL_HEADER_BYTES
    while at < len(payload):
        if at + 4 > len(payload):
            raise DamagedBatchError("the compressed records end early")
        size = int.from_bytes(payload[at : at + 4], signed=True)
        at += 4
        if not 0 <= size <= len(payload) - at:
            raise DamagedBatchError(f"a compressed block of {size} bytes ends behind its batch")
        yield _snappy_block(payload[at : at + size])
        at += size


def _snappy_block(block: memoryview) -> bytes:
    size = cramjam.snappy.decompress_raw_len(block)
    if size > _SNAPPY_RATIO * max(len(block), 1):
        raise DamagedBatchError(f"a compressed block of {len(block)} bytes cannot contain {size}")
    return bytes(cramjam.snappy.decompress_raw(block))


def _lz4(payload: memoryview) -> Iterator[bytes]:
    decompressor = lz4.frame.LZ4FrameDecompressor()
    rest = bytes(payload)
    while not decompressor.eof:
        found = decompressor.decompress(rest, max_length=_CHUNK_BYTES)
        rest = b""
        yield found
        if not found and decompressor.needs_input:
            raise DamagedBatchError("the compressed records end early")


def _zstd(payload: memoryview) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    with decompressor.stream_reader(payload) as reader:
        while found := reader.read(_CHUNK_BYTES):
            yield found


_DECODERS: Final[dict[int, Callable[[memoryview], Iterator[bytes]]]] = {
    _GZIP: _gzip,
    _SNAPPY: _snappy,
    _LZ4: _lz4,
    _ZSTD: _zstd,
}
