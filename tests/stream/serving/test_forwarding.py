"""A worker's scoring endpoint by itself: hostile requests, histories that are not here, producers that differ."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import random
import re
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pytest
import schemathesis
from hypothesis import given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from offline.features.entity_logs import load_logs
from offline.features.histories import load_histories
from stream.errors import StateError
from stream.kafka.local.base import free_port
from stream.kafka.partitioner import partition_of
from stream.pipeline.entity_join.messages import EntityRequest, LabelUpdate
from stream.pipeline.entity_join.messages import partition_of as entity_partition
from stream.pipeline.preview import Preview
from stream.serving import predict
from stream.serving.forwarding import ONLY_HEADER, SPEC_HEADER, PredictForwarder
from stream.settings import ScoringSettings
from support.bundles import made_bundle, simulated, trained_bundle
from support.helpers import wait_until
from support.profiles import OTHER_PROFILES, PROFILES, START_MS, labels_of, table_of, transactions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stream.features.profiles.spec import EntityProfile
    from stream.state.store import MemoryStore

LATENESS_MS = 3 * 86_400_000
PARTITIONS = 4
NOW_MS = START_MS + 1000 * 86_400_000
RECORDS = list(simulated().to_records())


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    return load_histories(simulated().slice(0, 5_000), lateness_ms=LATENESS_MS)


@pytest.fixture(scope="module")
def preview() -> Preview:
    return Preview(trained_bundle(), lateness_ms=LATENESS_MS, max_reasons=5)


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
    made: list[PredictForwarder] = []

    def begin(
        reader: Callable[[int], Any],
        owners: dict[int, str] | None = None,
        model: Preview | None = None,
        **chosen: Any,
    ) -> tuple[PredictForwarder, Counter[str]]:
        told: Counter[str] = Counter()
        scoring = PredictForwarder(
            ScoringSettings.model_validate({"enabled": True, "port": 0, **chosen}),
            PARTITIONS,
            "murmur2",
            model or preview,
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


def post(address: str, path: str, body: bytes, headers: dict[str, bytes | str]) -> tuple[int, bytes, Any]:
    with contextlib.closing(
        http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
    ) as client:
        client.request("POST", path, body, headers)
        answer = client.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())


def ask(address: str, body: bytes, **headers: bytes | str) -> tuple[int, Any, dict[str, str]]:
    status, answer, told = post(
        address, "/predict", body, {name.replace("_", "-"): text for name, text in headers.items()}
    )
    return status, json.loads(answer), told


def reason(body: Any) -> str:
    [problem] = body["detail"]
    text: str = problem["msg"]
    return text


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_whatever_comes_gets_an_answer_that_is_described(
    start: Start, store: MemoryStore, mode: GenerationMode
) -> None:
    """One transaction or several, as the document says or not; bad ones are refused, none is an error."""
    scoring, told = start(lambda _: store)
    document = schemathesis.openapi.from_url(f"{scoring.address}/openapi.json")
    answers: Counter[tuple[int, type]] = Counter()

    @settings(max_examples=150)
    @given(pending_id=document["/predict"]["POST"].as_strategy(generation_mode=mode))
    def fuzz(pending_id: Any) -> None:
        response = pending_id.call()
        # What no schema can say is refused too: more decimals than the currency has, a time to come.
        pending_id.validate_response(response, excluded_checks=[positive_data_acceptance])
        answers[response.status_code, type(pending_id.body)] += 1

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


def test_parts_come_from_each_owner_in_the_requests_order(start: Start, store: MemoryStore) -> None:
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
    assert reason(body).startswith(f"the worker at {gone}, which owns the history, responded: ")


def test_a_partition_that_goes_while_its_users_are_scored(start: Start, store: MemoryStore) -> None:
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


def test_other_partitioners_are_noticed(start: Start, store: MemoryStore) -> None:
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
    assert "RISKSTREAM_TOPICS__PARTITIONER=murmur2" in reason(body)


@pytest.mark.parametrize("text", ["", "x", "1", "-1", "0,1", "0,,0"])
def test_places_that_are_none_are_refused(start: Start, store: MemoryStore, text: str) -> None:
    scoring, _ = start(lambda _: store)
    status, body, _ = ask(scoring.address, RECORDS[0][1], **{ONLY_HEADER: text})
    assert status == 422
    assert reason(body) == "must contain indexes of transactions in the request"


@pytest.mark.parametrize("given_token", [None, b"Bearer wrong", b"Bearer \xff\xfe", b"correct horse battery"])
def test_without_the_token_nothing_is_told(
    start: Start, store: MemoryStore, given_token: bytes | None
) -> None:
    scoring, _ = start(lambda _: store, token="correct horse battery")
    headers: dict[str, bytes | str] = {} if given_token is None else {"Authorization": given_token}
    assert ask(scoring.address, RECORDS[0][1], **headers)[0] == 401
    assert ask(scoring.address, RECORDS[0][1], Authorization="Bearer correct horse battery")[0] == 200


def test_a_body_that_is_too_large(start: Start, store: MemoryStore) -> None:
    scoring, _ = start(lambda _: store)
    status, body, _ = ask(scoring.address, b" " * ((1 << 20) + 1))
    assert status == 413
    assert reason(body).startswith("must not be larger than")


HOSTILE = {
    "empty lists": b"[" + b",".join([b"[]"] * 200_000) + b"]",
    "depth": b"[" * 500_000,
    "numbers": b"[" + b",".join([b"1e-9"] * 150_000) + b"]",
    "one object": b'{"a":[' + b",".join([b"1"] * 30_000) + b"]}",  # which a record may have
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_body_of_too_many_values_is_refused_before_it_is_parsed(
    start: Start, store: MemoryStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(*_: object, **__: object) -> object:
        raise AssertionError("parsed")

    scoring, _ = start(lambda _: store)
    monkeypatch.setattr(predict.jiter, "from_json", parse)
    status, body, _ = ask(scoring.address, HOSTILE[name])
    assert status == 422
    assert reason(body).endswith("JSON values and names")


def test_whoever_sends_invalid_bodies_without_end_is_slowed_down(start: Start, store: MemoryStore) -> None:
    """The stream has priority: refused bodies get a tenth of the time, and then no answer but this."""
    scoring, _ = start(lambda _: store)
    invalid = b"[" + b",".join([b"1e-9"] * 19_000) + b"]"

    def refused() -> bool:
        status, body, headers = ask(scoring.address, invalid)
        assert status in {422, 503}
        if status == 503:
            assert reason(body) == "too many invalid bodies take the time of the stream"
            assert headers["Retry-After"] == "1"
        return status == 503

    wait_until(refused, "hostile requests are answered without end")
    wait_until(lambda: ask(scoring.address, RECORDS[0][1])[0] == 200, "the endpoint does not recover")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return transactions(random.Random(4), 260, users=12, merchants=9, devices=9)


@pytest.fixture(scope="module")
def profiled() -> Preview:
    return profiled_preview(PROFILES)


def profiled_preview(profiles: tuple[EntityProfile, ...]) -> Preview:
    bundle = made_bundle(entities=profiles)
    return Preview(bundle, lateness_ms=LATENESS_MS, max_reasons=5)


@pytest.fixture(scope="module")
def state(rows: list[dict[str, Any]]) -> MemoryStore:
    """Of all but the last rows."""
    table = table_of(rows[:200], labels_of(random.Random(4), rows[:200]))
    outcome = np.zeros(len(table), np.uint8)
    store = load_histories(table, lateness_ms=LATENESS_MS, outcome=outcome)
    store |= load_logs(table, made_bundle(entities=PROFILES).spec, outcome == 0, lateness_ms=LATENESS_MS)
    return store


def test_entities_are_asked_wherever_they_are(
    start: Start, profiled: Preview, state: MemoryStore, rows: list[dict[str, Any]]
) -> None:
    """Three workers: users, merchants and devices of one request lie on all of them; asked of any."""
    token = "correct horse battery"
    owners: dict[int, str] = {}
    shares = ({0}, {1, 2}, {3})
    three = [
        start(lambda at, mine=mine: state if at in mine else None, owners, profiled, token=token)[0]
        for mine in shares
    ]
    owners |= {at: one.address for one, mine in zip(three, shares, strict=True) for at in mine}
    parsed = [profiled.row(row, NOW_MS) for row in rows[200:]]
    assert profiled.profiles is not None
    expected = profiled.score(parsed, state, profiled.profiles.profile_responses(parsed, state))
    unknown: list[dict[int, Any]] = [{} for _ in parsed]
    assert expected != profiled.score(parsed, state, unknown), "it says nothing"
    authorized = {"Authorization": f"Bearer {token}"}
    for one in three:
        status, answers, _ = ask(one.address, orjson.dumps(rows[200:]), **authorized)
        assert (status, answers) == (200, expected)
        for row, answer in zip(rows[200:212], expected, strict=False):
            assert ask(one.address, orjson.dumps(row), **authorized)[:2] == (200, answer)
        assert post(one.address, "/profiles", b"", {})[0] == 401


def sent_by(profiled: Preview, row: dict[str, Any]) -> list[EntityRequest]:
    assert profiled.profiles is not None
    return profiled.profiles.requests(profiled.row(row, NOW_MS), 0)


def test_profiles_that_are_nowhere_are_not_unknown(
    start: Start, profiled: Preview, state: MemoryStore, rows: list[dict[str, Any]]
) -> None:
    """A client is told so, by a worker that should have them and by one that asks another in vain."""
    row = next(
        row
        for row in rows[200:]
        if {entity_partition(one.name, PARTITIONS) for one in sent_by(profiled, row)}
        - {partition_of(row["user_id"].encode(), PARTITIONS, "murmur2")}
    )
    mine = partition_of(row["user_id"].encode(), PARTITIONS, "murmur2")
    owners: dict[int, str] = {}
    scoring, told = start(lambda at: state if at == mine else None, owners, profiled)
    status, body, _ = ask(scoring.address, orjson.dumps(row))
    assert status == 503
    assert re.fullmatch(r"the profiles of partition \d are being moved or restored", reason(body))
    other, _ = start(lambda _: None, owners, profiled)
    owners |= dict.fromkeys(range(PARTITIONS), other.address)
    status, body, _ = ask(scoring.address, orjson.dumps(row))
    assert status == 503
    assert reason(body).startswith(
        f"the worker at {other.address}, which owns the profiles, responded: the profiles"
    )
    assert told == {"unavailable": 2}
    broken, _ = start(lambda at: state if at == mine else _Broken(StateError("at /x")), {}, profiled)
    status, body, _ = ask(broken.address, orjson.dumps(row))
    assert (status, reason(body).partition(" of ")[0]) == (503, "the profiles")
    assert reason(body).endswith("cannot be read")


@pytest.mark.parametrize(
    ("profiles", "said"), [(OTHER_PROFILES, "the workers' models differ"), ((), "HTTP 404")]
)
def test_workers_with_other_models_do_not_answer_for_each_other(
    start: Start,
    profiled: Preview,
    state: MemoryStore,
    rows: list[dict[str, Any]],
    profiles: tuple[EntityProfile, ...],
    said: str,
) -> None:
    other, _ = start(lambda _: state, {}, profiled_preview(profiles))
    users = {partition_of(row["user_id"].encode(), PARTITIONS, "murmur2") for row in rows[200:]}
    mine = users - {3}
    scoring, _ = start(
        lambda at: state if at in mine else None, dict.fromkeys(range(PARTITIONS), other.address), profiled
    )
    some = [
        row
        for row in rows[200:]
        if partition_of(row["user_id"].encode(), PARTITIONS, "murmur2") in mine
        and any(entity_partition(one.name, PARTITIONS) not in mine for one in sent_by(profiled, row))
    ]
    status, body, headers = ask(scoring.address, orjson.dumps(some))
    assert (status, headers["Retry-After"]) == (503, "1")
    assert f"which owns the profiles, responded: {said}" in reason(body)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda _: b"", "$"),
        (lambda body: body[:-1], "$"),
        (lambda body: body + b"N", "$"),
        (lambda body: body * 1_000, "$"),
        (lambda _: LabelUpdate(2, 1, 1, 1, 1, 1).encode().value, "$"),
        (lambda _: EntityRequest(9, 1, 0, 0, 0, 1, 100, 1, 0, 0.0).encode().value, "entity"),
        (lambda _: EntityRequest(2, 1, 0, 0, 0, 1, 0, 1, 0, 0.0).encode().value, "minor_units"),
    ],
)
def test_questions_that_are_none_are_refused(
    start: Start,
    profiled: Preview,
    state: MemoryStore,
    rows: list[dict[str, Any]],
    change: Callable[[bytes], bytes],
    field: str,
) -> None:
    scoring, _ = start(lambda _: state, {}, profiled)
    assert profiled.profiles is not None
    spec = {SPEC_HEADER: profiled.profiles.spec_hash}
    good = b"".join(one.encode().value or b"" for row in rows[:4] for one in sent_by(profiled, row))
    status, answer, _ = post(scoring.address, "/profiles", good, spec)
    assert status == 200
    assert len(answer) % 8 == 0
    status, answer, _ = post(scoring.address, "/profiles", change(good), spec)
    assert status == 422
    assert json.loads(answer)["detail"][0]["loc"] == ["body", field]
    assert post(scoring.address, "/profiles", good, {})[0] == 503


def test_off_and_on_loopback_unless_told_otherwise() -> None:
    chosen = ScoringSettings()
    assert not chosen.enabled
    assert chosen.host == "127.0.0.1"
