"""Recording and alert rules, by Prometheus' own tool."""

from __future__ import annotations

import subprocess

import pytest

from support.paths import TESTS
from support.prometheus_tools import RULES, tool


def promtool(*arguments: str) -> None:
    done = subprocess.run(
        [tool("promtool"), *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["recording.yml", "alerts.yml"])
def test_rules_are_valid(name: str) -> None:
    promtool("check", "rules", str(RULES / name))


def test_configuration_is_valid() -> None:
    promtool("check", "config", str(RULES / "prometheus.yml"))


def test_alerts_fire_where_they_must_and_only_there() -> None:
    promtool("test", "rules", str(TESTS / "deployment/prometheus/alerts.yml"))
