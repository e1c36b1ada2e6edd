from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from datetime import UTC, datetime

import numpy as np
import orjson
import pytest
from click.testing import CliRunner

from offline.data.writers import write_table
from offline.features.build import SCORED, build_features
from offline.features.histories import load_histories
from offline.simulation.simulator import Simulation, simulate
from offline.training.train import TrainingOptions, train
from stream.cli.commands.serve import serve as serve_command
from stream.decisions.policy import Policy
from stream.events.records import ConsumerRecord
from stream.pipeline.effects import Batch, PipelineConfig
from stream.pipeline.preview import Preview
from stream.pipeline.transactions import TransactionPipeline
from stream.scoring.predictor import Predictor
from stream.serving.http import listen
from stream.serving.predict import MAX_BATCH, ScoringService, openapi
from support.bundles import made_bundle
from support.profiles import PROFILES, labels_of, table_of, transactions

LATENESS_MS = 3 * 86_400_000
NOW_MS = 1_800_000_000_000


@pytest.fixture(scope="module")
def table():
    return simulate(Simulation(transactions=6_000, seed=19, fraud_rate=0.05, users=60))


@pytest.fixture(scope="module")
def bundle(table):
    return train(table, TrainingOptions(trees=20, leaves=8), now=datetime(2026, 6, 1, tzinfo=UTC)).bundle


@pytest.fixture(scope="module")
def preview(bundle):
    return Preview(bundle, lateness_ms=LATENESS_MS, max_reasons=5)


def records(table, rows):
    return [
        ConsumerRecord(int(row), NOW_MS, key, value)
        for row, (key, value) in zip(rows, table.to_records(rows), strict=True)
    ]


def test_a_request_gets_what_the_stream_would_decide_and_leaves_no_trace(table, bundle, preview):
    """The last rows asked for one by one, against the stream fed with the same history."""
    store = load_histories(table.slice(0, 5_900), lateness_ms=LATENESS_MS)
    pipeline = TransactionPipeline(bundle, PipelineConfig(lateness_ms=LATENESS_MS))
    for record in records(table, np.arange(5_900, 5_930)):
        row = preview.row(json.loads(record.value), NOW_MS)
        [answer] = preview.score([row], store)
        assert preview.score([row], store) == [answer]
        effects = pipeline.process(Batch("transactions", 0, 0, [record]), store, NOW_MS)
        decision = json.loads(effects.decisions[0].value)
        for name in ("risk_score", "risk_level", "prediction", "outcome", "model_version"):
            assert answer[name] == decision[name]
        if effects.alerts:
            assert answer["reasons"] == json.loads(effects.alerts[0].value)["reasons"]
        store.write(effects.writes)
        [again] = preview.score([row], store)
        assert again["outcome"] == "duplicate"
        assert "risk_score" not in again


def test_those_of_a_batch_do_not_see_each_other(table, preview):
    store = load_histories(table.slice(0, 5_900), lateness_ms=LATENESS_MS)
    rows = [
        preview.row(json.loads(record.value), NOW_MS) for record in records(table, np.arange(5_900, 5_930))
    ]
    assert preview.score(rows, store) == [preview.score([row], store)[0] for row in rows]


def ask(port, body):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", data=body)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.parametrize(
    ("body", "loc", "message"),
    [
        ({"amount": "1-"}, ["body", "amount"], ""),
        ({"event_time": "2031-01-01T00:00:00Z"}, ["body", "event_time"], "ahead of the clock"),
        ([{}, {"currency": "GOLD"}], ["body", 1, "currency"], ""),
        ([{}, 3], ["body", 1, "$"], "must be a JSON object"),
        ([], ["body", "$"], "must hold 1 to"),
        ([{}] * (MAX_BATCH + 1), ["body", "$"], "must hold 1 to"),
        (b"{", ["body", "$"], "not valid JSON"),
        (b"[1,", ["body", "$"], "not valid JSON"),
        (b"", ["body", "$"], "not valid JSON"),
    ],
)
def test_bad_input_names_its_field(table, preview, body, loc, message):
    good = json.loads(next(iter(table.to_records([5])))[1])
    if isinstance(body, dict):
        body = json.dumps(good | body).encode()
    elif isinstance(body, list):
        body = json.dumps([good | item if isinstance(item, dict) else item for item in body]).encode()

    async def run():
        store = load_histories(table.slice(0, 10), lateness_ms=LATENESS_MS)

        async def score(asked):
            return preview.score(asked.rows, store)

        application = ScoringService(preview, score).application()
        runner, port = await listen(application, "127.0.0.1", 0, option="--port")
        try:
            return await asyncio.to_thread(ask, port, body)
        finally:
            await runner.cleanup()

    status, answer = asyncio.run(run())
    assert status == 422
    [problem] = answer["detail"]
    assert problem["loc"] == loc
    assert message in problem["msg"]


