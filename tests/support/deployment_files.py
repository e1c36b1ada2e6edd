"""The deployment's files, read once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from support.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator


COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))

SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]

PROMETHEUS = yaml.safe_load((ROOT / "grafana/prometheus/prometheus.yml").read_text(encoding="utf-8"))

DATASOURCES = yaml.safe_load(
    (ROOT / "grafana/provisioning/datasources/prometheus.yml").read_text(encoding="utf-8")
)["datasources"]


DASHBOARDS = sorted((ROOT / "grafana/dashboards").glob("*.json"))


def environment(service: dict[str, Any]) -> dict[str, str]:
    found = service.get("environment", {})
    assert isinstance(found, dict), "the file uses one way of writing an environment"
    return found


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for member in value.values():
            yield from texts(member)
    elif isinstance(value, list):
        for member in value:
            yield from texts(member)
    else:
        yield str(value)


def anchors_of(path: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
