"""Fetched batches become the pipeline's records: within bounds of memory, and past records to be skipped."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar, Final

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatch

from stream.errors import UnreadableBatchError
from stream.events.records import ConsumerRecord
from stream.kafka.record_batches import DamagedBatchError, read_records, uncompressed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from stream.runtime.faust_adapter.hooks import WorkerHooks

__all__ = ["FetchLimits", "install_records"]

logger = logging.getLogger(__name__)

_LENGTH_AT: Final = 8
_LOG_OVERHEAD: Final = 12
_MAGIC_AT: Final = 16
_MAGIC_OF_BATCHES: Final = 2

#: Bytes of a message set's first message without key and value, and of a batch's header, by version.
_HEADER_BYTES: Final = (26, 34, 61)

#: Uncompressed bytes that a partition hands over at once, beyond the batch that reaches them.
_MAX_HANDED_BYTES: Final = 16 << 20


class FetchLimits:
    """Bounds of a worker's fetches.

    Parameters
    ----------
    max_batch_bytes
        A batch with more uncompressed bytes is read record by record.
    max_field_bytes
        Keys and values of such a batch are cut to this size.
    hooks
        The worker: knows the records that a person asked to skip.
    """

    def __init__(self, max_batch_bytes: int, max_field_bytes: int, hooks: WorkerHooks) -> None:
        self.max_batch_bytes = max_batch_bytes
        self.max_field_bytes = max_field_bytes
        self.hooks = hooks
        self._reported: set[tuple[str, int, int]] = set()

    def report_skipped(self, topic: str, partition: int, offsets: range, reason: str) -> None:
        """Log and count skipped records, once even if they are fetched again."""
        if (topic, partition, offsets.start) not in self._reported:
            self._reported.add((topic, partition, offsets.start))
            logger.warning(
                "%s [%d]: skipped the offsets %d to %d on request%s",
                topic, partition, offsets.start, offsets.stop - 1, reason,
            )  # fmt: skip
            self.hooks.on_skipped(topic, len(offsets))


class _RawBatches:
    """Splits a fetched partition's bytes into batches; the last one may be incomplete and is left out."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0

    def size_in_bytes(self) -> int:
        return len(self._data)

    def has_next(self) -> bool:
        return self._end() <= len(self._data)

    def _end(self) -> int:
        length_at = self._at + _LENGTH_AT
        if self._at + _LOG_OVERHEAD > len(self._data):
            return len(self._data) + 1
        size = int.from_bytes(self._data[length_at : length_at + 4], signed=True)
        # A negative length would be a loop without end; what is left is one damaged batch.
        return self._at + _LOG_OVERHEAD + size if size > 0 else len(self._data)

    def next_batch(self) -> memoryview:
        end = self._end()
        batch = self._data[self._at : end]
        self._at = end
        return batch