def test_the_document_describes_what_is_taken():
    document = openapi()
    known = document["components"]["schemas"]
    assert set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document))) <= set(known)
    assert "user_id" in known["Transaction"]["required"]


def serve(bundle, table, folder, *options):
    bundle.save(folder / "bundle")
    write_table(table, folder / "data.parquet")
    return [
        sys.executable, "-c", "from stream.cli import main; main()", "serve", "--bundle", str(folder / "bundle"),
        "--data", str(folder / "data.parquet"), "--port", "0", *options,
    ]  # fmt: skip


@contextmanager
def serving(*wanted):
    """Run the command; yields its port."""
    with subprocess.Popen(serve(*wanted), stdout=subprocess.PIPE, text=True) as server:
        try:
            yield int(re.search(r":(\d+)/predict", server.stdout.readline())[1])
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0


def test_the_command_serves_a_file(tmp_path, table, bundle):
    with serving(bundle, table.slice(0, 1_000), tmp_path, "--language", "zh") as port:
        bodies = [value for _, value in table.to_records([1_000, 1_001])]
        status, answers = ask(port, b"[" + b",".join(bodies) + b"]")
        assert status == 200
        assert [answer["outcome"] for answer in answers] == ["scored", "scored"]
        assert ask(port, bodies[0]) == (200, answers[0])
        sentences = [reason["sentence"] for answer in answers for reason in answer["reasons"]]
        assert sentences
        assert all(re.search("[\u4e00-\u9fff]", sentence) for sentence in sentences)


def test_the_command_serves_the_profiles_of_a_file_and_its_labels(tmp_path):
    """What the model says of the features that the file would have with the transaction at its end."""
    bundle = made_bundle(entities=PROFILES)
    rng = random.Random(8)
    rows = transactions(rng, 300)
    labels = labels_of(rng, rows)
    (tmp_path / "labels.jsonl").write_bytes(b"".join(orjson.dumps(label) + b"\n" for label in labels))
    expected = build_features(table_of(rows, labels), bundle.spec, allowed_lateness_ms=LATENESS_MS)
    assert expected.outcome[-1] == SCORED
    assert expected.matrix[-1, list(bundle.spec.names).index("merchant_fraud_count_8d")] > 0
    [score] = Predictor(bundle).scores(expected.matrix[-1:]).tolist()
    labelled = ("--labels", str(tmp_path / "labels.jsonl"))
    with serving(bundle, table_of(rows[:-1]), tmp_path, *labelled) as port:
        status, answer = ask(port, orjson.dumps(rows[-1]))
    assert (status, answer["outcome"]) == (200, "scored")
    assert answer["risk_score"] == Policy(bundle.thresholds).judge(score).score


@pytest.mark.parametrize("profiled", [False, True])
def test_labels_that_nothing_is_made_of_are_refused(tmp_path, bundle, profiled):
    (made_bundle(entities=PROFILES) if profiled else bundle).save(tmp_path)
    data = [] if profiled else ["--data", "data.parquet"]
    done = CliRunner().invoke(serve_command, ["--bundle", str(tmp_path), "--labels", "labels.jsonl", *data])
    assert done.exit_code == 2
    assert "--labels requires " in done.output
