"""Prometheus metrics of a worker: a separate registry, a common prefix, base units, no ids as labels.

Each metric is declared once, through :class:`_Catalog`, which also keeps its description for
``docs/reference/metrics.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from stream._version import __version__
from stream.events.models import Outcome, RiskLevel
from stream.pipeline.counters import JOIN_EVENTS
from stream.pipeline.idle_state import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt
    from prometheus_client.core import Metric

    from stream.monitoring.drift import Drift

__all__ = ["Description", "Distribution", "Metrics", "StoreMetrics"]


#: The stages of a batch, in order.
STAGES: Final = ("decide", "produce", "changelog", "store")

_PREFIX: Final = "riskstream"
_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SCORES: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_UNITS: Final = ("seconds", "bytes", "records")

#: What prometheus_client's process collector gives on Linux; elsewhere it gives nothing.
_PROCESS: Final = (
    ("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds."),
    ("process_max_fds", "gauge", "Maximum number of open file descriptors."),
    ("process_open_fds", "gauge", "Number of open file descriptors."),
    ("process_resident_memory_bytes", "gauge", "Resident memory size in bytes."),
    (
        "process_start_time_seconds",
        "gauge",
        "Start time of the process since unix epoch in seconds.",
    ),
    ("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes."),
)


class Description(NamedTuple):
    """What the table of metrics says of one: its name as queries write it, without a suffix of its kind."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str

    @property
    def unit(self) -> str:
        """The unit that the name carries, empty where it counts or has none."""
        words = self.name.removesuffix("_total").split("_")
        return next((unit for unit in _UNITS if unit in words[-2:]), "")


class StoreMetrics(NamedTuple):
    """What is asked for when Prometheus asks, and not counted as it happens.

    Attributes
    ----------
    state_records
        RocksDB's own estimate of its keys: users, and sealed chunks of long histories.
    block_cache_bytes, memtable_bytes, index_bytes
        RocksDB's memory; the cache is shared by the worker's partitions.
    recovery_remaining
        Changelog records still to be restored.
    """

    state_records: int
    state_live_bytes: int
    state_disk_bytes: int
    block_cache_bytes: int
    memtable_bytes: int
    index_bytes: int
    recovery_remaining: int
    stalled_seconds: float
    rebalances: int


#: How a request to ``/predict`` may end.
PREDICTION_ENDS: Final = ("answered", "refused", "unavailable", "failed")


