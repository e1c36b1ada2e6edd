"""The producer: whole lists of records, one request per step and broker, awaited once.

aiokafka's client provides connections, metadata and the protocol. Batching, idempotence and fencing are
implemented here, because each step of the commit protocol has all of its records at once and knows which
partitions it owns:

- Record batches are built in one go, each with a producer id, epoch and sequence number (KIP-98), so that a
  request that is repeated after a lost response is not written twice.
- The changelog is *fenced*. Each of its partitions has its own producer id, through the transactional id
  ``<app>-history-<partition>``. A worker that takes a partition over raises that id's epoch and writes an
  ownership record; from then on the broker rejects the writes of a former owner that was paused or cut off.
  Only the epoch is used, not transactions: they would cost each micro-batch two more requests, and the
  offsets in the state make them unnecessary.

A broker without producer ids (the embedded broker) gets plain record batches: a repeated request may write
twice, and a former owner is not fenced. The worker logs a warning about it when it starts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from aiokafka import errors
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import AddPartitionsToTxnRequest, EndTxnRequest, InitProducerIdRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.structs import TopicPartition

from stream.errors import BrokerError, FencedError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from stream.events.records import Headers, ProducerRecord

__all__ = ["BatchProducer", "EncodedBatch", "RecordTuple"]

if TYPE_CHECKING:
    RecordTuple = tuple[bytes | None, bytes | None, Headers]


logger = logging.getLogger(__name__)

#: Largest record batch. Brokers reject batches over 1 MiB by default.
_MAX_BATCH_BYTES: Final = 900_000

#: More than a record, or a record batch, takes beside its key and value where it has no headers.
_RECORD_BYTES: Final = 80

#: Pause before a request is repeated, and the most that is slept when a broker's coordinator moves.
_BACKOFF_SECONDS: Final = 0.05

#: No transaction is ever begun; the broker requires a timeout all the same.
_TRANSACTION_TIMEOUT_MS: Final = 10_000

_NO_PRODUCER: Final = -1
_NO_HEADERS: Final[list[tuple[str, bytes]]] = []
_SEQUENCES: Final = 1 << 31
_ALL_REPLICAS: Final = -1
_MAGIC: Final = 2

_ERROR_CODE: Final = attrgetter("error_code")

#: Errors of a coordinator that is starting, moving, or still busy with the id's former holder.
_COORDINATOR_MOVES: Final = (
    errors.CoordinatorNotAvailableError,
    errors.NotCoordinatorError,
    errors.CoordinatorLoadInProgressError,
    errors.ConcurrentTransactions,
    errors.NodeNotReadyError,
    errors.KafkaConnectionError,
    errors.RequestTimedOutError,
)


@dataclass(slots=True)
class _Producer:
    """A producer id, its epoch, the next sequence number, and the transactional id of a fenced partition."""

    producer_id: int = _NO_PRODUCER
    epoch: int = -1
    sequence: int = 0
    transactional_id: str = ""

    def take(self, records: int) -> int:
        """Return the first of so many sequence numbers."""
        if self.producer_id == _NO_PRODUCER:
            return -1
        first = self.sequence
        self.sequence = (first + records) % _SEQUENCES
        return first


@dataclass(slots=True)
class EncodedBatch:
    """A record batch in its binary form; ``offset`` is its last record's, once the broker has written it."""

    buffer: bytearray
    records: int
    offset: int = -1


