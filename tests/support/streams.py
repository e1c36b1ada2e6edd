"""A deployment for one test: its own topics, state folder and workers, each a real process."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
import psutil
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from stream.kafka import admin
from stream.kafka.clients import client_config
from support.helpers import PATIENCE_SECONDS, settings_for, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from stream.kafka.local.base import Broker
    from stream.settings import Settings

COMMAND = [sys.executable, "-c", "from stream.cli import main; main()", "worker"]
_ADDRESS = re.compile(r"metrics, health and readiness on (http://[\w.:]+)")

#: A source record's partition and offset.
Position = tuple[int, int]


class Sent(NamedTuple):
    """A record to produce."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


class Found(NamedTuple):
    """A record read back."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]

    @property
    def json(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.value or b"")
        return parsed

    def header(self, name: str) -> str:
        (value,) = [value for found, value in self.headers if found == name]
        return value.decode()


class Worker:
    """``riskstream worker`` as a child process."""

    def __init__(self, settings: Settings, log: Path, variables: dict[str, str] | None = None) -> None:
        self.log_path = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                COMMAND,
                env=variables or settings.child_environment(),
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        self._address = ""

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def wait_ready(self) -> None:
        """Return once it takes transactions; fail with its log where it ends instead."""

        def ready() -> bool:
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log}"
            return self.status("/readyz") == 200

        wait_until(ready, f"the worker is not ready:\n{self.log}")

    @property
    def address(self) -> str:
        if not self._address and (found := _ADDRESS.search(self.log)):
            self._address = found.group(1)
        return self._address

    def status(self, path: str) -> int:
        """Return the HTTP status of a path, 0 where nothing answers."""
        if not self.address:
            return 0
        try:
            with urllib.request.urlopen(self.address + path, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        return sum(self.metrics(name).values())

    def metrics(self, name: str) -> dict[str, float]:
        """Return a metric's values by its labels, as Prometheus writes them."""
        with urllib.request.urlopen(self.address + "/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        matches = (re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line) for line in lines)
        return {match[1] or "": float(match[2]) for match in matches if match}

    def stop(self) -> int:
        """End it with SIGTERM; returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_SECONDS)

    def tell(self) -> str:
        """Return the log, where it stands last, if it runs."""
        if self.process.poll() is None:
            said = self.log.count("status on request")
            self.process.send_signal(signal.SIGUSR1)
            wait_until(lambda: self.log.count("status on request") > said, "it does not say where it stands")
        return self.log

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def wait_end(self) -> int:
        return self.process.wait(PATIENCE_SECONDS)


class Stream:
    """Topics of its own on a shared broker, and the workers that serve them."""

    def __init__(self, broker: Broker, folder: Path, bundle: Path, **overrides: Any) -> None:
        overrides.setdefault("decisions", {"features": True})
        self.settings = settings_for(broker, state_dir=folder / "state", bundle=bundle, **overrides)
        self.folder = folder
        self.workers: list[Worker] = []
        self.sent: dict[Position, Sent] = {}
        self._kafka = client_config(self.settings.kafka)
        self._found: dict[str, list[Found]] = {}
        self._readers: dict[str, KafkaConsumer] = {}
        self._answered: set[Position] = set()
        self._looked_at: dict[str, int] = {}
        admin.create_topics(self.settings)
        self._producer = KafkaProducer(**self._kafka, acks="all", max_request_size=8_000_000, linger_ms=5)

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        self._producer.close()
        for reader in self._readers.values():
            reader.close()

    def start(self, settings: Settings | None = None, *, ready: bool = True) -> Worker:
        worker = Worker(settings or self.settings, self.folder / f"worker-{len(self.workers)}.log")
        self.workers.append(worker)
        if ready:
            worker.wait_ready()
        return worker

    def produce(self, records: Iterable[Sent]) -> list[Position]:
        """Produce, wait for the acknowledgements, and return where the records lie."""
        records = list(records)
        topic = self.settings.topics.transactions
        futures = [
            self._producer.send(topic, key=record.key, value=record.value, headers=list(record.headers))
            for record in records
        ]
        self._producer.flush(PATIENCE_SECONDS)
        results = [future.get(PATIENCE_SECONDS) for future in futures]
        places = [(result.partition, result.offset) for result in results]
        self.sent |= dict(zip(places, records, strict=True))
        return places

    def send(self, topic: str, value: bytes, partition: int = 0) -> None:
        """Produce one record of any topic, and wait for the acknowledgement."""
        self._producer.send(topic, value=value, partition=partition).get(PATIENCE_SECONDS)

    def produce_labels(self, records: Iterable[Sent]) -> None:
        """Produce labels, and wait for the acknowledgements."""
        topic = self.settings.topics.labels
        futures = [self._producer.send(topic, key=record.key, value=record.value) for record in records]
        self._producer.flush(PATIENCE_SECONDS)
        for future in futures:
            future.get(PATIENCE_SECONDS)

    def read(self, name: str) -> list[Found]:
        """Return every record of a topic so far (``alerts``, ``decisions``, ``dead_letters``)."""
        topic = getattr(self.settings.topics, name)
        found = self._found.setdefault(name, [])
        reader = self._readers.get(name)
        if reader is None:
            reader = self._readers[name] = KafkaConsumer(
                **self._kafka, enable_auto_commit=False, auto_offset_reset="earliest"
            )
            reader.assign([TopicPartition(topic, at) for at in range(self.settings.topics.partitions)])
        while True:
            ends = reader.end_offsets(list(reader.assignment()))
            batches = reader.poll(timeout_ms=100)
            for batch in batches.values():
                found += [
                    Found(
                        record.partition,
                        record.offset,
                        record.key,
                        record.value,
                        tuple((header, value) for header, value in record.headers),
                    )
                    for record in batch
                ]
            if not batches and all(reader.position(partition) >= end for partition, end in ends.items()):
                return found

    def answered(self) -> set[Position]:
        """Return the source positions with a decision or a dead letter, so far."""
        for name, place in (("decisions", _decided), ("dead_letters", _refused)):
            found = self.read(name)
            self._answered |= {place(record) for record in found[self._looked_at.get(name, 0) :]}
            self._looked_at[name] = len(found)
        return self._answered

    def wait_answered(self, places: Iterable[Position] | None = None) -> None:
        """Return once every record sent (or those at ``places``) has a decision or is a dead letter."""
        wanted = set(self.sent if places is None else places)

        def done() -> bool:
            for worker in self.workers:
                assert worker.process.poll() in {None, 0, -signal.SIGKILL}, worker.log
            return wanted <= self.answered()

        try:
            wait_until(done, "not every record was answered", 2 * PATIENCE_SECONDS)
        except AssertionError as error:
            logs = [worker.tell() for worker in self.workers]
            open_now = sorted(wanted - self.answered())[:20]
            raise AssertionError("\n".join([f"{error}: {open_now} of {len(wanted)}", *logs])) from error

    def decisions(self) -> dict[Position, list[dict[str, Any]]]:
        """Return every delivery of every decision, by the source record's position."""
        found: dict[Position, list[dict[str, Any]]] = {}
        for record in self.read("decisions"):
            body = record.json
            found.setdefault((body["source_partition"], body["source_offset"]), []).append(body)
        return found


def _decided(record: Found) -> Position:
    body = record.json
    return body["source_partition"], body["source_offset"]


def _refused(record: Found) -> Position:
    return int(record.header("__streams.errors.partition")), int(record.header("__streams.errors.offset"))


def readable_line(worker: Worker) -> str:
    """Return the one line in which a worker says why it ended; fail where it says more or less."""
    log = worker.log
    assert "Traceback" not in log, log
    lines = [line for line in log.splitlines() if line.startswith("riskstream:") or "fatal:" in line]
    assert len(lines) == 1, log
    return lines[0]


def children_of(pid: int) -> set[int]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return {child.pid for child in psutil.Process(pid).children(recursive=True)}
    return set()


def until(condition: Callable[[], object], what: str) -> None:
    wait_until(condition, what, 2 * PATIENCE_SECONDS)


def sent(value: dict[str, Any]) -> Sent:
    """Return a transaction or a label as a record of its user."""
    return Sent(value["user_id"].encode(), orjson.dumps(value))


def labels_arrived(workers: Iterable[Worker], labels: int) -> bool:
    """Say whether so many labels are known to these workers, and none on its way from one stage to the next."""
    counted: Counter[tuple[str, str]] = Counter()
    for worker in workers:
        for name, value in worker.metrics("riskstream_entity_join_events_total").items():
            kind, outcome = re.findall('"(.*?)"', name)
            counted[kind, outcome] += int(value)
    notes = sum(
        count for (kind, outcome), count in counted.items() if kind == "label_update" and outcome != "sent"
    )
    return notes == counted["label_update", "sent"] and labels == sum(
        count for (kind, _), count in counted.items() if kind == "label"
    )
