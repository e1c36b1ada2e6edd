"""The consumer: one event per fetch, its own commits, and every fetched record exactly once in order."""

from __future__ import annotations

import contextlib
import logging
import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final

from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types.tuples import TP, ConsumerMessage

from stream.errors import BrokerError, TopicMismatchError
from stream.kafka.incarnations import topic_id_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

__all__ = ["BatchConsumer", "BatchTransport"]


logger = logging.getLogger(__name__)

#: A restore that receives nothing for this long, although records are missing, seeks its position again.
_STANDSTILL_SECONDS: Final = 5.0

#: Longest fetch while records wait for a rebalance's end to be fetched again.
_REBALANCE_POLL_SECONDS: Final = 0.05

#: Changelog records delivered at once, at least; more than any record batch holds.
_MAX_RESTORED = 100_000


class _ConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """Bounds the wait of an empty fetch, and chooses the isolation level, by the app's settings."""

    #: The position of each partition, taken together with the records of the last fetch.
    positions: Mapping[Any, int] = MappingProxyType({})

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = self.app.fetch_max_wait_ms  # noqa: SLF001
        consumer._isolation_level = self.app.isolation_level  # noqa: SLF001
        return consumer

    async def _fetch_records(self, consumer: Any, *args: Any, **kwargs: Any) -> Any:
        records = await super()._fetch_records(consumer, *args, **kwargs)
        subscription = consumer._subscription.subscription  # noqa: SLF001
        assignment = None if subscription is None else subscription.assignment
        if assignment is not None and assignment.active:
            states = {tp: assignment.state_value(tp) for tp in assignment.tps}
            self.positions = {tp: state.position for tp, state in states.items() if state.has_valid_position}
        return records

    async def committed(self, tps: Iterable[Any]) -> dict[Any, tuple[int, str]]:
        """Return the offset and the topic id of each partition's last commit, if it has one."""
        wanted = {TopicPartition(tp.topic, tp.partition): tp for tp in tps}
        found = await self.call_thread(self._fetch_committed, list(wanted))
        return {wanted[tp]: (commit.offset, commit.metadata or "") for tp, commit in found.items()}

    async def _fetch_committed(self, wanted: list[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        found: dict[TopicPartition, OffsetAndMetadata] = (
            await self._ensure_consumer()._coordinator.fetch_committed_offsets(wanted)  # noqa: SLF001
        )
        return found

    async def _commit(self, offsets: Any) -> bool:
        """Commit with the source's id; a rejected commit ends the worker with a one-line error."""
        assigned = self.assignment()
        marked = {
            TopicPartition(tp.topic, tp.partition): OffsetAndMetadata(offset, self.consumer.incarnation(tp))
            for tp, offset in offsets.items()
            if tp in assigned
        }
        try:
            await self._ensure_consumer().commit(marked)
        except CommitFailedError:
            return False  # the group has gone on without this worker: what was not committed comes again
        except KafkaError as error:
            self.app.report(BrokerError(f"offsets cannot be committed: {error!r}"))
            return False
        return True


class BatchConsumer(driver.Consumer):  # type: ignore[misc]
    """Yields one message per fetch; its value is the records of each partition."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._done: dict[Any, int] = {}
        #: How many seeks have begun and ended: a fetch from before one says nothing about positions after it.
        self._seeks = 0
        #: By partition: its incarnation, the committed offset, that or the first offset when the last seek
        #: was made, the next offset to deliver, and the offset before which a fetch left a gap; and the
        #: partitions whose fetched records were not delivered.
        self._incarnations: dict[Any, str] = {}
        self._floor: dict[Any, int] = {}
        self._start: dict[Any, int] = {}
        self._next: dict[Any, int] = {}
        self._skipped: dict[Any, int] = {}
        self._unread: set[Any] = set()
        #: By partition: the offset behind the last delivered record, until it is done.
        self._awaited: dict[Any, int] = {}
        #: Gaps in the logs that were accepted and not yet reported: their first offset, and the next one.
        self._gaps: dict[Any, tuple[int, int]] = {}
        #: When a restore last got something, or there was none.
        self._restored_at = time.monotonic()

    def _new_consumer_thread(self) -> _ConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def done(self, tp: Any, offset: int, generation: int) -> None:
        """Allow the commit of a fully processed batch: of its last record's offset plus one."""
        if generation == self.app.consumer_generation_id:
            self._done[tp] = offset + 1

    def ack(self, message: Any) -> bool:
        """Override upstream's ack: an event leaving the agent does not mean that its effects are durable."""
        message.acked = True
        self._unacked_messages.discard(message)
        return True

    async def _commit_offsets(self, offsets: Any, start_new_transaction: bool = True) -> bool:  # noqa: FBT001, FBT002
        """Commit, and call the hook."""
        committed = bool(await super()._commit_offsets(offsets, start_new_transaction))
        if committed:
            self.app.hooks.on_committed()
        return committed

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Any:
        return [tp for tp in self._done if topics is None or tp in topics or tp.topic in topics]

    def _new_offset(self, tp: Any) -> int | None:
        return self._done.get(tp)

    async def _add_gap(self, tp: Any, offset_from: int, offset_to: int) -> None:
        """Override upstream's list of offsets between batches, which nothing uses here."""

    async def on_partitions_revoked(self, revoked: set[Any]) -> None:
        """Forget revoked partitions, after the last commit for them."""
        await super().on_partitions_revoked(revoked)
        for tp in revoked:
            self._done.pop(tp, None)
            self._floor.pop(tp, None)
            self._start.pop(tp, None)
            self._next.pop(tp, None)
            self._awaited.pop(tp, None)
            self._unread.discard(tp)

    def describe(self) -> str:
        """Return in a line which partitions are fetched, for a person."""
        return (
            f"flow {'active' if self.flow_active else 'stopped'}, rebalancing {self.app.rebalancing}, "
            f"active {sorted(self._active_partitions)}, paused {sorted(self._paused_partitions)}, "
            f"buffered {sorted(self._buffered_partitions)}, read {sorted(self._read_offset.items())}"
        )

    def incarnation(self, tp: Any) -> str:
        """Return what a partition's offsets belong to, see :mod:`stream.kafka.incarnations`."""
        return self._incarnations.get(tp) or self.app.hooks.topic_ids.get(tp.topic, "")

    def committed_offset(self, topic: str, partition: int) -> int | None:
        """Return the offset of this worker's last commit, None before the first."""
        offset: int | None = self._committed_offset.get(TP(topic, partition))
        return offset

    def position_of(self, tp: Any) -> int | None:
        """Return the offset up to which a partition's records are done, None where that is not known yet."""
        done = self._done.get(tp)
        return self._committed_offset.get(tp) if done is None else done

    async def perform_seek(self) -> None:
        """Continue at the committed offsets, unless they belong to a topic that no longer exists.

        A partition without a commit begins at its beginning. Upstream leaves its position unchanged, which
        may be behind records that were fetched during the rebalance and not delivered.
        """
        self._seeks += 1
        await super().perform_seek()
        mine = [tp for tp in self.assignment() if not self._is_changelog_tp(tp)]
        committed = await self._thread.committed(mine)
        ids = self.app.hooks.topic_ids
        current = {
            tp: (offset, found)
            for tp, (offset, found) in committed.items()
            if not found or not ids.get(tp.topic) or topic_id_of(found) == ids[tp.topic]
        }
        self._floor = {tp: offset for tp, (offset, _) in current.items()}
        self._incarnations = {tp: found for tp, (_, found) in current.items() if found}
        following = dict(self._floor)
        self._start = dict(self._floor)
        for tp, first in (await self.earliest_offsets(*mine)).items() if mine else ():
            floor = self._floor.get(tp)
            if floor is not None:
                if first <= floor:
                    continue
                self._report_expired(tp, floor, first)
                del self._floor[tp]
            elif tp in committed:
                logger.warning(
                    (
                        "%s [%d] was recreated since offset %d was committed: reading it from its beginning, "
                        "%d"
                    ),
                    tp.topic,
                    tp.partition,
                    committed[tp][0],
                    first,
                )
            await self.seek(tp, first)
            self._committed_offset.pop(tp, None)
            following[tp] = first
            self._start.setdefault(tp, first)
        self._next = following
        self._seeks += 1
        self._awaited.clear()
        self._skipped.clear()

    def _in_order(self, tp: Any, batch: list[Any]) -> list[Any]:
        """Return the fetched records that follow the delivered ones, each once.

        If they begin behind those, records were skipped: the state would take the skipped ones for replayed
        once these are delivered, so they are fetched again. A gap that is still there in the second fetch is
        the log's own.
        """
        following = self._next.get(tp)
        if following is None:
            return []  # the seek to come fetches them again
        first = batch[0].offset
        if first > following and self._skipped.get(tp) != following:
            self._skipped[tp] = following
            return []
        if first > following:
            self._gaps[tp] = following, first
        try:
            self._check_order(tp, first)
        except TopicMismatchError as error:
            self.app.report(error)
            return []
        fresh = batch if first >= following else [item for item in batch if item.offset >= following]
        if fresh:
            self._next[tp] = self._awaited[tp] = fresh[-1].offset + 1
        return fresh

    def _follow(self, positions: Mapping[Any, int]) -> None:
        """Advance partitions past offsets that hold no record for this consumer.

        Such are the markers that end transactions, the records of aborted ones, and what retention deleted.
        Without this a partition that ends with a marker would always seem to lag.
        """
        for tp in self._next.keys() - self._unread:
            following = self._next[tp] = max(self._next[tp], positions.get(tp, 0))
            awaited, done = self._awaited.get(tp), self._done.get(tp, -1)
            if awaited is None or done >= awaited:
                self._awaited.pop(tp, None)
                if following > max(done, self._start.get(tp, following)):
                    self._done[tp] = following

    def _report_expired(self, tp: Any, following: int, first: int) -> None:
        logger.error(
            "%s [%d]: the topic's retention deleted the offsets %d to %d before they were read",
            tp.topic, tp.partition, following, first - 1,
        )  # fmt: skip
        self.app.hooks.on_expired(tp.topic, first - following)

    async def _report_gaps(self) -> None:
        """Report what retention deleted in front of the records that were delivered."""
        gaps, self._gaps = self._gaps, {}
        for tp, begin in (await self.earliest_offsets(*gaps)).items():
            following, first = gaps[tp]
            if begin > following:
                self._report_expired(tp, following, min(begin, first))

    def _check_order(self, tp: Any, first: int) -> None:
        """Refuse records from before the offset that was committed; upstream drops them silently.

        Records behind it may come twice around a rebalance, which the state recognises.

        Raises
        ------
        TopicMismatchError
            The topic was made again, or the broker lost its end.
        """
        floor = self._floor.get(tp)
        if floor is not None and first < floor:
            raise TopicMismatchError(
                f"offsets of {tp.topic} [{tp.partition}] went back from {floor} to {first}: the broker has "
                "lost records that were committed, or the topic was recreated; stop all workers and run "
                "'riskstream offsets reset --to earliest', which lets them continue with what there is"
            )

    async def _fetch_again(self) -> None:
        """Seek partitions back whose fetched records were not delivered, for any reason."""
        unread, self._unread = self._unread, set()
        for tp in unread & self._next.keys():
            with contextlib.suppress(IllegalStateError):  # given up meanwhile
                await self._seek(tp, self._next[tp])

    async def _restore_again(self, something: bool) -> None:  # noqa: FBT001
        """Let a stalled restore continue behind the last record that it has received."""
        recovery = self.app.tables.recovery
        now = time.monotonic()
        if something or not (self.app.rebalancing and recovery.in_recovery):
            self._restored_at = now
        elif now - self._restored_at > _STANDSTILL_SECONDS:
            self._restored_at = now
            for tp, missing in recovery.active_remaining().items():
                if missing > 0:
                    logger.warning(
                        "%s [%d]: no records arrived for %g s although %d are missing: fetching them again",
                        tp.topic, tp.partition, _STANDSTILL_SECONDS, missing,
                    )  # fmt: skip
                    await self._seek(tp, recovery.active_offsets[tp] + 1)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[Any, Any]]:  # noqa: ASYNC109 - Faust's name
        """Fetch once; yield a message for each changelog partition and one message for the source.

        The value of a changelog's message is the list of its records; the value of the source's message is
        the records by partition.
        """
        await self._wait_for_capacity()
        if self._unread and not self.app.rebalancing:
            await self._fetch_again()
        wait = min(timeout, _REBALANCE_POLL_SECONDS) if self._unread else timeout
        seeks = self._seeks
        records, active = await self._wait_next_records(wait)
        positions = self._thread.positions
        generation = self.app.consumer_generation_id
        if records is None or self.should_stop:
            return

        def wanted(tp: Any) -> bool:
            flows = self.flow_active and self.app.consumer_generation_id == generation
            asked = active is None or tp in active or tp in self._buffered_partitions
            return flows and asked and not self.should_stop

        await self._restore_again(any(map(self._is_changelog_tp, records)))
        for tp in filter(self._is_changelog_tp, records):
            if records[tp] and wanted(tp):
                whole = records[tp] + await self._rest(tp)
                self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
                yield tp, self._message_of(tp, whole[-1].offset, whole, generation)
        source = self._source(records, wanted)
        if self.flow_active and not self.app.rebalancing and self._seeks == seeks:
            self._follow(positions)
        if self._gaps:
            await self._report_gaps()
        if source:
            # One message carries all partitions: each message costs Faust several tasks. Upstream drops a
            # message from before the last one of its partition, and would drop the other partitions' records
            # with it.
            carrier, whole = next(iter(source.items()))
            self._read_offset[carrier] = None
            yield carrier, self._message_of(carrier, whole[-1].offset, source, generation)

    def _source(
        self, records: Mapping[Any, list[Any]], wanted: Callable[[Any], bool]
    ) -> dict[Any, list[Any]]:
        """Return the fetched source records to deliver, by partition, and note the others as unread."""
        source: dict[Any, list[Any]] = {}
        for tp, batch in records.items():
            if self._is_changelog_tp(tp):
                continue
            if batch and wanted(tp) and not self.app.rebalancing and (whole := self._in_order(tp, batch)):
                self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
                source[tp] = whole
            else:
                self._unread.add(tp)
        return source

    def _get_active_partitions(self) -> set[Any]:
        """Leave the paused topic out of the next fetch."""
        active: set[Any] = super()._get_active_partitions()
        paused_topic = self.app.hooks.paused_topic()
        return active if paused_topic is None else {tp for tp in active if tp.topic != paused_topic}

    @staticmethod
    def _message_of(tp: Any, offset: int, value: Any, generation: int) -> ConsumerMessage:
        return ConsumerMessage(
            tp.topic, tp.partition, offset, None, 0, (), None, value, None, tp=tp, generation_id=generation
        )

    async def _wait_for_capacity(self) -> None:
        """Delay a fetch whose records would have to wait in their streams.

        Upstream leaves partitions with full streams out of the next fetch, and a fetch without any partition
        lasts its whole second, even if a stream has room again. A rebalance delays no fetch: recovery needs
        them.
        """
        if not self.app.rebalancing:
            await self.app.hooks.wait_for_capacity()

    async def _rest(self, tp: Any) -> list[Any]:
        """Return the rest of a changelog that has been fetched, beyond the most records of a poll.

        Recovery ends at the end offset that the broker reported. The embedded broker reports the first offset
        of the last record batch plus one, so the whole of that batch must arrive at once or its rest is lost.
        """
        rest: list[Any] = []
        while len(rest) < _MAX_RESTORED and (more := (await self._getmany({tp}, timeout=0.0)).get(tp)):
            rest += more
        return rest


class BatchTransport(driver.Transport):  # type: ignore[misc]
    """A Kafka transport whose consumer delivers batches."""

    Consumer: ClassVar[type] = BatchConsumer
