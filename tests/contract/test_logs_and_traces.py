"""A worker that logs JSON and traces to a collector: what both say of transactions, and what they do not."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from support.bundles import simulated
from support.helpers import wait_until
from support.streams import Found, Sent, Stream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stream.kafka.local.base import Broker

PARENT = "00f067aa0ba902b7"
#: A refused record's number is this or above.
REFUSED = 1_000_000


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP, on this machine alone."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        spans.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Run(NamedTuple):
    stream: Stream
    spans: list[Any]
    lines: list[dict[str, Any]]


def trace_of(number: int) -> str:
    return f"{number + 1:032x}"


@pytest.fixture(scope="module")
def run(
    embedded_broker: Broker, bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Run]:
    """A worker after it has taken a file of transactions, some of them traced, and some records that are none."""
    with Collector() as collector:
        serving = threading.Thread(target=collector.serve_forever)
        serving.start()
        stream = Stream(
            embedded_broker,
            tmp_path_factory.mktemp("traced"),
            bundle_folder,
            log_format="json",
            tracing={"endpoint": collector.address},
        )
        try:
            records = [
                Sent(key, value, [("traceparent", traceparent(number))])
                for number, (key, value) in enumerate(simulated().to_records())
            ]
            records += [
                Sent(b"u", b'{"memo": "secret"}', [("traceparent", traceparent(REFUSED + at))])
                for at in range(30)
            ]
            worker = stream.start()
            stream.produce(records)
            stream.wait_answered()
            assert worker.stop() == 0
            yield Run(stream, list(collector.spans), [json.loads(line) for line in worker.log.splitlines()])
        finally:
            stream.close()
            collector.shutdown()
            serving.join()


@cache
def sampled() -> set[int]:
    """Return the numbers of the sampled records: fewer than are traced of one round, with frauds among them."""
    frauds = np.flatnonzero(simulated().is_fraud == 1).tolist()
    return {*range(0, simulated().transaction_id.size, 100), *frauds[:30], REFUSED}


def traceparent(number: int) -> bytes:
    return f"00-{trace_of(number)}-{PARENT}-{'01' if number in sampled() else '00'}".encode()


def source_of(run: Run, found: Found) -> Sent:
    body = found.json
    return run.stream.sent[body["source_partition"], body["source_offset"]]


def attributes_of(span: Any) -> dict[str, Any]:
    return {
        item.key: item.value.string_value if item.value.HasField("string_value") else item.value.int_value
        for item in span.attributes
    }


@pytest.mark.parametrize("name", ["alerts", "decisions"])
def test_what_is_sent_carries_its_transactions_trace(run: Run, name: str) -> None:
    found = run.stream.read(name)
    assert found
    for record in found:
        assert record.headers == tuple(source_of(run, record).headers)


def test_each_sampled_transaction_has_its_spans(run: Run) -> None:
    traces: dict[str, dict[str, Any]] = {}
    for span in run.spans:
        if attributes_of(span).get("messaging.kafka.offset") is not None:
            assert span.name == "process"
            assert span.parent_span_id.hex() == PARENT
        traces.setdefault(span.trace_id.hex(), {})[span.name] = span
    alerts = {
        dict(record.headers)["traceparent"].decode().split("-")[1]: record
        for record in run.stream.read("alerts")
    }
    assert traces.pop(trace_of(REFUSED)).keys() == {"process", "receive", "decide", "dead letter"}
    assert traces.keys() == {trace_of(number) for number in sampled() - {REFUSED}}
    assert traces.keys() & alerts.keys()
    for trace, spans in traces.items():
        whole = spans.pop("process")
        said = attributes_of(whole)
        last = "alert" if trace in alerts else "decision"
        assert {"receive", "decide", last} <= spans.keys()
        if trace in alerts:
            alert = alerts[trace].json
            assert said["riskstream.transaction.id"] == alert["transaction_id"]
            assert said["messaging.kafka.offset"] == alert["source_offset"]
            assert int(said["messaging.destination.partition.id"]) == alert["source_partition"]
        for span in spans.values():
            assert span.parent_span_id == whole.span_id
        steps = [whole.start_time_unix_nano]
        for name in ("receive", "decide", last):
            steps += [spans[name].start_time_unix_nano, spans[name].end_time_unix_nano]
        assert steps == sorted(steps)
        assert steps[-1] <= whole.end_time_unix_nano


def test_a_line_says_which_transaction_an_alert_was_about(run: Run) -> None:
    alerts = {
        (record.partition, body["source_offset"]): body
        for record in run.stream.read("alerts")
        if (body := record.json)
    }
    told = [line for line in run.lines if line["message"] == "alert sent"]
    assert told
    for line in told:
        alert = alerts[line["partition"], line["offset"]]
        assert line["transaction_id"] == alert["transaction_id"]
        assert line["risk_level"] == alert["risk_level"]
        assert line["topic"] == run.stream.settings.topics.transactions
    assert len(told) + sum(line.get("suppressed", 0) for line in told) <= len(alerts)


def test_a_line_says_where_a_refused_record_lies(run: Run) -> None:
    told = [line for line in run.lines if line["message"].startswith("record rejected")]
    assert told
    assert len(told) < 30
    for line in told:
        assert run.stream.sent[line["partition"], line["offset"]].value == b'{"memo": "secret"}'
        assert line["field"] == "transaction_id"


def test_lines_tell_a_workers_life(run: Run) -> None:
    for message in (
        "partitions assigned",
        "ready: state restored, accepting transactions",
        "stopping",
        "stopped",
    ):
        assert [line for line in run.lines if line["message"] == message], message
    [assigned, *_] = [line for line in run.lines if line["message"] == "partitions assigned"]
    assert assigned["topic"] == run.stream.settings.topics.transactions
    assert all(line["level"] in {"info", "warning"} for line in run.lines)


def test_nothing_personal_is_logged(run: Run) -> None:
    """No user, merchant or amount, and nothing of what a refused record holds."""
    told = "\n".join(
        json.dumps(line)
        for line in run.lines
        if line["message"] in {"alert sent", "record rejected, dead letter sent"}
    )
    assert told
    assert "secret" not in told
    for key, value in simulated().to_records():
        body = json.loads(value)
        assert f'"{key.decode()}"' not in told
        for name in ("merchant_id", "amount", "channel"):
            assert f'"{body.get(name, "")}"' not in told


def test_nothing_of_opentelemetry_is_loaded_when_off() -> None:
    code = (
        "import sys; import stream.runtime.worker; from stream.settings import Settings; "
        "from stream.monitoring.tracing import build_tracer; assert build_tracer(Settings()) is None; "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_collector_that_is_not_there_disturbs_nobody(
    embedded_broker: Broker, bundle_folder: Path, tmp_path: Path
) -> None:
    stream = Stream(embedded_broker, tmp_path, bundle_folder, tracing={"endpoint": "http://127.0.0.1:9"})
    try:
        worker = stream.start()
        records = [
            Sent(key, value, [("traceparent", traceparent(0))])
            for key, value in list(simulated().to_records())[:500]
        ]
        stream.produce(records)
        stream.wait_answered()
        wait_until(lambda: "opentelemetry" in worker.log, "the worker does not say that spans are lost")
        assert worker.stop() == 0
        assert "Traceback" not in worker.log
    finally:
        stream.close()