class _SlimRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    """Makes the pipeline's records of a fetched partition."""

    limits: ClassVar[FetchLimits]
    next_fetch_offset: int
    #: Uncompressed bytes of the batches that were begun since the last handover.
    handed = 0

    def __iter__(self) -> Iterator[ConsumerRecord]:
        return self._records_iterator  # type: ignore[no-any-return]  # without a step in between

    def _unpack_records(self) -> Iterator[ConsumerRecord]:
        """Yield the records of committed transactions, and those that belong to none."""
        while self._records.has_next():
            raw = self._records.next_batch()
            try:
                yield from self._records_of(raw)
            except DamagedBatchError as error:
                self._pass_over(raw, str(error))

    def _records_of(self, raw: memoryview) -> Iterator[ConsumerRecord]:
        batch = self._checked(raw)
        if self._isolation_level == fetcher.READ_COMMITTED and batch.producer_id is not None:
            self._consume_aborted_up_to(batch.base_offset)
            if batch.is_control_batch and self._ends_aborted(batch):
                self._aborted_producers.discard(batch.producer_id)
            if batch.is_transactional and batch.producer_id in self._aborted_producers:
                self.next_fetch_offset = max(self.next_fetch_offset, batch.next_offset)
                return
        if not batch.is_control_batch:
            skipped = self.limits.hooks.skipped_offsets(*self._tp)
            records = self._decoded(raw, batch)
            yield from self._without(skipped, records) if skipped else records
        # The last record may have been removed by compaction: the next fetch begins at the next batch.
        self.next_fetch_offset = max(self.next_fetch_offset, batch.next_offset)

    def _ends_aborted(self, batch: Any) -> bool:
        """Return whether a control batch is the marker of an aborted transaction."""
        try:
            return bool(self._contains_abort_marker(batch))
        except Exception as error:
            raise DamagedBatchError(f"its control record cannot be parsed: {error!r}") from error

    def _checked(self, raw: memoryview) -> Any:
        """Return the client's parser of a batch with a valid checksum."""
        magic = raw[_MAGIC_AT] if len(raw) > _MAGIC_AT else 0
        # The client's parser is compiled, and reads a header without looking how long the batch is.
        if len(raw) < _HEADER_BYTES[min(magic, _MAGIC_OF_BATCHES)]:
            raise DamagedBatchError(f"{len(raw)} bytes are less than a header")
        try:
            if magic >= _MAGIC_OF_BATCHES:
                batch = DefaultRecordBatch(bytes(raw))
            else:
                batch = LegacyRecordBatch(bytes(raw), magic)
            valid = not self._check_crcs or batch.validate_crc()
        except Exception as error:
            raise DamagedBatchError(f"the batch cannot be parsed: {error!r}") from error
        if not valid:
            raise DamagedBatchError("its checksum is wrong")
        return batch

    def _decoded(self, raw: memoryview, batch: Any) -> Iterator[ConsumerRecord]:
        """Yield the records from the next offset on: by the client's parser, or one by one if that fails."""
        if raw[_MAGIC_AT] < _MAGIC_OF_BATCHES:  # the client's class for these does not tell
            try:
                yield from self._slim(batch)
            except Exception as error:
                raise DamagedBatchError(f"its records cannot be parsed: {error!r}") from error
            return
        plain = raw if batch.compression_type == 0 else uncompressed(raw, self.limits.max_batch_bytes)
        if plain is not None:
            self.handed += len(plain)
            try:
                yield from self._slim(batch if plain is raw else DefaultRecordBatch(plain))
            except Exception as error:  # noqa: BLE001 - the parser's errors are of many classes
                logger.debug("%s: reading a batch record by record: %r", self._tp, error)
            else:
                return
        for record in read_records(raw, self.limits.max_field_bytes):
            if record.offset >= self.next_fetch_offset:
                if plain is None:
                    self.handed += len(record.key or b"") + len(record.value or b"")
                self.next_fetch_offset = record.offset + 1
                yield record

    def _slim(self, batch: Any) -> Iterator[ConsumerRecord]:
        for record in batch:
            offset = record.offset
            if offset >= self.next_fetch_offset:
                self.next_fetch_offset = offset + 1
                time_ms = record.timestamp  # None in the oldest format
                yield ConsumerRecord(
                    offset,
                    -1 if time_ms is None else time_ms,
                    record.key,
                    record.value,
                    tuple(record.headers),
                )

    def _without(
        self, skipped: Collection[int], records: Iterator[ConsumerRecord]
    ) -> Iterator[ConsumerRecord]:
        """Leave out records that a person asked to skip."""
        topic, partition = self._tp
        for record in records:
            if record.offset in skipped:
                self.limits.report_skipped(topic, partition, range(record.offset, record.offset + 1), "")
            else:
                yield record

    def _pass_over(self, raw: memoryview, reason: str) -> None:
        """Continue behind a damaged batch if a person has asked for that.

        Raises
        ------
        UnreadableBatchError
            Nobody has.
        """
        topic, partition = self._tp
        first = self.next_fetch_offset
        following = max(_next_offset(raw), first + 1)
        offsets = range(first, following)
        if not any(offset in offsets for offset in self.limits.hooks.skipped_offsets(topic, partition)):
            raise UnreadableBatchError(topic, partition, first, following - 1, reason)
        self.limits.report_skipped(topic, partition, offsets, f": {reason}")
        self.next_fetch_offset = following


def _next_offset(raw: memoryview) -> int:
    """Return the offset behind a batch, as far as its header can be believed; 0 if it cannot."""
    if len(raw) < _MAGIC_AT + 11 or raw[_MAGIC_AT] < _MAGIC_OF_BATCHES:
        return 0
    base = int.from_bytes(raw[:8], signed=True)
    last_delta = int.from_bytes(raw[23:27], signed=True)
    return base + last_delta + 1 if last_delta >= 0 else 0


class _Handover(fetcher.FetchResult):  # type: ignore[misc]
    """Hands a partition's records over in portions, the readable ones before the error of the next."""

    def getall(self, max_records: int | None = None) -> list[ConsumerRecord]:
        if not self.check_assignment(self._topic_partition) or not self.has_more():
            return []
        records: _SlimRecords = self._partition_records  # type: ignore[has-type]
        records.handed = 0
        handed: list[ConsumerRecord] = []
        try:
            for record in records:
                handed.append(record)
                if len(handed) == max_records or records.handed > _MAX_HANDED_BYTES:
                    break
            else:
                self._partition_records = None
        except UnreadableBatchError:
            if not handed:
                raise
            # The generator has ended: the next fetch meets the batch at its first record, and raises.
            self._partition_records = None
        state = self._assignment.state_value(self._topic_partition)
        state.consumed_to(records.next_fetch_offset)
        return handed


def install_records(limits: FetchLimits) -> None:
    """Let aiokafka make the pipeline's records in this process, see the package's items 7 and 10."""
    fetcher.PartitionRecords = type("_SlimRecords", (_SlimRecords,), {"limits": limits})
    fetcher.FetchResult = _Handover
    fetcher.MemoryRecords = _RawBatches
