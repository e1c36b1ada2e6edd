"""Alert rules: each has its chapter in the runbook, its test, and its way to a person."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from support.deployment_files import DATASOURCES, PROMETHEUS, SERVICES, anchors_of, environment
from support.paths import ROOT, TESTS

# --- rules and runbook ---


def alert_rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load((ROOT / "grafana/prometheus/alerts.yml").read_text(encoding="utf-8"))["groups"]
    return list(group["rules"])


@pytest.mark.parametrize("rule", alert_rules(), ids=lambda rule: rule["alert"])
def test_each_alert_has_its_chapter_in_the_runbook(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert {"summary", "description", "runbook_url"} <= set(rule["annotations"])
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert page == "docs/how-to/operations.md"
    assert anchor == rule["alert"].lower()
    assert anchor in anchors_of(page)
    chapter = (
        (ROOT / page)
        .read_text(encoding="utf-8")
        .partition(f"### {rule['alert']}\n")[2]
        .partition("\n### ")[0]
    )
    for part in ("Means:", "Look:", "Do:"):
        assert part in chapter, rule["alert"]


def test_each_alert_is_tested() -> None:
    text = (TESTS / "deployment/prometheus/alerts.yml").read_text(encoding="utf-8")
    for rule in alert_rules():
        assert re.search(rf"alertname: {rule['alert']}\n +exp_alerts:\n", text), "it fires nowhere"
        assert re.search(rf"alertname: {rule['alert']}\n +exp_alerts: \[\]", text), "it is silent nowhere"


def test_rules_are_mounted_where_prometheus_looks() -> None:
    for name in PROMETHEUS["rule_files"]:
        assert f"./grafana/prometheus/{name}:/etc/prometheus/{name}:ro" in SERVICES["prometheus"]["volumes"]


def test_grafana_sends_on_what_prometheus_finds() -> None:
    path = ROOT / "grafana/provisioning/alerting/riskstream.yml"
    provisioned = yaml.safe_load(path.read_text(encoding="utf-8"))
    [contact], [policy], [group] = (provisioned[part] for part in ("contactPoints", "policies", "groups"))
    assert policy["receiver"] == contact["name"]
    [receiver] = contact["receivers"]
    variable = receiver["settings"]["url"].strip("${}")
    assert variable in environment(SERVICES["grafana"])
    [rule] = group["rules"]
    assert rule["condition"] in {part["refId"] for part in rule["data"]}
    assert rule["data"][0]["datasourceUid"] == DATASOURCES[0]["uid"]
    assert "ALERTS{" in rule["data"][0]["model"]["expr"]
