"""Generates the dashboards: ``python grafana/build.py`` writes ``dashboards/*.json`` from :mod:`panels`.

It also writes the rules of ``prometheus/*.yml``, in the Prometheus operator's format, into ``deploy/k8s``. A
test compares the files with this module.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

sys.path.insert(0, str(Path(__file__).parent))  # the script's own folder

from panels import MODEL, OVERVIEW, STREAM

if TYPE_CHECKING:
    from queries import Panel

FOLDER = Path(__file__).parent / "dashboards"
DATASOURCE = {"type": "prometheus", "uid": "riskstream-prometheus"}

#: Path at which Grafana serves the runbook (docker-compose.yml), so that it is available during an outage.
RUNBOOK = "/public/riskstream/operations.md"

DASHBOARDS = {
    "overview": (
        "RiskStream: overview",
        "Throughput, latency, alerts and rejected records.",
        OVERVIEW,
    ),
    "stream": (
        "RiskStream: stream",
        "For on-call engineers: lag, stages, state, recovery and resources.",
        STREAM,
    ),
    "model": ("RiskStream: model", "For data scientists: scores, alerts and drift against training.", MODEL),
}


def variable(name: str, label: str, metric: str) -> dict[str, Any]:
    """Return a variable with all the values of a label."""
    query = f"label_values({metric}, {name})"
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "options": [],
        "regex": "",
        "hide": 0,
        "skipUrlSync": False,
    }


def options(panel: Panel) -> dict[str, Any]:
    """Return the options of a panel's kind."""
    if panel.kind == "stat":
        return {
            "colorMode": "value",
            "graphMode": "area",
            "textMode": "auto",
            "justifyMode": "auto",
            "orientation": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        }
    if panel.kind == "heatmap":
        return {
            "calculate": False,
            "cellGap": 1,
            "color": {
                "mode": "scheme",
                "scheme": "Oranges",
                "steps": 64,
                "exponent": 0.5,
                "fill": "dark-orange",
                "reverse": False,
            },
            "filterValues": {"le": 1e-9},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto"},
            "tooltip": {"show": True, "yHistogram": False},
            "yAxis": {"axisPlacement": "left", "reverse": False, "unit": "none"},
            "exemplars": {"color": "rgba(255,0,255,0.7)"},
        }
    if panel.kind == "table":
        return {"showHeader": True, "cellHeight": "sm"}
    return {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def defaults(panel: Panel) -> dict[str, Any]:
    """Return how to display a panel's values."""
    steps = panel.steps or [("green", None)]
    shown: dict[str, Any] = {
        "unit": panel.unit,
        "noValue": "none",
        "color": {"mode": "thresholds" if panel.kind == "stat" else "palette-classic"},
        "thresholds": {
            "mode": "absolute",
            "steps": [{"color": color, "value": value} for color, value in steps],
        },
    }
    if panel.kind == "timeseries":
        if not panel.logarithmic:
            shown["min"] = 0
        shown["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 25 if panel.stacked else 5,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if panel.steps else "off"},
            "scaleDistribution": {"type": "log", "log": 10} if panel.logarithmic else {"type": "linear"},
        }
        if panel.most is not None:
            shown["max"] = panel.most
    return shown


def build(name: str) -> dict[str, Any]:
    """Return a dashboard."""
    title, text, panels = DASHBOARDS[name]
    made, x, y, row = [], 0, 0, 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > 24:  # noqa: PLR2004 - Grafana's columns
            x, y, row = 0, y + row, 0
        links = [{"title": "Runbook", "url": f"{RUNBOOK}#{panel.runbook}", "targetBlank": True}]
        still = panel.kind == "table"
        made.append(
            {
                "id": number,
                "type": panel.kind,
                "title": panel.title,
                "description": panel.text,
                "datasource": DATASOURCE,
                "gridPos": {"h": panel.height, "w": panel.width, "x": x, "y": y},
                "fieldConfig": {"defaults": defaults(panel), "overrides": []},
                "options": options(panel),
                "links": links if panel.runbook else [],
                "transformations": [],
                "targets": [
                    {
                        "datasource": DATASOURCE,
                        "expr": query,
                        "legendFormat": legend,
                        "refId": chr(65 + place),
                        "editorMode": "code",
                        "range": not still,
                        "instant": still,
                        "format": "table"
                        if still
                        else "heatmap"
                        if panel.kind == "heatmap"
                        else "time_series",
                    }
                    for place, (query, legend) in enumerate(panel.queries)
                ],
            }
        )
        x, row = x + panel.width, max(row, panel.height)
    others = [
        {
            "type": "link",
            "title": DASHBOARDS[other][0],
            "url": f"/d/riskstream-{other}",
            "icon": "dashboard",
            "keepTime": True,
            "includeVars": True,
            "targetBlank": False,
            "asDropdown": False,
            "tags": [],
            "tooltip": DASHBOARDS[other][1],
        }
        for other in DASHBOARDS
        if other != name
    ]
    runbook = {
        "type": "link",
        "title": "Runbook",
        "url": f"{RUNBOOK}#runbook",
        "icon": "doc",
        "keepTime": False,
        "includeVars": False,
        "targetBlank": True,
        "asDropdown": False,
        "tags": [],
        "tooltip": "What to do when an alert fires",
    }
    variables = [
        variable("job", "Deployment", "riskstream_ready"),
        variable("instance", "Worker", 'riskstream_ready{job=~"$job"}'),
    ]
    if name == "model":
        variables.append(variable("feature", "Feature", 'riskstream_drift_alarms_total{job=~"$job"}'))
    return {
        "uid": f"riskstream-{name}",
        "title": title,
        "description": text,
        "tags": ["riskstream"],
        "schemaVersion": 39,
        "version": 2,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "fiscalYearStartMonth": 0,
        "templating": {"list": variables},
        "annotations": {"list": []},
        "links": [*others, runbook],
        "panels": made,
    }


def to_text(name: str) -> str:
    """Return a dashboard's file."""
    return json.dumps(build(name), indent=1, ensure_ascii=False) + "\n"


RULES = Path(__file__).parent / "prometheus"
OPERATOR_RULES = Path(__file__).parents[1] / "deploy/k8s/prometheus-rule.yaml"


def operator_rules() -> str:
    """Return the recording and alert rules as a PrometheusRule."""
    groups = [
        group
        for name in ("recording.yml", "alerts.yml")
        for group in yaml.safe_load((RULES / name).read_text(encoding="utf-8"))["groups"]
    ]
    made = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "riskstream"},
        "spec": {"groups": groups},
    }
    head = "# For the Prometheus operator; written by grafana/build.py from grafana/prometheus.\n"
    return head + yaml.safe_dump(made, sort_keys=False, width=110, allow_unicode=True)


if __name__ == "__main__":
    OPERATOR_RULES.write_text(operator_rules(), encoding="utf-8")
    for chosen in DASHBOARDS:
        (FOLDER / f"{chosen}.json").write_text(to_text(chosen), encoding="utf-8")
