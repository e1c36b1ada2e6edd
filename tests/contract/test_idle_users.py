"""A user who has not come for longer than the time to live is deleted, in RocksDB and in the changelog."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kafka import KafkaConsumer, TopicPartition

from stream.features.windows.records import head_key
from stream.kafka.clients import client_config
from stream.kafka.partitioner import partition_of
from stream.kafka.topics import changelog_topic
from support.oracle import DAY, Event, User, same
from support.streams import Sent, Stream, until
from support.traffic import START, sent

if TYPE_CHECKING:
    from collections.abc import Callable

TTL_DAYS = 40


def changelog_of(stream: Stream, partition: int) -> dict[bytes, bytes | None]:
    """Return the last value of each key in a partition of the changelog."""
    place = TopicPartition(changelog_topic(stream.settings), partition)
    reader = KafkaConsumer(**client_config(stream.settings.kafka), enable_auto_commit=False)
    try:
        reader.assign([place])
        reader.seek_to_beginning(place)
        end = reader.end_offsets([place])[place]
        last: dict[bytes, bytes | None] = {}
        while reader.position(place) < end:
            for batch in reader.poll(timeout_ms=200).values():
                last |= {record.key: record.value for record in batch}
    finally:
        reader.close()
    return last


def test_a_user_who_stays_away_is_deleted(make_stream: Callable[..., Stream]) -> None:
    stream = make_stream(history={"user_ttl_days": TTL_DAYS})
    worker = stream.start()
    count = stream.settings.topics.partitions
    partition = partition_of(b"gone", count, "murmur2")
    busy = next(
        f"busy{at}" for at in range(99) if partition_of(b"busy%d" % at, count, "murmur2") == partition
    )
    first = [Event(f"g{at}", START + at * DAY // 10, 1_000 + at, f"m{at % 3}") for at in range(100)]
    stream.produce(sent("gone", event) for event in first)
    stream.wait_answered()
    assert changelog_of(stream, partition)[head_key(b"gone")]

    later = iter(range(10_000))

    def deleted() -> bool:
        time = START + 80 * DAY + next(later) * 1_000
        stream.produce([sent(busy, Event(f"b{time}", time, 5, "m"))])
        stream.wait_answered()
        return worker.metrics("riskstream_forgotten_total").get('kind="user"') == 1

    until(deleted, "the idle user was not deleted")
    left = {key for key, value in changelog_of(stream, partition).items() if value is not None}
    assert not any(key[:-6] == b"gone" for key in left)
    assert head_key(busy.encode()) in left

    # Whoever comes back begins anew.
    again = Event("g-again", START + 90 * DAY, 700, "m1")
    [place] = stream.produce([sent("gone", again)])
    stream.wait_answered()
    [decision] = stream.decisions()[place]
    _, expected = User().take(again)
    assert expected is not None
    found = decision["features"]
    assert all(
        same(float("nan") if found[name] is None else found[name], expected[name]) for name in expected
    )
    assert isinstance(stream.sent[place], Sent)
