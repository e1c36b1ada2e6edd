"""One deployment under chaos: its topics, its workers and who looks after them, its load."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from kafka import KafkaAdminClient, KafkaProducer
from kafka.errors import KafkaError

from chaos.checker import Checker
from chaos.traffic import Traffic
from stream.kafka import admin
from stream.kafka.clients import client_config
from stream.kafka.local import _guard
from stream.runtime.fault_injection import FAULT_VARIABLE
from support.helpers import PATIENCE_SECONDS, settings_for
from support.profiles import PROFILES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from chaos.traffic import Sent
    from stream.kafka.local.base import Broker

__all__ = ["ChaosError", "Deployment", "Pump", "Slot"]

#: Through the guard, so that no worker outlives this process, however it ends.
COMMAND = [
    sys.executable, "-I", "-S", _guard.__file__, str(os.getpid()),
    sys.executable, "-c", "from stream.cli import main; main()", "worker",
]  # fmt: skip

#: Only a hang meets it: a broker's restart, several rebalances and a restore lie within.
HANG_SECONDS = 2 * PATIENCE_SECONDS

#: A worker that says more than this in a second floods its log.
MOST_LINES_A_SECOND = 100

_ADDRESS = re.compile(r"metrics, health and readiness on (http://\S+)")
_GIVEN_UP = "another worker has taken"
_LAST_WORDS = re.compile(r"^riskstream: |fatal: ")


class ChaosError(AssertionError):
    """A worker did what none may do: hung, flooded its log, died without a word or with too many."""


@dataclass(slots=True)
class Slot:
    """A place for a worker, with a state folder of its own; the supervisor keeps it filled while wanted."""

    number: int
    state_dir: Path
    log_folder: Path
    process: subprocess.Popen[bytes] | None = None
    log_path: Path = Path()
    wanted: bool = False
    #: Whether this life has a fault of its own to end it.
    doomed: bool = False
    lives: int = 0
    #: What it said at its ends that nobody asked for.
    last_words: list[str] = field(default_factory=list)
    _address: str = ""
    _lines: int = 0
    _looked_at: float = 0.0

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.lives else ""

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def stopped(self) -> bool:
        """Whether a SIGSTOP holds it."""
        return self.alive and psutil.Process(self.pid).status() == psutil.STATUS_STOPPED

    def begin(self, variables: Mapping[str, str], *, doomed: bool = False) -> None:
        self.lives += 1
        self.wanted, self.doomed = True, doomed
        self._address, self._lines, self._looked_at = "", 0, time.monotonic()
        self.log_path = self.log_folder / f"worker-{self.number}-{self.lives}.log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                COMMAND,
                env=dict(variables),
                cwd=self.log_folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def ready(self) -> bool:
        """Whether it says that it takes transactions."""
        if not self._address:
            found = _ADDRESS.search(self.log)
            self._address = found.group(1) if found else ""
        if not self._address:
            return False
        try:
            with urllib.request.urlopen(self._address + "/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def check_log(self) -> None:
        """Fail where the log has a stack trace or grows too fast."""
        now = time.monotonic()
        if now - self._looked_at < 1.0 or not self.lives:
            return
        log = self.log
        lines = log.count("\n")
        rate = (lines - self._lines) / (now - self._looked_at)
        # The first second has the settings, a line each.
        if self._lines and rate > MOST_LINES_A_SECOND:
            raise ChaosError(f"worker {self.number} floods its log, {rate:.0f} lines a second: {log[-2000:]}")
        if "Traceback (most recent call last)" in log:
            raise ChaosError(f"worker {self.number} shows a stack trace: {log[-3000:]}")
        self._lines, self._looked_at = lines, now

    def check_end(self, *, may_end: bool, several: bool = False) -> None:
        """Fail where a worker ended in a way that none may end in.

        One of several may have been given up: on a machine with too much to do it is late for a rebalance, and
        ends as it promises to.
        """
        assert self.process is not None
        status, log = self.process.returncode, self.log
        if "Traceback (most recent call last)" in log:
            raise ChaosError(f"worker {self.number} shows a stack trace: {log[-3000:]}")
        if self.doomed and status in {0, -signal.SIGKILL}:
            return
        words = [line for line in log.splitlines() if _LAST_WORDS.search(line)]
        if status <= 0 or len(words) != 1:
            raise ChaosError(f"worker {self.number} ended with {status} and said {words}: {log[-2000:]}")
        self.last_words.append(words[0])
        if not (may_end or (several and _GIVEN_UP in words[0])):
            raise ChaosError(f"worker {self.number} ended where it had no reason to: {words[0]}")


class Pump(threading.Thread):
    """The load: bursts of the deployment's traffic, until stopped; slow once the round has its share."""

    def __init__(self, deployment: Deployment, rng: random.Random, share: int) -> None:
        super().__init__(daemon=True)
        self._deployment = deployment
        self._rng = random.Random(rng.random())
        self._share = share
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._acknowledged: dict[int, int] = {}
        self.sent = 0
        self.error: BaseException | None = None

    def marks(self) -> dict[int, int]:
        """Return the last acknowledged offset of every partition."""
        with self._lock:
            return dict(self._acknowledged)

    def run(self) -> None:
        try:
            while not self._end.is_set():
                fast = self.sent < self._share
                self._burst(self._rng.choice([1, 10, 40, 100]) if fast else 10)
                self._end.wait(self._rng.uniform(0.005, 0.05) if fast else 0.1)
        except BaseException as error:  # noqa: BLE001 - the round's thread raises it
            self.error = error

    def stop(self) -> None:
        """End, once everything is acknowledged."""
        self._end.set()
        self.join(HANG_SECONDS)
        if self.error is None:
            self._deployment.producer.flush(HANG_SECONDS)
        else:
            raise self.error

    def _burst(self, count: int) -> None:
        for record in self._deployment.traffic.take(count):
            future = self._deployment.send(record)
            if record.topic == "transactions":
                future.add_callback(self._acknowledge)
                self.sent += 1

    def _acknowledge(self, where: Any) -> None:
        with self._lock:
            known = self._acknowledged.get(where.partition, -1)
            self._acknowledged[where.partition] = max(known, where.offset)


