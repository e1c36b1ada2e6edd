"""The metrics: what the code tells is what the table says; names and units as Prometheus wants them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from stream.cli.commands.metrics import table
from stream.monitoring.metrics import Distribution, Metrics, StoreMetrics
from support.paths import ROOT


@pytest.fixture
def metrics() -> Metrics:
    made = Metrics("model", "spec", 1_700_000_000.0)
    made.dead_letters.labels("amount")
    made.lag.labels("0")
    made.open_transactions.labels("0")
    made._psi.labels("amount")
    made._alarm_counter.labels("amount", "psi")
    made.measure_with(lambda: StoreMetrics(10, 20, 30, 40, 50, 60, 70, 0.5, 3))
    return made


def test_the_table_in_the_docs_is_the_code_s() -> None:
    written = (ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8")
    assert written == table(), "write it anew with 'riskstream metrics'"


@pytest.mark.skipif(sys.platform != "linux", reason="process metrics are Linux's")
def test_everything_told_is_described_and_the_other_way_round(metrics: Metrics) -> None:
    told = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        if family.name.endswith("_created"):
            continue
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        name = {"counter": f"{family.name}_total"}.get(family.type, family.name)
        told[name] = labels
    described = {found.name: set(found.labels) for found in metrics.described}
    assert told == described


def test_names(metrics: Metrics) -> None:
    names = [found.name for found in metrics.described]
    assert len(set(names)) == len(names)
    for found in metrics.described:
        assert found.name.startswith("riskstream_")
        assert found.name.endswith("_total") == (found.kind == "counter"), found.name
        assert not found.name.endswith(("_ms", "_milliseconds", "_kb", "_mb")), "base units only"
        assert not {"user_id", "transaction_id", "alert_id", "merchant_id"} & set(found.labels)
        assert found.text.endswith("."), found.name


def test_readings_are_asked_for_when_prometheus_asks() -> None:
    metrics = Metrics("model", "spec")
    asked = []

    def measure() -> StoreMetrics:
        asked.append(1)
        return StoreMetrics(10, 20, 30, 40, 50, 60, 70, 0.5, 3)

    metrics.measure_with(measure)
    assert not asked
    text = metrics.render().decode()
    assert len(asked) == 1
    assert 'riskstream_rocksdb_memory_bytes{part="memtables"} 50.0' in text
    assert "riskstream_rebalances_total 3.0" in text
    assert "riskstream_recovery_remaining_records 70.0" in text


def test_a_distribution_says_what_a_histogram_says() -> None:
    values = np.random.default_rng(1).random(1_000)
    values[:4] = [0.0, 0.5, 1.0, 1.5]  # on a bound, and beyond the last
    bounds = (0.1, 0.5, 1.0)
    one, other = CollectorRegistry(), CollectorRegistry()
    histogram = Histogram("score", "Scores.", buckets=bounds, registry=one)
    for value in values.tolist():
        histogram.observe(value)
    distribution = Distribution("score", "Scores.", bounds)
    other.register(distribution)
    for part in np.split(values, [0, 1, 700]):  # an empty one too
        distribution.observe(part)

    def samples(registry: CollectorRegistry) -> dict[str, float]:
        families = text_string_to_metric_families(generate_latest(registry).decode())
        [family] = (family for family in families if family.type == "histogram")
        return {f"{sample.name}{sample.labels}": sample.value for sample in family.samples}

    assert samples(one).keys() == samples(other).keys()
    assert samples(one) == pytest.approx(samples(other))


def test_latency_buckets_span_a_millisecond_to_ten_seconds(metrics: Metrics) -> None:
    text = metrics.render().decode()
    for name in ("alert_latency", "event_to_alert"):
        assert f'riskstream_{name}_seconds_bucket{{le="0.001"}}' in text
        assert f'riskstream_{name}_seconds_bucket{{le="10.0"}}' in text
