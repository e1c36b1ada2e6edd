"""A worker's scoring endpoint by itself: hostile requests, histories that are not here, producers that differ."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from bundles import simulated, trained_bundle
from hypothesis import given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from offline.histories import load_histories
from stream.brokers.base import free_port
from stream.errors import StateError
from stream.preview import Preview
from stream.runtime.live_scoring import ONLY_HEADER, LiveScoring, partition_of
from stream.settings import ScoringSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stream.features.history import MemoryRecords

LATENESS_MS = 3 * 86_400_000
PARTITIONS = 4
RECORDS = list(simulated().to_records())


@pytest.fixture(scope="module")
def store() -> MemoryRecords:
    return load_histories(simulated().slice(0, 5_000), lateness_ms=LATENESS_MS)


@pytest.fixture(scope="module")
def preview() -> Preview:
    return Preview(trained_bundle(), lateness_ms=LATENESS_MS, max_future_ms=300_000, max_reasons=5)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join()
    made.close()


Start = "Callable[..., tuple[LiveScoring, Counter[str]]]"


@pytest.fixture
def start(loop: asyncio.AbstractEventLoop, preview: Preview) -> Iterator[Start]:
    """Serve with the given histories and owners; everything ends with the test."""
    made: list[LiveScoring] = []

    def begin(
        reader: Callable[[int], Any], owners: dict[int, str] | None = None, **chosen: Any
    ) -> tuple[LiveScoring, Counter[str]]:
        told: Counter[str] = Counter()
        scoring = LiveScoring(
            ScoringSettings.model_validate({"enabled": True, "port": 0, **chosen}),
            PARTITIONS,
            preview,
            reader,
            lambda: owners or {},
            lambda end, _: told.update([end]),
        )
        asyncio.run_coroutine_threadsafe(scoring.start(), loop).result(30)
        made.append(scoring)
        return scoring, told

    yield begin
    for scoring in made:
        asyncio.run_coroutine_threadsafe(scoring.stop(), loop).result(30)


def ask(address: str, body: bytes, **headers: bytes | str) -> tuple[int, Any, dict[str, str]]:
    with contextlib.closing(
        http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
    ) as client:
        client.request(
            "POST", "/predict", body, {name.replace("_", "-"): text for name, text in headers.items()}
        )
        answer = client.getresponse()
        return answer.status, json.load(answer), dict(answer.getheaders())


def reason(body: Any) -> str:
    [problem] = body["detail"]
    text: str = problem["msg"]
    return text


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_whatever_comes_gets_an_answer_that_is_described(
    start: Start, store: MemoryRecords, mode: GenerationMode
) -> None:
    """One transaction or several, as the document says or not; bad ones are refused, none is an error."""
    scoring, told = start(lambda _: store)
    document = schemathesis.openapi.from_url(f"{scoring.address}/openapi.json")
    answers: Counter[tuple[int, type]] = Counter()

    @settings(max_examples=150)
    @given(case=document["/predict"]["POST"].as_strategy(generation_mode=mode))
    def fuzz(case: Any) -> None:
        response = case.call()
        # What no schema can say is refused too: more decimals than the currency has, a time to come.
        case.validate_response(response, excluded_checks=[positive_data_acceptance])
        answers[response.status_code, type(case.body)] += 1

    fuzz()
    assert told["failed"] == told["unavailable"] == 0
    if mode is GenerationMode.POSITIVE:
        assert answers[200, dict], answers
        assert answers[200, list], answers
    else:
        assert {status for status, _ in answers} <= {415, 422}


def test_histories_that_are_nowhere_are_no_new_users(start: Start) -> None:
    """While they are moved or restored a client is told so, and when to come again."""
    scoring, told = start(lambda _: None)
    status, body, headers = ask(scoring.address, RECORDS[0][1])
    assert status == 503
    assert headers["Retry-After"] == "1"
    partition = partition_of(RECORDS[0][0], PARTITIONS, "murmur2")
    assert reason(body) == f"the histories of partition {partition} are being moved or restored"
    assert told == {"unavailable": 1}


def test_a_request_is_handed_on_once(start: Start) -> None:
    """Two workers that each take the other for the owner do not send it to and fro."""
    owners: dict[int, str] = {}
    one, told_one = start(lambda _: None, owners)
    other, told_other = start(lambda _: None, dict.fromkeys(range(PARTITIONS), one.address))
    owners |= dict.fromkeys(range(PARTITIONS), other.address)
    status, body, _ = ask(one.address, RECORDS[0][1])
    assert status == 503
    assert "are being moved or restored" in reason(body)
    assert (told_one, told_other) == ({"unavailable": 1}, {"unavailable": 1})


def test_parts_come_from_each_owner_in_the_requests_order(start: Start, store: MemoryRecords) -> None:
    mine = {0, 2}
    other, _ = start(lambda partition: None if partition in mine else store)
    whole, _ = start(lambda _: store)
    scoring, _ = start(
        lambda partition: store if partition in mine else None,
        dict.fromkeys(range(PARTITIONS), other.address),
    )
    body = b"[" + b",".join(value for _, value in RECORDS[5_000:5_060]) + b"]"
    status, answers, _ = ask(scoring.address, body)
    assert status == 200
    assert answers == ask(whole.address, body)[1]
    assert [answer["transaction_id"] for answer in answers] == [
        json.loads(value)["transaction_id"] for _, value in RECORDS[5_000:5_060]
    ]


def test_a_worker_that_is_away_is_named(start: Start) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    scoring, _ = start(lambda _: None, dict.fromkeys(range(PARTITIONS), gone))
    status, body, _ = ask(scoring.address, RECORDS[0][1])
    assert status == 503
    assert reason(body).startswith(f"the worker at {gone}, which has the history, says: ")


def test_a_partition_that_goes_while_its_users_are_scored(start: Start, store: MemoryRecords) -> None:
    """The rest of a large request must not be answered from what another worker has by now."""
    asked = iter([store, store])
    scoring, _ = start(lambda _: next(asked, None))
    status, body, _ = ask(scoring.address, b"[" + b",".join([RECORDS[5_000][1]] * 20) + b"]")
    assert status == 503
    assert "are being moved" in reason(body)


class _Broken:
    def __init__(self, error: Exception) -> None:
        self._error = error

    def read(self, keys: Any) -> Any:  # noqa: ARG002
        raise self._error


@pytest.mark.parametrize(
    ("error", "status", "end"),
    [
        (StateError("the state in /x is damaged"), 503, "unavailable"),
        (RuntimeError("a defect"), 500, "failed"),
    ],
)
def test_a_history_that_cannot_be_read(start: Start, error: Exception, status: int, end: str) -> None:
    """No detail of this machine goes out."""
    scoring, told = start(lambda _: _Broken(error))
    found, body, _ = ask(scoring.address, RECORDS[0][1])
    assert (found, told) == (status, {end: 1})
    assert str(error) not in reason(body)


def test_other_partitioners_are_noticed(start: Start, store: MemoryRecords) -> None:
    scoring, _ = start(lambda _: store)
    keys = [f"u{number}".encode() for number in range(20)]
    for key in keys:
        scoring.notice(partition_of(key, PARTITIONS, "murmur2"), [None, key])
    assert ask(scoring.address, RECORDS[0][1])[0] == 200
    for _ in range(3):
        for key in keys:
            scoring.notice(partition_of(key, PARTITIONS, "crc32"), [key])
    status, body, _ = ask(scoring.address, RECORDS[0][1])
    assert status == 503
    assert "RISKSTREAM_SCORING__PARTITIONER=murmur2" in reason(body)


@pytest.mark.parametrize("text", ["", "x", "1", "-1", "0,1", "0,,0"])
def test_places_that_are_none_are_refused(start: Start, store: MemoryRecords, text: str) -> None:
    scoring, _ = start(lambda _: store)
    status, body, _ = ask(scoring.address, RECORDS[0][1], **{ONLY_HEADER: text})
    assert status == 422
    assert reason(body) == "must name places in the request"


@pytest.mark.parametrize("given_token", [None, b"Bearer wrong", b"Bearer \xff\xfe", b"correct horse battery"])
def test_without_the_token_nothing_is_told(
    start: Start, store: MemoryRecords, given_token: bytes | None
) -> None:
    scoring, _ = start(lambda _: store, token="correct horse battery")
    headers: dict[str, bytes | str] = {} if given_token is None else {"Authorization": given_token}
    assert ask(scoring.address, RECORDS[0][1], **headers)[0] == 401
    assert ask(scoring.address, RECORDS[0][1], Authorization="Bearer correct horse battery")[0] == 200


def test_a_body_that_is_too_large(start: Start, store: MemoryRecords) -> None:
    scoring, _ = start(lambda _: store)
    status, body, _ = ask(scoring.address, b" " * ((4 << 20) + 1))
    assert status == 413
    assert reason(body).startswith("must not be larger than")


def test_off_and_on_loopback_unless_told_otherwise() -> None:
    chosen = ScoringSettings()
    assert not chosen.enabled
    assert chosen.host == "127.0.0.1"