class Deployment:
    """Topics of its own, workers in slots, and a checker that follows them.

    Parameters
    ----------
    profiled
        Whether the bundle's model has profiles, those of :mod:`profiles`: then there are labels.
    """

    def __init__(
        self,
        broker: Broker,
        folder: Path,
        bundle: Path,
        seed: str,
        *,
        profiled: bool = False,
        **overrides: Any,
    ) -> None:
        folder.mkdir(parents=True)
        overrides.setdefault("decisions", {"features": True})
        # Small rounds, so that a fault finds many different moments.
        overrides.setdefault("kafka", {"max_poll_records": 60})
        self.broker = broker
        self.folder = folder
        self.settings = settings_for(broker, state_dir=folder / "state-0", bundle=bundle, **overrides)
        self.profiled = profiled
        self.traffic = Traffic(seed, profiled=profiled)
        self.slots: list[Slot] = []
        self.may_end = False
        self._kafka = client_config(self.settings.kafka)
        admin.create_topics(self.settings)
        self.checker = Checker(self.settings, PROFILES if profiled else ())
        self.producer = KafkaProducer(
            **self._kafka, acks="all", linger_ms=5, delivery_timeout_ms=int(HANG_SECONDS * 1000)
        )

    def close(self) -> None:
        for slot in self.slots:
            slot.wanted = False
            slot.kill()
        self.producer.close(timeout=5)
        self.checker.close()

    def send(self, record: Sent) -> Any:
        """Produce a record to its topic; returns the future of its acknowledgement."""
        topic = getattr(self.settings.topics, record.topic)
        return self.producer.send(topic, key=record.key, value=record.value, headers=list(record.headers))

    # --- workers -----------------------------------------------------------------------------------

    def slot(self, number: int) -> Slot:
        while len(self.slots) <= number:
            at = len(self.slots)
            self.slots.append(Slot(at, self.folder / f"state-{at}", self.folder))
        return self.slots[number]

    def start(
        self,
        number: int,
        *,
        order: str | None = None,
        state_dir: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> Slot:
        """Start a worker in a slot; ``order`` is its fault, see :mod:`stream.runtime.fault_injection`."""
        slot = self.slot(number)
        assert not slot.alive
        if state_dir is not None:
            slot.state_dir = state_dir
        environment = self.settings.model_copy(update={"state_dir": slot.state_dir}).child_environment()
        environment |= dict(variables or {})
        if order is not None:
            environment[FAULT_VARIABLE] = order
        slot.begin(environment, doomed=order is not None and not order.startswith("SIGSTOP"))
        return slot

    def stop(self, numbers: Iterable[int]) -> None:
        """End workers with SIGTERM, one and all of them in bounded time and with status 0."""
        slots = [self.slot(number) for number in numbers if self.slot(number).alive]
        for slot in slots:
            slot.wanted = False
            slot.signal(signal.SIGTERM)
        for slot in slots:
            self.wait_end(slot)
            assert slot.process is not None
            # Python itself was not up yet, so nothing could be asked to end in order.
            too_early = slot.process.returncode == -signal.SIGTERM and not slot.log
            if slot.process.returncode != 0 and not too_early:
                slot.check_end(may_end=True)  # one that was given up before ends by itself, with a line
            slot.check_log()

    def wait_end(self, slot: Slot) -> None:
        assert slot.process is not None
        try:
            slot.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            raise ChaosError(f"worker {slot.number} hangs: {slot.log[-2000:]}") from None

    def supervise(self) -> None:
        """Start every wanted worker again that has ended, if it ended as it may."""
        for slot in self.slots:
            slot.check_log()
            if slot.wanted and not slot.alive:
                several = sum(other.wanted for other in self.slots) > 1
                slot.check_end(may_end=self.may_end, several=several)
                self.start(slot.number)

    def arrange(self, count: int, *, orders: Mapping[int, str] | None = None) -> None:
        """See that exactly ``count`` workers run and are ready, those with orders newly started with them."""
        orders = orders or {}
        self.stop([slot.number for slot in self.slots if slot.number >= count or slot.number in orders])
        for number in range(count):
            if not self.slot(number).alive:
                self.start(number, order=orders.get(number))
        self.wait(
            lambda: all(self.slot(number).ready() for number in range(count)),
            "not every worker is ready",
            supervise=not orders,
        )

    def settled(self) -> bool:
        """Whether every wanted worker is ready, and the group is of them and of nobody else.

        One that was given up and woke again looks ready until it learns of it; a member it is only once it has
        joined anew, with nothing of its former life under way.
        """
        wanted = [slot for slot in self.slots if slot.wanted]
        if not all(slot.alive and slot.ready() for slot in wanted):
            return False
        client = KafkaAdminClient(**self._kafka)
        try:
            group = client.describe_groups([self.settings.app_id])[self.settings.app_id]
        except KafkaError:
            return False
        finally:
            client.close()
        return not wanted or (group["group_state"] == "Stable" and len(group["members"]) == len(wanted))

    def wait(
        self,
        condition: Callable[[], object],
        what: str,
        *,
        supervise: bool = True,
        timeout_seconds: float = HANG_SECONDS,
    ) -> None:
        """Return once ``condition()`` is true; meanwhile look after the workers."""
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            if supervise:
                self.supervise()
            if time.monotonic() > deadline:
                for slot in self.slots:
                    if slot.alive:
                        slot.signal(signal.SIGUSR1)  # where does it stand?
                time.sleep(1)
                logs = "\n".join(
                    f"--- worker {slot.number}\n{slot.log[-6000:]}" for slot in self.slots if slot.wanted
                )
                raise ChaosError(f"waited {timeout_seconds:g} s in vain: {what}\n{logs}")
            time.sleep(0.02)
