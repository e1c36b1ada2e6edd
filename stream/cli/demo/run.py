"""The steps of ``riskstream demo``; :mod:`.command` shows the result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson

from offline.metrics import binary_metrics
from offline.replay import Pacing, ReplayReport, replay, table_records
from offline.training.train import TrainingOptions, TrainingResult
from offline.training.train import train as fit
from stream.errors import BrokerError, RiskStreamError
from stream.kafka.local.apache import KafkaBroker
from stream.kafka.local.embedded import EmbeddedBroker
from stream.kafka.reader import TopicReader
from stream.settings import KafkaSettings, MetricsSettings, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from offline.data.table import TransactionTable
    from stream.kafka.local.base import Broker

__all__ = [
    "DemoResult",
    "Latency",
    "demo_settings",
    "follow",
    "run_demo",
    "start_broker",
    "start_worker",
    "train_model",
]


#: The unseen part is sent at a rate that a person can watch, and no longer than this.
_UNSEEN_RATE: Final = 2000.0

_UNSEEN_SECONDS: Final = 90.0

#: A stream without progress for this long has lost the missing records.
_STALL_SECONDS: Final = 30.0

#: The first worker of a checkout compiles its kernels: half a minute on a fast machine, minutes on others.
_READY_SECONDS: Final = 300.0


@dataclass(slots=True)
class Latency:
    """Milliseconds from the moment an alert's transaction was due to be sent to the alert's arrival here."""

    p50: float
    p99: float
    p999: float


@dataclass(slots=True)
class DemoResult:
    """The demo's figures.

    Attributes
    ----------
    transactions, scored, dead_letters:
        Of the whole file.
    lost, duplicates:
        Transactions sent that were neither decided nor dead letters; decisions beyond the first of each.
    throughput:
        Transactions a second over the part that was sent at full speed.
    top:
        The unseen part's highest alerts, as they came.
    """

    transactions: int
    unseen: int
    scored: int
    alerts: int
    alerts_by_level: dict[str, int]
    dead_letters: int
    lost: int
    duplicates: int
    throughput: float
    latency: Latency | None
    metrics: dict[str, Any]
    top: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as ``--json`` writes them."""
        latency = self.latency
        return {
            "transactions": self.transactions,
            "scored": self.scored,
            "alerts": self.alerts,
            "dead_letters": self.dead_letters,
            "lost": self.lost,
            "duplicates": self.duplicates,
            "throughput_per_second": round(self.throughput, 1),
            "latency_ms": {
                "p50": None if latency is None else round(latency.p50, 2),
                "p99": None if latency is None else round(latency.p99, 2),
                "p999": None if latency is None else round(latency.p999, 2),
            },
            "precision": self.metrics.get("precision"),
            "recall": self.metrics.get("recall"),
            "auc": self.metrics.get("auc"),
            "average_precision": self.metrics.get("average_precision"),
            "unseen_transactions": self.unseen,
            "alerts_by_level": self.alerts_by_level,
        }


@dataclass(slots=True)
class _Seen:
    """The follower's results so far; its thread writes them, the main thread reads them."""

    decisions: int = 0
    duplicates: int = 0
    dead_letters: int = 0
    verdicts: dict[str, tuple[float, int]] = field(default_factory=dict)
    decided: set[str] = field(default_factory=set)
    alerts: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    last_at: float = 0.0
    error: BaseException | None = None

    @property
    def accounted(self) -> int:
        return len(self.decided) + self.dead_letters


@contextmanager
def start_broker(kind: str) -> Iterator[Broker]:
    """Run a broker of the kind on a free port."""
    broker: Broker = EmbeddedBroker(port=0) if kind == "embedded" else KafkaBroker(port=0)
    with broker:
        yield broker


def demo_settings(folder: Path, bootstrap_servers: str) -> Settings:
    """Return settings that keep everything in ``folder``; the environment's do not matter here."""
    return Settings(
        _env_file=None,  # type: ignore[call-arg]
        app_id="riskstream-demo",
        state_dir=folder / "state",
        bundle=folder / "bundle",
        kafka=KafkaSettings(bootstrap_servers=bootstrap_servers),
        metrics=MetricsSettings(port=0),
    )