class Distribution(Collector):
    """A histogram that takes a round's values at once: one by one they cost more than their scores."""

    def __init__(self, name: str, text: str, buckets: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._bounds = np.array([*buckets, np.inf])
        self._counts = np.zeros(len(self._bounds), np.int64)
        self._sum = 0.0

    def observe(self, values: npt.NDArray[np.float64]) -> None:
        """Count values: float64[n], none NaN."""
        indexes = np.searchsorted(self._bounds, values)
        self._counts += np.bincount(indexes, minlength=len(self._counts))
        self._sum += float(values.sum())

    def describe(self) -> Iterator[Metric]:
        """Return the family without its values."""
        yield HistogramMetricFamily(self._name, self._text)

    def collect(self) -> Iterator[Metric]:
        """Return the family with its values of now."""
        bounds = map(floatToGoString, self._bounds.tolist())
        buckets = list(zip(bounds, np.cumsum(self._counts).tolist(), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)


class _Catalog:
    """Declares metrics in a registry and remembers each."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.described: list[Description] = []

    def note(self, name: str, kind: str, text: str, labels: Sequence[str] = ()) -> str:
        full = f"{_PREFIX}_{name}"
        self.described.append(Description(full, kind, tuple(labels), text))
        return full

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        self.note(f"{name}_total", "counter", text, labels)
        return Counter(f"{_PREFIX}_{name}", text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(self.note(name, "gauge", text, labels), text, labels, registry=self.registry)

    def histogram(
        self, name: str, text: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> Histogram:
        self.note(name, "histogram", text, labels)
        return Histogram(f"{_PREFIX}_{name}", text, labels, buckets=buckets, registry=self.registry)

    def distribution(self, name: str, text: str, buckets: Sequence[float]) -> Distribution:
        made = Distribution(self.note(name, "histogram", text), text, buckets)
        self.registry.register(made)
        return made

    def info(self, name: str, text: str, values: Mapping[str, str]) -> None:
        self.note(f"{name}_info", "info", text, tuple(values))
        Info(f"{_PREFIX}_{name}", text, registry=self.registry).info(dict(values))


class _Asked(Collector):
    """Asks for the readings when Prometheus does; without anybody to ask there are none."""

    _TEXTS: Final = {
        "state_records": "RocksDB's estimate of its records: users, entities, chunks of long histories.",
        "state_live_bytes": "RocksDB's estimate of its size without data that compaction will remove.",
        "state_disk_bytes": "Size of RocksDB's table files on disk.",
        "rocksdb_memory_bytes": "Memory of RocksDB, by part.",
        "recovery_remaining_records": "Changelog records to restore before the worker is ready.",
        "stalled_seconds": "Time since the last progress while records are waiting.",
        "rebalances": "Rebalances of the consumer group since the worker's start.",
    }

    def __init__(self, catalog: _Catalog) -> None:
        self.measure: Callable[[], StoreMetrics] | None = None
        for name, text in self._TEXTS.items():
            counted = name == "rebalances"
            catalog.note(
                f"{name}_total" if counted else name,
                "counter" if counted else "gauge",
                text,
                ["part"] if name == "rocksdb_memory_bytes" else [],
            )
        catalog.registry.register(self)

    def describe(self) -> Iterator[Metric]:
        """Return the families, so that registering asks nobody."""
        for name, text in self._TEXTS.items():
            yield GaugeMetricFamily(f"{_PREFIX}_{name}", text)

    def collect(self) -> Iterator[Metric]:
        """Return the families with their values of now."""
        if self.measure is None:
            return
        readings = self.measure()
        values = {
            "state_records": readings.state_records,
            "state_live_bytes": readings.state_live_bytes,
            "state_disk_bytes": readings.state_disk_bytes,
            "recovery_remaining_records": readings.recovery_remaining,
            "stalled_seconds": readings.stalled_seconds,
        }
        for name, value in values.items():
            yield GaugeMetricFamily(f"{_PREFIX}_{name}", self._TEXTS[name], value=value)
        memory = GaugeMetricFamily(
            f"{_PREFIX}_rocksdb_memory_bytes", self._TEXTS["rocksdb_memory_bytes"], labels=["part"]
        )
        memory.add_metric(["block_cache"], readings.block_cache_bytes)
        memory.add_metric(["memtables"], readings.memtable_bytes)
        memory.add_metric(["indexes"], readings.index_bytes)
        yield memory
        yield CounterMetricFamily(
            f"{_PREFIX}_rebalances", self._TEXTS["rebalances"], value=readings.rebalances
        )


class Metrics:
    """Everything a worker tells Prometheus; children are bound once, so that counting is cheap.

    Parameters
    ----------
    trained_at_seconds
        When the model was trained, in seconds since 1970; None where its bundle does not say.
    drift
        What compares the stream with the training; None to leave it out.
    """

    def __init__(
        self,
        model_version: str,
        feature_spec: str,
        trained_at_seconds: float | None = None,
        drift: Drift | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        catalog = _Catalog(self.registry)
        ProcessCollector(namespace=_PREFIX, registry=self.registry)
        transactions = catalog.counter(
            "transactions", "Transaction records processed, by outcome.", ["outcome"]
        )
        self.transactions = {outcome: transactions.labels(outcome.value) for outcome in Outcome}
        alerts = catalog.counter("alerts", "Alerts sent, by risk level.", ["level"])
        self.alerts = {level: alerts.labels(level.value) for level in RiskLevel}
        self.dead_letters = catalog.counter(
            "dead_letters", "Dead letters sent, by rejected field.", ["field"]
        )
        self.internal_errors = catalog.counter(
            "internal_errors", "Records sent to the dead letters because of an unforeseen exception."
        )
        self.skipped = catalog.counter("skipped_records", "Records skipped on request of an operator.")
        self.expired = catalog.counter(
            "expired_records",
            "Offsets of consumed topics that retention deleted unread: at least as many as records.",
        )
        self.replayed = catalog.counter(
            "replayed_records", "Records skipped because the state already includes them."
        )
        self.unknown_fields = catalog.counter(
            "unknown_fields", "Fields of transactions that are not in the schema."
        )
        self.other_source = catalog.counter(
            "other_source_users",
            "Users with state from another incarnation of the source topic.",
        )
        card_numbers = catalog.counter(
            "card_numbers", "Records with card numbers as ids, refused or replaced by HMACs.", ["action"]
        )
        self.card_numbers = {action: card_numbers.labels(action) for action in ("refused", "replaced")}
        self.refunds = catalog.counter(
            "refunds", "Transactions with a negative amount or the type of a refund, apart from payments."
        )
        self.truncated = catalog.counter(
            "truncated_transactions",
            "Transactions whose features lack older events, for which their user's history has no room.",
        )
        forgotten = catalog.counter(
            "forgotten", "Users and entities deleted after their time to live, by kind.", ["kind"]
        )
        self.forgotten = {kind: forgotten.labels(kind) for kind in (*KINDS.values(), "other")}
        self.misplaced = catalog.counter(
            "misplaced_records",
            "Transactions on another partition than the declared partitioner chooses for their key.",
        )
        entity_join = catalog.counter(
            "entity_join_events",
            "Entity-join events by kind (transaction, request, label, label update) and outcome.",
            ["kind", "outcome"],
        )
        self.entity_join = {event: entity_join.labels(*event) for event in JOIN_EVENTS}
        self.pending = catalog.gauge("pending_transactions", "Transactions that wait for entity responses.")
        self.batch_size = catalog.histogram("batch_records", "Records per micro-batch.", _SIZES)
        stage = catalog.histogram(
            "stage_seconds", "Duration of the stages of a micro-batch.", _SECONDS, ["stage"]
        )
        self.stages = {name: stage.labels(name) for name in STAGES}
        self.alert_latency = catalog.histogram(
            "alert_latency_seconds",
            "Time from a transaction's Kafka timestamp to its acknowledged alert.",
            _SECONDS,
        )
        self.event_to_alert = catalog.histogram(
            "event_to_alert_seconds",
            "Time from a transaction's event time to its acknowledged alert.",
            _SECONDS,
        )
        self.score = catalog.distribution("score", "Risk scores of transactions.", _SCORES)
        predictions = catalog.counter(
            "predictions",
            "Requests to /predict, by result; a forwarded request counts at both workers.",
            ["end"],
        )
        self.predictions = {end: predictions.labels(end) for end in PREDICTION_ENDS}
        self.prediction_seconds = catalog.histogram(
            "prediction_seconds", "Duration of a request to /predict.", _SECONDS
        )
        self.lag = catalog.gauge("lag_records", "Records not yet processed, by partition.", ["partition"])
        self.open_transactions = catalog.gauge(
            "open_transaction_records",
            "Records that wait for the end of a producer's transaction, by partition.",
            ["partition"],
        )
        self.assigned = catalog.gauge(
            "assigned_partitions", "Partitions of the source topic assigned to the worker."
        )
        self.ready = catalog.gauge("ready", "1 while the worker can process transactions, otherwise 0.")
        self.recovered = catalog.counter("recovered_records", "Changelog records restored into RocksDB.")
        self._asked = _Asked(catalog)
        self._describe_model(catalog, model_version, feature_spec, trained_at_seconds)
        self._begin_drift(catalog, drift)
        for name, kind, text in _PROCESS:
            catalog.note(name, kind, text)
        #: Every metric, for the documentation.
        self.described: Sequence[Description] = sorted(catalog.described)

    def _describe_model(
        self, catalog: _Catalog, model_version: str, feature_spec: str, trained_at_seconds: float | None
    ) -> None:
        catalog.info("build", "Version of the program.", {"version": __version__})
        catalog.info(
            "model",
            "Version of the model in use and hash of its feature spec.",
            {"model_version": model_version, "feature_spec": feature_spec},
        )
        trained = catalog.gauge(
            "model_trained_timestamp_seconds",
            "Unix time of the model's training; its age is time() minus this. NaN if it is unknown.",
        )
        trained.set(float("nan") if trained_at_seconds is None else trained_at_seconds)

    def _begin_drift(self, catalog: _Catalog, drift: Drift | None) -> None:
        self._drift = drift
        self._psi = catalog.gauge(
            "drift_psi",
            "Population stability index of a feature in the last full window.",
            ["feature"],
        )
        self._alarm_counter = catalog.counter(
            "drift_alarms",
            "Detected changes of a feature's distribution, by method.",
            ["feature", "method"],
        )
        self._drift_windows = catalog.counter("drift_windows", "Windows compared with training.")
        pairs = [] if drift is None else drift.alarms()
        self._alarms = {pair: self._alarm_counter.labels(*pair) for pair in pairs}

    def measure_with(self, measure: Callable[[], StoreMetrics]) -> None:
        """Ask ``measure`` for the readings from now on."""
        self._asked.measure = measure

    def see(self, features: npt.NDArray[np.float64], scores: npt.NDArray[np.float64]) -> None:
        """Compare scored transactions with the training: their features (n, k) and scores (n,)."""
        if self._drift is None:
            return
        for found in self._drift.observe(features, scores):
            self._drift_windows.inc(found.windows)
            for name, value in found.psi.items():
                self._psi.labels(name).set(value)
            for pair in found.alarms:
                self._alarms[pair].inc()

    def render(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)