class BatchProducer:
    """A producer of whole lists, with acknowledgements of all in-sync replicas.

    Parameters
    ----------
    client_config
        Connection settings, as keyword arguments of aiokafka's client.
    request_seconds, timeout_seconds
        Longest wait for a response, and for a delivery with all its repeated requests.
    """

    def __init__(
        self, client_config: Mapping[str, Any], request_seconds: float, timeout_seconds: float
    ) -> None:
        self._config = dict(client_config)
        self._request_ms = int(request_seconds * 1000)
        self._timeout_seconds = timeout_seconds
        self._client: AIOKafkaClient | None = None
        self._plain = _Producer()
        self._producers: dict[TopicPartition, _Producer] = {}

    @property
    def client(self) -> AIOKafkaClient:
        """The connected client.

        Raises
        ------
        BrokerError
            It is not connected.
        """
        if self._client is None:
            raise BrokerError("the producer is not connected")
        return self._client

    @property
    def idempotent(self) -> bool:
        """Whether the broker gives out producer ids."""
        return self._plain.producer_id != _NO_PRODUCER

    async def start(self, topics: Collection[str]) -> None:
        """Connect, and fetch the metadata of the topics.

        Raises
        ------
        BrokerError
            The broker cannot be reached or refuses this client.
        """
        client = AIOKafkaClient(request_timeout_ms=self._request_ms, **self._config)
        try:
            await client.bootstrap()
            await client.set_topics(topics)
            self._client = client
            try:
                self._plain = await self._init_producer(None)
            except errors.UnknownError:
                logger.warning(
                    "this broker assigns no producer ids: a retried request may write records twice, and "
                    "a worker that lost its partitions is not fenced off from their changelog"
                )
        except errors.KafkaError as error:
            self._client = None
            await client.close()
            raise BrokerError(
                f"cannot connect a producer to {self._config['bootstrap_servers']}: {error}"
            ) from error
        except BaseException:
            self._client = None
            await client.close()
            raise

    async def stop(self) -> None:
        """Disconnect; nothing is in flight, since every delivery is awaited."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def fence(self, topic: str, owners: Mapping[int, tuple[str, ProducerRecord]]) -> dict[int, int]:
        """Become the one writer of partitions: the broker rejects the writes of others from here on.

        Parameters
        ----------
        owners
            For each partition its transactional id, and the record that is written to it first: the broker
            applies the new epoch once it has seen it in the partition.

        Returns
        -------
        The offset of each of these records.

        Raises
        ------
        BrokerError
            The broker did not answer in time, or does not allow the ids.
        """
        if self.idempotent:
            try:
                producers = await asyncio.gather(
                    *(self._init_producer(transactional_id) for transactional_id, _ in owners.values())
                )
            except errors.TransactionalIdAuthorizationFailed as error:
                ids = sorted(transactional_id for transactional_id, _ in owners.values())
                raise BrokerError(
                    f"the broker does not let this user write with transactional ids {ids[0]} to "
                    f"{ids[-1]}: allow Describe and Write on transactional ids with that prefix"
                ) from error
            except errors.KafkaError as error:
                raise BrokerError(f"cannot take over the changelog: {error!r}") from error
            for partition, producer in zip(owners, producers, strict=True):
                self._producers[TopicPartition(topic, partition)] = producer
        offsets = await self.deliver((topic, partition, [owner]) for partition, (_, owner) in owners.items())
        return {partition: offset for (_, partition), offset in offsets.items()}

    async def renew(self, topic: str, partition: int) -> None:
        """Remind the brokers of a fenced partition's producer id, by an empty transaction.

        A partition forgets the epoch of a producer that has not written for ``producer.id.expiration.ms``,
        and the coordinator forgets a transactional id after ``transactional.id.expiration.ms``, whatever is
        written without transactions meanwhile. A former owner would then be fenced no more.

        Raises
        ------
        FencedError
            Another worker has taken the partition over.
        BrokerError
            The broker does not answer in time.
        """
        tp = TopicPartition(topic, partition)
        producer = self._producers.get(tp)
        if producer is None or not producer.transactional_id:
            return
        head = (producer.transactional_id, producer.producer_id, producer.epoch)
        begin = AddPartitionsToTxnRequest(*head, [(topic, [partition])])
        end = EndTxnRequest(*head, transaction_result=True)
        try:
            await self._ask(producer.transactional_id, begin, _partition_error)
            await self._ask(producer.transactional_id, end)
        except errors.KafkaError as error:
            _raise_final(tp, error)
            raise BrokerError(f"the ownership of {tp} cannot be renewed: {error!r}") from error

    def epoch(self, topic: str, partition: int) -> int:
        """Return the epoch under which a partition is written, -1 where the broker has none."""
        producer = self._producers.get(TopicPartition(topic, partition))
        return -1 if producer is None else producer.epoch

    async def deliver(
        self,
        records: Iterable[tuple[str, int, Sequence[RecordTuple]]],
        on_sent: Callable[[], None] | None = None,
        group: Callable[[RecordTuple], bytes] | None = None,
    ) -> dict[tuple[str, int], int]:
        """Produce lists of records, each for a topic and partition, and wait until all are acknowledged.

        Calls for the same partition must not overlap.

        Parameters
        ----------
        on_sent
            Called once everything is sent to the broker, before the broker has answered; for tests.
        group
            Returns a record's group. Adjacent records of the same group are written all or none, as far as
            one record batch can hold them.

        Returns
        -------
        The offset of the last record for each topic and partition that had any.

        Raises
        ------
        FencedError
            Another worker has taken a partition over.
        BrokerError
            A record was not acknowledged in time, or was rejected.
        """
        client = self.client
        timestamp_ms = time.time_ns() // 1_000_000
        queues = {
            TopicPartition(topic, partition): self._build(
                TopicPartition(topic, partition), messages, timestamp_ms, group
            )
            for topic, partition, messages in records
            if messages
        }
        last: dict[tuple[str, int], int] = {}
        attempt = 0
        while sending := {tp: queue[attempt] for tp, queue in queues.items() if attempt < len(queue)}:
            await self._send_attempt(client, sending, on_sent)
            last |= {(tp.topic, tp.partition): built.offset for tp, built in sending.items()}
            attempt += 1
            on_sent = None
        return last

    def _build(
        self,
        tp: TopicPartition,
        messages: Sequence[RecordTuple],
        timestamp_ms: int,
        group: Callable[[RecordTuple], bytes] | None = None,
    ) -> list[EncodedBatch]:
        """Return the record batches of one partition, in order, each small enough for a broker."""
        producer = self._producers.get(tp)
        if producer is None:
            plain = self._plain
            producer = self._producers[tp] = _Producer(plain.producer_id, plain.epoch)
        built: list[EncodedBatch] = []
        builder, count = self._builder(), 0
        ends = set() if group is None else _ends(messages, group)
        for number, (key, value, own) in enumerate(messages):
            headers = list(own) if own else _NO_HEADERS
            if number in ends:
                built.append(self._close(builder, count, producer))
                builder, count = self._builder(), 0
            if builder.append(count, timestamp_ms, key, value, headers) is None:
                built.append(self._close(builder, count, producer))
                builder, count = self._builder(), 0
                builder.append(0, timestamp_ms, key, value, headers)
            count += 1
        built.append(self._close(builder, count, producer))
        return built

    @staticmethod
    def _builder() -> DefaultRecordBatchBuilder:
        return DefaultRecordBatchBuilder(
            magic=_MAGIC,
            compression_type=0,
            is_transactional=0,
            producer_id=_NO_PRODUCER,
            producer_epoch=-1,
            base_sequence=-1,
            batch_size=_MAX_BATCH_BYTES,
        )

    @staticmethod
    def _close(builder: DefaultRecordBatchBuilder, count: int, producer: _Producer) -> EncodedBatch:
        builder.set_producer_state(producer.producer_id, producer.epoch, producer.take(count))
        return EncodedBatch(builder.build(), count)

    async def _send_attempt(
        self,
        client: AIOKafkaClient,
        attempt: dict[TopicPartition, EncodedBatch],
        on_sent: Callable[[], None] | None,
    ) -> None:
        """Send one record batch of each partition, and repeat those that were not written until they are."""
        deadline = time.monotonic() + self._timeout_seconds
        left = attempt
        while True:
            nodes: dict[int, dict[TopicPartition, EncodedBatch]] = {}
            failed: dict[TopicPartition, BaseException] = {}
            for tp, built in left.items():
                leader = client.cluster.leader_for_partition(tp)
                if leader is None or leader < 0:
                    failed[tp] = errors.LeaderNotAvailableError()
                else:
                    nodes.setdefault(leader, {})[tp] = built
            requests = [
                asyncio.ensure_future(self._request(client, node, part)) for node, part in nodes.items()
            ]
            if on_sent is not None:
                # A request is written when its task first runs, and leaves with the loop's next turn.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                on_sent()
                on_sent = None
            for answer in await asyncio.gather(*requests):
                failed |= answer
            if not failed:
                return
            for tp, error in failed.items():
                _raise_final(tp, error)
            if time.monotonic() >= deadline:
                tp, error = next(iter(failed.items()))
                raise BrokerError(
                    f"records were not delivered to {tp.topic} [{tp.partition}] within "
                    f"{self._timeout_seconds:g} s: {error!r}"
                )
            await client.force_metadata_update()
            await asyncio.sleep(_BACKOFF_SECONDS)
            left = {tp: attempt[tp] for tp in failed}

    async def _request(
        self, client: AIOKafkaClient, node: int, part: dict[TopicPartition, EncodedBatch]
    ) -> dict[TopicPartition, BaseException]:
        """Send one request; returns the partitions whose batch was not written, and the errors."""
        topics: dict[str, list[tuple[int, bytearray]]] = {}
        for tp, built in part.items():
            topics.setdefault(tp.topic, []).append((tp.partition, built.buffer))
        request = ProduceRequest(
            transactional_id=None,
            required_acks=_ALL_REPLICAS,
            timeout=self._request_ms,
            topics=list(topics.items()),
        )
        try:
            response = await client.send(node, request)
        except errors.KafkaError as error:
            return dict.fromkeys(part, error)
        failed: dict[TopicPartition, BaseException] = {}
        for topic, partitions in response.topics:
            for partition, code, offset, *_ in partitions:
                tp = TopicPartition(topic, partition)
                error_type = errors.for_code(code)
                if error_type is errors.NoError or error_type is errors.DuplicateSequenceNumber:
                    # The broker returns the offset of a batch that it had already, if it still knows it.
                    part[tp].offset = offset + part[tp].records - 1 if offset >= 0 else -1
                else:
                    failed[tp] = error_type()
        return failed

    async def _init_producer(self, transactional_id: str | None) -> _Producer:
        """Return a producer id; a transactional id always has the same one, with a raised epoch."""
        request = InitProducerIdRequest(
            transactional_id=transactional_id, transaction_timeout_ms=_TRANSACTION_TIMEOUT_MS
        )
        response = await self._ask(transactional_id, request)
        return _Producer(response.producer_id, response.producer_epoch, 0, transactional_id or "")

    async def _ask(
        self, transactional_id: str | None, request: Any, code_of: Callable[[Any], int] = _ERROR_CODE
    ) -> Any:
        """Return the response of a transactional id's coordinator, asked again while it moves."""
        client = self.client
        deadline = time.monotonic() + self._timeout_seconds
        while True:
            try:
                if transactional_id is None:
                    node = client.get_random_node()
                else:
                    node = await client.coordinator_lookup(CoordinationType.TRANSACTION, transactional_id)
                response = await client.send(node, request)
                error_type = errors.for_code(code_of(response))
                if error_type is errors.NoError:
                    return response
                raise error_type()
            except _COORDINATOR_MOVES:
                if time.monotonic() >= deadline:
                    raise
            await client.force_metadata_update()
            await asyncio.sleep(_BACKOFF_SECONDS)


