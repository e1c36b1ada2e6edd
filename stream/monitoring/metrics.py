"""Prometheus metrics of a worker: a registry of its own, one prefix, base units, no ids as labels."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.process_collector import ProcessCollector

from stream import __version__
from stream.events import Outcome, RiskLevel

__all__ = ["STAGES", "Metrics"]

#: The stages of a batch, in order.
STAGES: Final = ("decide", "produce", "changelog", "store")

_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SCORES: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class Metrics:
    """Everything a worker tells Prometheus; children are bound once, so that counting is cheap."""

    def __init__(self, model_version: str, feature_spec: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(namespace="riskstream", registry=self.registry)
        registry = self.registry
        transactions = Counter(
            "riskstream_transactions",
            "Records taken from the source, by outcome.",
            ["outcome"],
            registry=registry,
        )
        self.transactions = {outcome: transactions.labels(outcome.value) for outcome in Outcome}
        alerts = Counter("riskstream_alerts", "Alerts sent, by level.", ["level"], registry=registry)
        self.alerts = {level: alerts.labels(level.value) for level in RiskLevel}
        self.dead_letters = Counter(
            "riskstream_dead_letters", "Dead letters, by the field at fault.", ["field"], registry=registry
        )
        self.replayed = Counter(
            "riskstream_replayed_records",
            "Records skipped because the state already held them.",
            registry=registry,
        )
        self.unknown_fields = Counter(
            "riskstream_unknown_fields",
            "Fields of transactions that the schema does not know.",
            registry=registry,
        )
        self.other_source = Counter(
            "riskstream_other_source_users",
            "Users met whose state was written from another incarnation of the source topic.",
            registry=registry,
        )
        self.batch_size = Histogram(
            "riskstream_batch_records", "Records per batch.", buckets=_SIZES, registry=registry
        )
        stage = Histogram(
            "riskstream_stage_seconds",
            "Duration of a batch's stages.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.stages = {name: stage.labels(name) for name in STAGES}
        self.alert_latency = Histogram(
            "riskstream_alert_latency_seconds",
            "From a transaction's Kafka timestamp to the acknowledged alert.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.score = Histogram("riskstream_score", "Risk scores.", buckets=_SCORES, registry=registry)
        self.lag = Gauge(
            "riskstream_lag_records", "Records not yet taken, by partition.", ["partition"], registry=registry
        )
        self.assigned = Gauge(
            "riskstream_assigned_partitions", "Source partitions assigned.", registry=registry
        )
        self.ready = Gauge("riskstream_ready", "1 while transactions are being taken.", registry=registry)
        self.recovered = Counter(
            "riskstream_recovered_records", "Changelog records restored into the store.", registry=registry
        )
        info = Info("riskstream_build", "Versions in use.", registry=registry)
        info.info(
            {
                "version": __version__,
                "model_version": model_version,
                "feature_spec": feature_spec,
            }
        )

    def render(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)
