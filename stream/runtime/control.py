"""The control topic: read the control messages that a worker starts with, and send new ones."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from kafka import KafkaProducer
from kafka.errors import KafkaError

from stream.control.skips import Skip, parse_skip
from stream.errors import BrokerError
from stream.kafka.clients import client_config
from stream.kafka.reader import TopicReader

if TYPE_CHECKING:
    from stream.settings import Settings

__all__ = ["read_skips", "request_skip"]


def read_skips(settings: Settings) -> list[Skip]:
    """Return the requests to skip records, in the order in which they were made.

    Raises
    ------
    BrokerError
        The control topic cannot be read.
    DataError
        It contains a request of a newer version: to ignore it would consume the record.
    """
    latest: dict[bytes | None, Skip | None] = {}
    with TopicReader(settings, settings.topics.control) as reader:
        for record in reader.read_to_end([partition.partition for partition in reader.partitions()]):
            latest.pop(record.key, None)
            latest[record.key] = parse_skip(record.key, record.value)
    return [skip for skip in latest.values() if skip is not None]


def request_skip(settings: Settings, skip: Skip, *, withdraw: bool = False) -> None:
    """Send a request to skip a record, or withdraw it, and wait for the acknowledgement.

    Raises
    ------
    BrokerError
        The broker does not take it.
    """
    message = skip.encode()
    seconds = settings.kafka.request_timeout_seconds
    try:
        producer = KafkaProducer(**client_config(settings.kafka), acks="all")
        with contextlib.closing(producer):
            value = None if withdraw else message.value
            producer.send(settings.topics.control, key=message.key, value=value).get(seconds)
    except KafkaError as error:
        raise BrokerError(f"{settings.topics.control} does not take the request: {error}") from error
