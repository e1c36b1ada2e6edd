"""``riskstream skip``: let workers pass over a record that they cannot consume."""

from __future__ import annotations

import getpass
import time
from typing import TYPE_CHECKING

import click

from stream.errors import DataError
from stream.settings import load_settings

if TYPE_CHECKING:
    from stream.settings import Settings

__all__ = ["skip"]


@click.command()
@click.argument("position", required=False, metavar="[TOPIC:PARTITION:OFFSET]")
@click.option("--why", help="The reason; it is kept with the request.")
@click.option("--by", help="Who asks; by default the user of this process.")
@click.option("--withdraw", is_flag=True, help="Withdraw the request for this record.")
def skip(position: str | None, why: str | None, by: str | None, withdraw: bool) -> None:
    """Ask workers to skip the record at TOPIC:PARTITION:OFFSET, or list the requests made so far.

    A worker that cannot read or decide a record ends, and its last line names the position. After this
    command, start it again: it skips the record, logs that, and counts riskstream_skipped_records_total. If
    the record's whole batch is unreadable, the worker skips the batch from this offset on. The request stays
    in the control topic as a record of who asked and why.
    """
    from stream.control.skips import Skip, parse_position
    from stream.events.fields import format_event_time
    from stream.runtime.control import read_skips, request_skip

    settings = load_settings()
    if position is None:
        for found in read_skips(settings):
            print(f"{format_event_time(found.at_ms)}  {found.position}  {found.by}: {found.why}")
        return
    topic, partition, offset = parse_position(position)
    if not (why or "").strip() and not withdraw:
        raise click.UsageError("--why is required: say why the record may be skipped")
    _require_record(settings, topic, partition, offset)
    request = Skip(
        topic, partition, offset, (why or "").strip(), by or getpass.getuser(), time.time_ns() // 1_000_000
    )
    request_skip(settings, request, withdraw=withdraw)
    if withdraw:
        print(f"withdrawn: workers that start from now on consume {request.position}")
    else:
        print(f"workers that start from now on skip {request.position}: restart those that run")


def _require_record(settings: Settings, topic: str, partition: int, offset: int) -> None:
    """Raise unless a worker would consume the offset."""
    from stream.kafka.reader import TopicReader
    from stream.kafka.topics import requests_topic, responses_topic

    topics = settings.topics
    consumed = (topics.transactions, topics.labels, requests_topic(settings), responses_topic(settings))
    if topic not in consumed:
        raise DataError(f"workers do not consume {topic}, only {', '.join(consumed)}")
    with TopicReader(settings, topic) as reader:
        bounds = reader.bounds().get(partition)
    if bounds is None:
        raise DataError(f"{topic} has no partition {partition}")
    if not bounds[0] <= offset < bounds[1]:
        raise DataError(f"{topic} [{partition}] has the offsets {bounds[0]} to {bounds[1] - 1}, not {offset}")
