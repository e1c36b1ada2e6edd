"""Delivery: records to the broker as built batches, each step awaited once for all of its records."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, UnknownError

from stream.errors import BrokerError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Mapping

    from stream.pipeline import Message

__all__ = ["Delivery"]

logger = logging.getLogger(__name__)

#: Largest record batch. Brokers refuse batches over 1 MiB unless told otherwise.
_MAX_BATCH_BYTES: Final = 900_000

#: Largest request: a dead letter may be as large as the largest record, and has headers on top.
_MAX_REQUEST_BYTES: Final = 4_000_000


class Delivery:
    """An idempotent producer (acks from all in-sync replicas) that takes whole lists of records.

    Raises
    ------
    BrokerError
        A record was not acknowledged within the request timeout, or was refused.
    """

    def __init__(self, client_config: Mapping[str, Any], timeout_seconds: float) -> None:
        self._config = dict(client_config)
        self._timeout_seconds = timeout_seconds
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Connect.

        Raises
        ------
        BrokerError
            The broker cannot be reached or refuses this client.
        """
        try:
            self._producer = await self._connect(idempotent=True)
        except UnknownError:
            # The embedded broker gives out no producer ids. A retry may then write a record twice, which
            # alert ids and the offsets in the state make harmless.
            logger.warning("this broker cannot make producers idempotent: a retried record may appear twice")
            self._producer = await self._connect(idempotent=False)
        except KafkaError as error:
            raise BrokerError(
                f"cannot connect a producer to {self._config['bootstrap_servers']}: {error}"
            ) from error

    async def _connect(self, *, idempotent: bool) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            acks="all",
            enable_idempotence=idempotent,
            linger_ms=0,
            max_batch_size=_MAX_BATCH_BYTES,
            max_request_size=_MAX_REQUEST_BYTES,
            request_timeout_ms=int(self._timeout_seconds * 1000),
            **self._config,
        )
        sender = logging.getLogger("aiokafka.producer.sender")
        level = sender.level
        sender.setLevel(logging.CRITICAL)  # it says again what the exception says
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        finally:
            sender.setLevel(level)
        return producer

    async def stop(self) -> None:
        """Disconnect; nothing is under way, since every delivery is awaited."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()

    async def deliver(
        self,
        records: Iterable[tuple[str, int, list[Message]]],
        on_sent: Callable[[], None] = lambda: None,
    ) -> dict[tuple[str, int], int]:
        """Produce lists of records, each for a topic and partition, and wait until all are acknowledged.

        Parameters
        ----------
        on_sent
            Called once everything is handed to the producer, before the acknowledgements.

        Returns
        -------
        The offset of the last record for each topic and partition that had any.
        """
        producer = self._producer
        if producer is None:
            raise BrokerError("the producer is not connected")
        pending: list[tuple[str, int, asyncio.Future[Any], int]] = []
        last: dict[tuple[str, int], int] = {}
        try:
            for topic, partition, messages in records:
                for future, count in await self._send(producer, topic, partition, messages):
                    pending.append((topic, partition, future, count))
            on_sent()
            # A future per record batch; the accumulator gives each an end, an error included.
            for topic, partition, future, count in pending:
                last[topic, partition] = (await future).offset + count - 1
        except KafkaError as error:
            raise BrokerError(f"records were not delivered: {error!r}") from error
        return last

    async def _send(
        self, producer: AIOKafkaProducer, topic: str, partition: int, messages: list[Message]
    ) -> list[tuple[asyncio.Future[Any], int]]:
        futures: list[tuple[asyncio.Future[Any], int]] = []
        if not messages:
            return futures
        batch = producer.create_batch()
        for message in messages:
            headers = list(message.headers)
            if batch.append(key=message.key, value=message.value, timestamp=None, headers=headers) is None:
                futures.append(
                    (await producer.send_batch(batch, topic, partition=partition), batch.record_count())
                )
                batch = producer.create_batch()
                batch.append(key=message.key, value=message.value, timestamp=None, headers=headers)
        if batch.record_count():
            batch.close()
            futures.append(
                (await producer.send_batch(batch, topic, partition=partition), batch.record_count())
            )
        return futures
