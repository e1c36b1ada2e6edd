"""Fencing: one worker at a time writes a changelog partition, and the broker enforces it."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, Final

import orjson

from stream.errors import TopicMismatchError
from stream.events.records import ProducerRecord
from stream.kafka.topics import changelog_topic, transactional_id

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from stream.kafka.producer import BatchProducer
    from stream.settings import Settings

__all__ = ["OWNER_KEY", "PartitionFencing"]


#: Key of a partition's owner record: that of a user without a name, which no user has.
OWNER_KEY: Final = b"\0O\0\0\0\0"


class PartitionFencing:
    """Makes this worker the one writer of changelog partitions when they are assigned.

    1. Raise the epoch of each partition's producer id and write an ownership record with it. From here on the
       broker rejects the writes of a former owner (:meth:`.BatchProducer.fence`).
    2. Only then may the changelog's end be read and its tail be restored: only this worker writes behind it.
    3. If the local state already reaches the ownership record, nothing but that record is missing, and no
       restore is needed.
    """

    def __init__(self, settings: Settings, producer: BatchProducer, store: Callable[[], Any]) -> None:
        self._settings = settings
        self._producer = producer
        self._store = store
        #: Kafka's id of the source topic; part of the record, for people who read it.
        self.source_id = ""

    async def take(self, partitions: Collection[int]) -> None:
        """Become the one writer of partitions.

        Raises
        ------
        TopicMismatchError
            The local state is ahead of the changelog: the broker has lost its end.
        BrokerError
            The broker does not answer, or does not allow it.
        """
        if not partitions or not self._producer.idempotent:
            return
        value = orjson.dumps(
            {
                "owner": f"{socket.gethostname()}:{os.getpid()}",
                "source_topic": self._settings.topics.transactions,
                "source_topic_id": self.source_id,
                "source_partitions": self._settings.topics.partitions,
            }
        )
        topic = changelog_topic(self._settings)
        owner = ProducerRecord(OWNER_KEY, value)
        offsets = await self._producer.fence(
            topic,
            {partition: (transactional_id(self._settings, partition), owner) for partition in partitions},
        )
        store = self._store()
        for partition, offset in offsets.items():
            held = store.reached(partition)
            if held is not None and held >= offset:
                raise TopicMismatchError(
                    f"the local state of partition {partition} covers {topic} up to offset {held}, but "
                    f"the topic ends at {offset}: the broker has lost records; remove the state folder to "
                    "accept the loss"
                )
            if held == offset - 1:
                store.write(partition, [(OWNER_KEY, value)], offset)
