"""Runs a single contestant for a round: starts it on a filled topic, measures it from outside, stops it."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from stream.errors import RiskStreamError
from stream.runtime.cpu_affinity import unpinned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from stream.settings import Settings

__all__ = ["ROOT", "Child", "Rate", "measure", "spawn", "worker", "workers"]

ROOT: Final = Path(__file__).resolve().parent.parent
_POLL_SECONDS: Final = 0.1
_PATIENCE_SECONDS: Final = 180.0
_STOP_SECONDS: Final = 8.0
_ADDRESS: Final = re.compile(r"metrics, health and readiness on (http://\S+)")


@dataclass(frozen=True, slots=True)
class Rate:
    """What one round gave.

    Attributes
    ----------
    transactions, seconds:
        Of the measured part.
    cpu_seconds:
        Of the contestant's processes in it, user and system.
    rss_mib:
        Resident memory at its end.
    alert_share:
        Alerts for each decision, as far as it got: about the same in all, or they do not do the same work.
    """

    transactions: int
    seconds: float
    cpu_seconds: float
    rss_mib: float
    alert_share: float = math.nan

    @property
    def per_second(self) -> float:
        """Return transactions a second."""
        return self.transactions / self.seconds

    @property
    def cpu_micros(self) -> float:
        """Return microseconds of processor time a transaction."""
        return 1e6 * self.cpu_seconds / self.transactions


class Child:
    """A contestant's process, or several that share the work."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log_path = log

    def check(self) -> None:
        """Raise where it has ended.

        Raises
        ------
        RiskStreamError
            With its last words.
        """
        if self.process.poll() is not None:
            last = self.log.strip().splitlines()[-3:]
            raise RiskStreamError(
                f"{self.log_path.stem} exited with status {self.process.returncode}: {' | '.join(last)}"
            )

    @property
    def log(self) -> str:
        """Return what it has printed."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    @property
    def address(self) -> str | None:
        """Return the address of a worker's endpoint, once it has one."""
        found = _ADDRESS.search(self.log)
        return None if found is None else found.group(1)

    def wait_ready(self) -> None:
        """Return once a worker takes transactions."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            self.check()
            with contextlib.suppress(urllib.error.URLError, OSError):
                if self.address and urllib.request.urlopen(f"{self.address}/readyz", timeout=5).status == 200:  # noqa: S310, PLR2004
                    return
            time.sleep(0.05)
        raise RiskStreamError(f"not ready after {_PATIENCE_SECONDS:.0f} s; see {self.log_path}")

    def metric(self, name: str) -> float:
        """Return the sum of a worker's metric over its labels, 0 where there is none yet."""
        return sum(self.metrics(name).values())

    def metrics(self, name: str) -> dict[str, float]:
        """Return a worker's metric by its labels, as Prometheus writes them: ``kind="note"``."""
        if self.address is None:
            return {}
        try:
            with urllib.request.urlopen(f"{self.address}/metrics", timeout=5) as answer:  # noqa: S310
                text = answer.read().decode()
        except (urllib.error.URLError, OSError):
            return {}
        lines = re.findall(rf"^{name}(?:{{([^}}]*)}})? (\S+)$", text, re.MULTILINE)
        return {labels: float(value) for labels, value in lines}

    def cpu_seconds(self) -> float:
        """Return the processor time of the process and its children so far."""
        return sum(times.user + times.system for item in self._family() for times in [item.cpu_times()])

    def rss_mib(self) -> float:
        """Return the resident memory of the process and its children."""
        return sum(item.memory_info().rss for item in self._family()) / 2**20

    def _family(self) -> list[psutil.Process]:
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def stop(self) -> None:
        """End it: SIGTERM, a bounded wait, SIGKILL."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextmanager
def spawn(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[Child]:
    """Run a command in the checkout, in a session of its own, on whichever core it likes."""
    with log.open("wb") as output, unpinned():
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    child = Child(process, log)
    try:
        yield child
    finally:
        child.stop()


@contextmanager
def worker(settings: Settings, log: Path) -> Iterator[Child]:
    """Run ``riskstream worker`` with these settings and no others."""
    command = [sys.executable, "-c", "from stream.cli import main; main()", "worker"]
    with spawn(command, settings.child_environment(), log) as child:
        yield child


@contextmanager
def workers(settings: Settings, folder: Path, count: int) -> Iterator[list[Child]]:
    """Run so many workers of one group, each with its own state; yields them once they share the partitions.

    They share the cores too.

    Raises
    ------
    RiskStreamError
        One has ended, or they do not come to share them.
    """
    share = settings.topics.partitions / count
    with contextlib.ExitStack() as stack:
        children = []
        for number in range(count):
            own = settings.model_copy(update={"state_dir": settings.state_dir / str(number), "core": None})
            children.append(stack.enter_context(worker(own, folder / f"worker-{number}.log")))
        for child in children:
            child.wait_ready()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not all(
            child.metric("riskstream_assigned_partitions") == share and child.metric("riskstream_ready")
            for child in children
        ):
            for child in children:
                child.check()
            if time.monotonic() > deadline:
                raise RiskStreamError(f"{count} workers do not share the partitions; see {folder}")
            time.sleep(_POLL_SECONDS)
        yield children


def measure(
    children: Sequence[Child], count: Callable[[], int], total: int, *, most_seconds: float = 10.0
) -> Rate:
    """Measure from a tenth of ``total`` to nine tenths, or for ``most_seconds`` where that is sooner.

    Parameters
    ----------
    count
        How many transactions are done.

    A contestant that needs more than two seconds for the first tenth is warm by then: its part begins there.
    """
    started = time.monotonic()
    first_seen: float | None = None
    begun: tuple[float, int, float] | None = None
    while time.monotonic() - started < _PATIENCE_SECONDS:
        for child in children:
            child.check()
        done, now = count(), time.monotonic()
        if done and first_seen is None:
            first_seen = now
        if begun is None:
            if first_seen is not None and (done >= total / 10 or now - first_seen > 2):  # noqa: PLR2004
                begun = now, done, sum(child.cpu_seconds() for child in children)
        elif done >= 0.9 * total or now - begun[0] >= most_seconds:
            cpu = sum(child.cpu_seconds() for child in children) - begun[2]
            rss = sum(child.rss_mib() for child in children)
            return Rate(done - begun[1], now - begun[0], cpu, rss)
        time.sleep(_POLL_SECONDS)
    raise RiskStreamError(
        f"no output from {children[0].log_path.stem} in {_PATIENCE_SECONDS:.0f} s; see {children[0].log_path}"
    )
