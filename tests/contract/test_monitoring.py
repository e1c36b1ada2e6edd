"""A live worker, Debian's Prometheus asking it, and every query of the dashboards and rules answered."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from support.bundles import simulated
from support.helpers import wait_until
from support.paths import ROOT
from support.prometheus_tools import RULES, Prometheus, tool
from support.streams import Sent, Stream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stream.kafka.local.base import Broker

DASHBOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "grafana/dashboards").glob("*.json"))
}


@pytest.fixture(scope="module")
def prometheus(
    embedded_broker: Broker, bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Prometheus beside a worker through which transactions go all the time."""
    tool("prometheus")
    folder = tmp_path_factory.mktemp("monitoring")
    stream = Stream(embedded_broker, folder, bundle_folder, drift={"window_transactions": 500})
    stop = threading.Event()
    records = [Sent(key, value) for key, value in simulated().to_records()]

    def feed() -> None:
        # Some are not valid; once all were sent they come again, and are duplicates.
        for start in range(0, 10**9, 100):
            at = start % len(records)
            stream.produce([*records[at : at + 100], Sent(b"u", b"{}")])
            if stop.wait(0.2):
                return

    feeder = threading.Thread(target=feed)
    try:
        worker = stream.start()
        feeder.start()
        with Prometheus(folder, [worker.address.removeprefix("http://")]) as started:
            wait_until(lambda: started.query("riskstream_drift_psi > -1"), "no drift window ended")
            wait_until(
                lambda: started.query("rate(riskstream_alert_latency_seconds_count[10s]) > 0"), "no alert"
            )
            wait_until(
                lambda: started.query("rate(riskstream_dead_letters_total[10s]) > 0"), "no dead letter"
            )
            yield started
    finally:
        stop.set()
        if feeder.is_alive():
            feeder.join()
        stream.close()


def queries(dashboard: dict[str, Any]) -> list[tuple[str, str]]:
    """Return each panel's title and queries, variables as Grafana would fill them in."""
    filled = {"$__rate_interval": "10s", "$job": ".*", "$instance": ".*", "$feature": ".*"}
    found = []
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            query = target["expr"]
            for name, value in filled.items():
                query = query.replace(name, value)
            found.append((panel["title"], query))
    return found


def test_the_worker_is_asked_and_answers(prometheus: Prometheus) -> None:
    [up] = prometheus.query('up{job="riskstream"}')
    assert up["value"][1] == "1"
    [target] = prometheus.get("targets")["activeTargets"]
    assert target["lastError"] == ""


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_panel_shows_something(prometheus: Prometheus, name: str) -> None:
    asked = queries(DASHBOARDS[name])
    assert len(asked) > 10
    for title, query in asked:
        wait_until(lambda query=query: prometheus.query(query), f"{title} is empty: {query}", 15)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_variable_has_values(prometheus: Prometheus, name: str) -> None:
    for variable in DASHBOARDS[name]["templating"]["list"]:
        label = variable["name"]
        query = variable["query"]["query"]
        metric = query.removeprefix("label_values(").rpartition(",")[0].replace("$job", ".*")
        assert all(label in series["metric"] for series in prometheus.query(metric))
        assert prometheus.query(metric)


def test_every_recording_has_a_value(prometheus: Prometheus) -> None:
    [group] = yaml.safe_load((RULES / "recording.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]:
        # Its interval is 15 s: the rule is asked, and that it was recorded is for those behind it.
        wait_until(lambda rule=rule: prometheus.query(rule["expr"]), f"{rule['record']} is empty", 15)
    for one in prometheus.get("rules")["groups"]:
        for rule in one["rules"]:
            assert rule.get("lastError", "") == ""


def test_a_healthy_worker_raises_no_page(prometheus: Prometheus) -> None:
    firing = prometheus.query('ALERTS{alertstate="firing", severity="page"}')
    assert not firing, firing


def test_store_and_process_are_measured(prometheus: Prometheus) -> None:
    for query in (
        "riskstream_state_records > 10",
        'riskstream_rocksdb_memory_bytes{part="memtables"} > 0',
        "riskstream_process_resident_memory_bytes > 50e6",
        "time() - riskstream_model_trained_timestamp_seconds",
    ):
        assert prometheus.query(query), query
