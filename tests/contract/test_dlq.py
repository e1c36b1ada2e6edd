"""``riskstream dlq`` on real dead letters of a real worker."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from stream.cli.commands.dlq import dlq
from stream.errors import DataError
from stream.kafka.dead_letters import REPLAYED_FROM
from support.streams import Sent, Stream

if TYPE_CHECKING:
    from collections.abc import Callable

START = 1_750_000_000_000
MEMO = "x" * 1000


def transaction(name: str, *, user: str = "dlq-user", memo: str | None = MEMO, **changes: Any) -> Sent:
    body = {
        "transaction_id": name,
        "user_id": user,
        "event_time": START,
        "amount": "1.00",
        "currency": "EUR",
        "channel": "web",
        "transaction_type": "purchase",
        "memo": memo,
        **changes,
    }
    headers = [("trace", b"\x00\xff"), ("trace", b"")]
    return Sent(user.encode(), json.dumps(body).encode(), headers)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def call(stream: Stream, *arguments: str, error: type[Exception] | None = None) -> Any:
        for name, value in stream.settings.child_environment().items():
            monkeypatch.setenv(name, value)
        result = CliRunner().invoke(dlq, arguments)
        if error is None:
            assert result.exit_code == 0, (result.output, result.exception)
        else:
            assert isinstance(result.exception, error), result.output
        return result

    return call


def outcomes(stream: Stream, name: str) -> list[str]:
    return [
        body["outcome"]
        for found in stream.read("decisions")
        for body in [found.json]
        if body["transaction_id"] == name
    ]


def test_dead_letters_are_listed_shown_and_replayed_without_a_duplicate(
    make_stream: Callable[..., Stream], run: Callable[..., Any]
) -> None:
    # A worker whose limit is too small for a memo: what it refuses is valid once the limit is right.
    stream = make_stream(max_record_bytes=1024)
    worker = stream.start()
    long_ones = [transaction(f"long-{at}", user=f"dlq-user-{at}") for at in range(5)]
    bad = [
        Sent(b"dlq-user-0", b'{"no \x1b[31m', [("trace", b"1")]),
        Sent(b"dlq-user-1", b"\xff\xfe\x00"),
        Sent(None, transaction("no-key", memo=None).value),
    ]
    places = stream.produce([*long_ones, *bad])
    stream.wait_answered()
    assert worker.stop() == 0

    rows = [json.loads(line) for line in run(stream, "list", "--json").stdout.splitlines()]
    assert {(row["source_partition"], row["source_offset"]) for row in rows} == set(places)
    assert all(row["source_topic"] == stream.settings.topics.transactions for row in rows)
    assert json.loads(run(stream, "list", "--summary", "--json").stdout) == {"$": 7, "key": 1}
    assert run(stream, "list", "--summary").stdout.split() == ["7", "$", "1", "key", "8", "in", "total"]
    assert len(run(stream, "list").stdout.splitlines()) == 8
    (by_key,) = run(stream, "list", "--field", "key").stdout.splitlines()
    assert "key (none) key: must be the user_id" in by_key
    of_partition = [row for row in rows if row["source_partition"] == places[0][0]]
    listed = run(stream, "list", "--partition", str(places[0][0]), "--json").stdout.splitlines()
    assert [json.loads(line) for line in listed] == of_partition
    assert len(run(stream, "list", "--since", "1h").stdout.splitlines()) == 8
    assert run(stream, "list", "--since", "2999-01-01T00:00:00Z").stdout == ""
    run(stream, "list", "--partition", "99", error=DataError)

    by_place = {(row["source_partition"], row["source_offset"]): row["position"] for row in rows}
    shown = run(stream, "show", by_place[places[0]]).stdout
    assert "bytes are more than the 1024 allowed by max_record_bytes" in shown
    assert (long_ones[0].value or b"").decode() in shown
    assert "0x00ff" in shown
    for place, record in zip(places, [*long_ones, *bad], strict=True):
        assert run(stream, "show", "--raw", by_place[place]).stdout_bytes == record.value
    assert "\x1b" not in run(stream, "show", by_place[places[5]]).stdout
    assert "ff fe 00" in run(stream, "show", by_place[places[6]]).stdout
    run(stream, "show", "0:12345", error=DataError)
    run(stream, "replay", error=SystemExit)  # nothing is chosen
    run(stream, "replay", "--all", "0:0", error=SystemExit)

    # The producer has sent one of them again in a shorter form, which is taken.
    fixed = stream.settings.model_copy(update={"max_record_bytes": 65_536})
    stream.start(fixed)
    stream.wait_answered(stream.produce([transaction("long-0", user="dlq-user-0", memo=None)]))
    assert outcomes(stream, "long-0") == ["scored"]

    before = len(stream.read("dead_letters"))
    dry = run(stream, "replay", "--all", "--dry-run").stdout
    assert dry.splitlines()[-1] == f"would send 8 to {stream.settings.topics.transactions}"
    assert run(stream, "replay", by_place[places[1]]).stdout.startswith("sent 1 to ")
    source = {(found.partition, found.offset) for found in stream.read("transactions")}
    assert len(source) == len(places) + 2
    for count in (7, 9):  # the second time, what is still bad is there twice
        assert run(stream, "replay", "--field", "$").stdout.startswith(f"sent {count} to ")
        found = stream.read("transactions")
        stream.wait_answered({(record.partition, record.offset) for record in found})
    assert [outcomes(stream, f"long-{at}") for at in range(5)] == [
        ["scored", "duplicate", "duplicate"],
        ["scored", "duplicate", "duplicate"],
        *[["scored", "duplicate"]] * 3,
    ]
    # What came back is what was sent, where it was sent, and says so once; what is still bad is a letter again.
    records = {(found.partition, found.offset): found for found in stream.read("transactions")}
    resent = [found for found in records.values() if REPLAYED_FROM in dict(found.headers)]
    assert len(resent) == 17
    for found in resent:
        topic, partition, offset = found.header(REPLAYED_FROM).split(":")
        first = records[int(partition), int(offset)]
        own = [header for header in first.headers if header[0] != REPLAYED_FROM]
        assert topic == stream.settings.topics.transactions
        assert found.partition == int(partition)
        assert (found.key, found.value, list(found.headers[:-1])) == (first.key, first.value, own)
    assert len(stream.read("dead_letters")) == before + 6


def test_what_cannot_be_sent_again_is_left_and_counted(shared: Stream, run: Callable[..., Any]) -> None:
    large = Sent(b"dlq-large", b" " * 1_030_000)
    place = shared.produce([large])
    shared.wait_answered(place)
    rows = [json.loads(line) for line in run(shared, "list", "--json").stdout.splitlines()]
    (row,) = [row for row in rows if (row["source_partition"], row["source_offset"]) == place[0]]
    result = run(shared, "replay", row["position"])
    assert result.stdout.startswith("sent 0 to ")
    assert (
        result.stderr
        == "skipped 1: truncated because it is too large; the source topic has the whole record\n"
    )