def _ends(messages: Sequence[RecordTuple], group: Callable[[RecordTuple], bytes]) -> set[int]:
    """Return where new record batches have to begin so that groups stay whole."""
    sizes = [len(key or b"") + len(value or b"") + _RECORD_BYTES for key, value, _ in messages]
    if sum(sizes) <= _MAX_BATCH_BYTES - _RECORD_BYTES:
        return set()
    ends: set[int] = set()
    first, filled, of_group = 0, 0, 0
    name: bytes | None = None
    for number, (message, size) in enumerate(zip(messages, sizes, strict=True)):
        if group(message) != name:
            name, first, of_group = group(message), number, 0
        if filled + size > _MAX_BATCH_BYTES - _RECORD_BYTES and first not in ends and first:
            ends.add(first)
            filled = of_group
        filled += size
        of_group += size
    return ends


def _partition_error(response: Any) -> int:
    """Return the error of the one partition in the response to a new transaction."""
    [(_, [(_, code)])] = response.errors
    return int(code)


def _raise_final(tp: TopicPartition, error: BaseException) -> None:
    """Raise an error that repeating the request cannot fix."""
    where = f"{tp.topic} [{tp.partition}]"
    if isinstance(error, (errors.InvalidProducerEpoch, errors.ProducerFenced)):
        raise FencedError(
            f"another worker has taken over {where}: this worker was paused or cut off, and the "
            "broker rejects its records; restart it"
        ) from error
    if isinstance(error, errors.MessageSizeTooLargeError):
        raise BrokerError(
            f"{where} rejects a record batch as too large: set its max.message.bytes to 1 MiB or more"
        ) from error
    if isinstance(error, errors.InvalidTimestampError):
        raise BrokerError(
            f"{where} rejects the timestamps of the records: the clocks of this machine and of "
            "the broker are far apart"
        ) from error
    if not getattr(error, "retriable", False):
        raise BrokerError(f"records were not delivered to {where}: {error!r}") from error