def train_model(table: TransactionTable, progress: Callable[[int], None]) -> TrainingResult:
    """Train on the file's first part; the last fifth stays unseen."""
    return fit(table, TrainingOptions(threads=os.cpu_count() or 1), now=datetime.now(UTC), progress=progress)


@contextmanager
def start_worker(settings: Settings, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run ``riskstream worker``; yields the process and its endpoint's address once it is ready."""
    command = [sys.executable, "-c", "from stream.cli import main; main()", "worker"]
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own program
            command,
            env=settings.child_environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process, _wait_until_ready(process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    mark = "metrics, health and readiness on "
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        text = log.read_text(encoding="utf-8", errors="replace")
        if process.poll() is not None:
            raise RiskStreamError(f"the worker exited with status {process.returncode}: {_last_line(text)}")
        if mark in text:
            address = text.split(mark, 1)[1].split(maxsplit=1)[0]
            with suppress(urllib.error.URLError, OSError):
                if urllib.request.urlopen(f"{address}/readyz", timeout=2).status == 200:  # noqa: S310, PLR2004
                    return address
        time.sleep(0.1)
    raise RiskStreamError(f"the worker was not ready after {_READY_SECONDS:.0f} s; see {log}")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it printed nothing"


@contextmanager
def follow(settings: Settings) -> Iterator[_Seen]:
    """Read alerts, decisions and dead letters as they come, on a thread."""
    seen = _Seen()
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(settings, seen, stop), daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join(timeout=10)


def _follow(settings: Settings, seen: _Seen, stop: threading.Event) -> None:
    topics = settings.topics
    names = (topics.alerts, topics.decisions, topics.dead_letters)
    try:
        with TopicReader(settings, *names, fetch_max_wait_ms=5, max_poll_records=5000) as reader:
            for batches in reader.follow(from_beginning=True, stop=stop.is_set, poll_ms=100):
                for partition, records in batches.items():
                    topic = partition.topic
                    _take(seen, topic == topics.alerts, topic == topics.decisions, list(records))
    except Exception as error:  # noqa: BLE001 - told to the main thread, which ends the demo
        seen.error = error


def _take(seen: _Seen, alerts: bool, decisions: bool, records: list[Any]) -> None:
    now = time.time()
    if alerts:
        seen.alerts += [(now, orjson.loads(record.value)) for record in records]
    elif decisions:
        for record in records:
            decision = orjson.loads(record.value)
            name = decision["transaction_id"]
            seen.decisions += 1
            if name in seen.decided:
                seen.duplicates += 1
            seen.decided.add(name)
            if "risk_score" in decision:
                seen.verdicts[name] = (decision["risk_score"], decision["prediction"])
    else:
        seen.dead_letters += len(records)
    seen.last_at = now


def _wait_for(
    seen: _Seen,
    before: int,
    count: int,
    process: subprocess.Popen[bytes],
    progress: Callable[[int], None],
    failure: list[BaseException],
) -> None:
    """Wait until ``count`` more transactions are accounted for, or nothing has moved for long."""
    shown = 0
    moved = time.monotonic()
    while True:
        if failure:
            raise failure[0]
        if seen.error is not None:
            raise BrokerError(f"the demo's consumer failed: {seen.error}") from seen.error
        if process.poll() is not None:
            raise RiskStreamError(f"the worker exited with status {process.returncode}")
        done = seen.accounted - before
        if done > shown:
            progress(done - shown)
            shown, moved = done, time.monotonic()
        if done >= count or time.monotonic() - moved > _STALL_SECONDS:
            return
        time.sleep(0.02)


def run_demo(
    table: TransactionTable,
    trained: TrainingResult,
    settings: Settings,
    process: subprocess.Popen[bytes],
    progress: Callable[[str, int], Any],
) -> DemoResult:
    """Send the whole file: the training part at full speed, to fill the histories; then the unseen part.

    Parameters
    ----------
    progress
        Called with a text and a total; returns a context manager as ``progress_bar`` does.
    """
    first_unseen = int(np.flatnonzero(trained.split.test)[0])
    history = table.slice(0, first_unseen)
    unseen = table.slice(first_unseen, len(table))
    with follow(settings) as seen:
        with progress("History, at full speed", len(history)) as advance:
            report = _send(history, settings, None, seen, process, advance)
        sent = sum(report.records.values())
        throughput = sent / (seen.last_at - report.started_at) if sent else 0.0
        alerts_before = len(seen.alerts)
        rate = max(_UNSEEN_RATE, len(unseen) / _UNSEEN_SECONDS)
        with progress(f"Unseen transactions, {rate:,.0f} a second", len(unseen)) as advance:
            report = _send(unseen, settings, rate, seen, process, advance)
        sent += sum(report.records.values())
        _wait_for_alerts(seen)
        return _result(table, unseen, seen, sent, throughput, alerts_before, report.started_at, rate)


def _send(
    part: TransactionTable,
    settings: Settings,
    rate: float | None,
    seen: _Seen,
    process: subprocess.Popen[bytes],
    advance: Callable[[int], None],
) -> ReplayReport:
    """Send a part while its progress is shown as it is decided."""
    before = seen.accounted
    count = int(part.valid.sum())
    failure: list[BaseException] = []
    reports: list[ReplayReport] = []

    def send() -> None:
        try:
            reports.append(replay(table_records(part, settings.topics), settings, pacing=Pacing(rate=rate)))
        except BaseException as error:  # noqa: BLE001 - raised again below
            failure.append(error)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    _wait_for(seen, before, count, process, advance, failure)
    thread.join(timeout=_STALL_SECONDS)
    if not reports:
        raise BrokerError("not all records were sent in time")
    return reports[0]


def _wait_for_alerts(seen: _Seen) -> None:
    """Alerts are acknowledged with their decisions, but come through another fetch."""
    count = -1
    while count != len(seen.alerts):
        count = len(seen.alerts)
        time.sleep(0.3)


def _result(
    table: TransactionTable,
    unseen: TransactionTable,
    seen: _Seen,
    sent: int,
    throughput: float,
    alerts_before: int,
    unseen_started: float,
    rate: float,
) -> DemoResult:
    names = unseen.transaction_id[unseen.valid].tolist()
    position = {name: index for index, name in enumerate(names)}
    recent = seen.alerts[alerts_before:]
    delays = [
        (arrived - unseen_started - position[alert["transaction_id"]] / rate) * 1000
        for arrived, alert in recent
        if alert["transaction_id"] in position
    ]
    levels: dict[str, int] = {"HIGH": 0, "MEDIUM": 0, "LOW": 0}
    for _, alert in recent:
        levels[alert["risk_level"]] += 1
    valid_names = table.transaction_id[table.valid].tolist()
    return DemoResult(
        transactions=sent,
        unseen=len(names),
        scored=len(seen.verdicts),
        alerts=len({alert["alert_id"] for _, alert in seen.alerts}),
        alerts_by_level=levels,
        dead_letters=seen.dead_letters,
        lost=max(0, len(set(valid_names) - seen.decided) - seen.dead_letters),
        duplicates=seen.duplicates,
        throughput=throughput,
        latency=None if not delays else Latency(*np.percentile(delays, [50, 99, 99.9]).tolist()),
        metrics=_judge(unseen, names, seen),
        top=[alert for _, alert in sorted(recent, key=lambda item: -item[1]["risk_score"])[:5]],
    )


def _judge(unseen: TransactionTable, names: list[str], seen: _Seen) -> dict[str, Any]:
    """Return precision, recall, AUC and average precision of the unseen part's decisions."""
    if unseen.is_fraud is None:
        return {}
    labels: npt.NDArray[Any] = unseen.is_fraud[unseen.valid]
    known = [
        (int(label), *seen.verdicts[name])
        for name, label in zip(names, labels.tolist(), strict=True)
        if label >= 0 and name in seen.verdicts
    ]
    if not known:
        return {}
    truth, scores, predicted = (np.array(column) for column in zip(*known, strict=True))
    figures = binary_metrics(truth, scores.astype(np.float64), 0.5)
    hits = int(((truth == 1) & (predicted == 1)).sum())
    return figures | {
        "precision": hits / max(1, int(predicted.sum())),
        "recall": hits / max(1, int(truth.sum())),
    }
