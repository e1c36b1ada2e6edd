"""Prometheus and Grafana: dashboards and queries name only what there is."""

from __future__ import annotations

import json
import re
import runpy
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from stream.monitoring.metrics import Metrics, StoreMetrics
from support.deployment_files import (
    DASHBOARDS,
    DATASOURCES,
    PROMETHEUS,
    SERVICES,
    anchors_of,
    environment,
    texts,
)
from support.paths import ROOT

PROMQL_WORDS = {
    "by",
    "count",
    "group_left",
    "histogram_quantile",
    "increase",
    "max",
    "on",
    "or",
    "rate",
    "sum",
}

PROMQL_WORDS |= {"time", "topk", "vector"}

SCRAPED = {"up", "instance", "job", "ALERTS", "alertstate", "alertname"}


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    """Every metric with at least one child, so that all of them are in the exposition."""
    made = Metrics("model", "spec")
    made.dead_letters.labels("amount")
    made.open_transactions.labels("0")
    made.lag.labels("0")
    made._psi.labels("amount")
    made._alarm_counter.labels("amount", "psi")
    made.measure_with(lambda: StoreMetrics(0, 0, 0, 0, 0, 0, 0, 0.0, 0))
    return made


@pytest.fixture(scope="module")
def exposed(metrics: Metrics) -> dict[str, set[str]]:
    """Sample name -> labels, as Prometheus sees them."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for panel in dashboard["panels"]:
        found += [panel, *panel.get("panels", [])]
    return found


def names_in(query: str) -> set[str]:
    """Return the metrics and grouping labels that a query names."""
    bare = re.sub(r'"[^"]*"', '""', query)
    bare = re.sub(r"\[[^\]]*\]", "", bare)
    bare = re.sub(r"(\w+)\s*(=~|!~|!=|=)", r"\1 ", bare)
    return set(re.findall(r"[A-Za-z_:][\w:]*", bare)) - PROMQL_WORDS


# --- Prometheus and Grafana ---


def test_prometheus_asks_the_worker() -> None:
    [job] = [job for job in PROMETHEUS["scrape_configs"] if job["job_name"] == "riskstream"]
    [lookup] = job["dns_sd_configs"]
    assert lookup["names"] == ["worker"]
    assert str(lookup["port"]) == environment(SERVICES["worker"])["RISKSTREAM_METRICS__PORT"]
    assert job.get("metrics_path", "/metrics") == "/metrics"
    assert set(SERVICES["prometheus"]["networks"]) & set(SERVICES["worker"]["networks"])


def test_prometheus_files_name_metrics_that_exist(exposed: dict[str, set[str]]) -> None:
    for path in sorted((ROOT / "grafana/prometheus").glob("*.yml")):
        named = set(re.findall(r"(?<![\w:/])riskstream_\w+", path.read_text(encoding="utf-8")))
        assert named <= set(exposed), path.name


def test_datasource_is_the_prometheus_beside_it() -> None:
    [datasource] = DATASOURCES
    assert datasource["type"] == "prometheus"
    assert datasource["isDefault"] is True
    assert datasource["url"] == "http://prometheus:9090"


def test_dashboards_are_mounted_where_grafana_looks() -> None:
    path = ROOT / "grafana/provisioning/dashboards/riskstream.yml"
    [provider] = yaml.safe_load(path.read_text(encoding="utf-8"))["providers"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in SERVICES["grafana"]["volumes"]


def test_there_are_three_dashboards() -> None:
    assert {path.stem for path in DASHBOARDS} == {"overview", "stream", "model"}


def test_dashboards_are_as_they_are_written_down(dashboard: dict[str, Any]) -> None:
    name = dashboard.pop("file").removeprefix("riskstream-")
    source: dict[str, Any] = runpy.run_path(str(ROOT / "grafana/build.py"))
    assert dashboard == source["build"](name), "write them anew with 'python grafana/build.py'"


def test_dashboards_lead_to_each_other_and_to_the_runbook(dashboard: dict[str, Any]) -> None:
    found = {link["url"] for link in dashboard["links"]}
    runbook = "/public/riskstream/operations.md"
    others = {f"/d/riskstream-{path.stem}" for path in DASHBOARDS} - {f"/d/{dashboard['uid']}"}
    assert found == others | {f"{runbook}#runbook"}
    anchors = anchors_of("docs/how-to/operations.md")
    for panel in dashboard["panels"]:
        for link in panel["links"]:
            page, _, anchor = link["url"].partition("#")
            assert page == runbook
            assert anchor in anchors, panel["title"]
    mount = f"./docs/how-to/operations.md:/usr/share/grafana{runbook}:ro"
    assert mount in SERVICES["grafana"]["volumes"]


def test_dashboards_can_be_narrowed_down(dashboard: dict[str, Any]) -> None:
    names = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert {"job", "instance"} <= names
    used = set(re.findall(r"\$(\w+)", " ".join(texts([panel["targets"] for panel in dashboard["panels"]]))))
    assert names <= used
    assert used - names == {"__rate_interval"}


def test_panels_have_thresholds(dashboard: dict[str, Any]) -> None:
    for panel in dashboard["panels"]:
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        values = [step["value"] for step in steps]
        assert values[0] is None
        assert values[1:] == sorted(values[1:]), panel["title"]


@pytest.fixture(params=DASHBOARDS, ids=lambda path: path.stem)
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(request.param.read_text(encoding="utf-8"))
    return found | {"file": f"riskstream-{request.param.stem}"}


def test_is_itself_for_good(dashboard: dict[str, Any]) -> None:
    assert dashboard["uid"] == dashboard["file"]
    assert dashboard["title"].startswith("RiskStream")
    assert "id" not in dashboard


def test_panels(dashboard: dict[str, Any]) -> None:
    found = panels(dashboard)
    ids = [panel["id"] for panel in found]
    assert len(set(ids)) == len(ids)
    for panel in found:
        if panel["type"] == "row":
            continue
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references), panel["title"]


def test_panels_do_not_overlap(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + column, at["y"] + row) for column in range(at["w"]) for row in range(at["h"])}
        assert at["x"] + at["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


def test_datasource_is_provisioned(dashboard: dict[str, Any]) -> None:
    [provisioned] = DATASOURCES
    wanted = {"type": provisioned["type"], "uid": provisioned["uid"]}
    for panel in panels(dashboard):
        for part in [panel, *panel.get("targets", [])]:
            assert part.get("datasource", wanted) == wanted, panel["title"]
    for variable in dashboard["templating"]["list"]:
        assert variable.get("datasource", wanted) == wanted, variable["name"]


def test_queries_name_metrics_and_labels_that_exist(
    dashboard: dict[str, Any], exposed: dict[str, set[str]]
) -> None:
    labels = set().union(*exposed.values())
    for panel in panels(dashboard):
        for target in panel.get("targets", []):
            unknown = names_in(target["expr"]) - set(exposed) - labels - SCRAPED
            assert not unknown, f"{panel['title']}: {unknown}"
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert shown <= labels | SCRAPED, panel["title"]


def test_the_name_check_finds_what_does_not_exist(exposed: dict[str, set[str]]) -> None:
    query = 'sum by (nothing, le) (rate(riskstream_no_such_bucket{outcome="scored"}[$__rate_interval]))'
    labels = set().union(*exposed.values())
    assert names_in(query) - set(exposed) - labels == {"nothing", "riskstream_no_such_bucket"}
    assert "riskstream_stage_seconds_bucket" in exposed
