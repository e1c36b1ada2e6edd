"""The faults: what each does to a deployment under load, and what it takes to recover.

A fault gets a :class:`Round` whose load is running. It does its harm, calls :meth:`Round.strike` at the
moment of it, and undoes what an operator would have to undo. The supervisor starts ended workers again.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from chaos.deployment import ChaosError, Pump
from stream.kafka.clients import client_config
from stream.kafka.topics import changelog_topic
from stream.runtime.fault_injection import STEPS

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from chaos.deployment import Deployment, Slot

__all__ = ["FAULTS", "KNOWN", "Fault", "Round"]

#: Steps at which a worker falls asleep and is given up.
_SLEEPS = ("decided", "requests_sent", "outputs_acked", "changelog_sent", "changelog_acked", "stored")

#: Steps that only come where the model has profiles.
_PROFILED = ("requests_sent",)

#: Faults that the product does not survive yet, by name, and why. They run, and do not fail the suite.
KNOWN: dict[str, str] = {}

#: Transactions that a round sends fast; beyond them the load goes on slowly until the round is over.
SHARE = 1_500

#: Why a fault is left out where the tests do not run as root.
NEEDS_ROOT = "mounting a tmpfs needs root"

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


@dataclass(slots=True)
class Round:
    """A round under way: the deployment, the load, and when the fault struck."""

    deployment: Deployment
    rng: random.Random
    pump: Pump
    #: When the fault struck that is not recovered from yet.
    struck: float | None = None
    #: By partition, the last offset before it struck.
    marks: dict[int, int] = field(default_factory=dict)
    recoveries_seconds: list[float] = field(default_factory=list)
    may_be_damaged: bool = False
    #: Called at the end of the round, whatever came.
    undo: list[Callable[[], None]] = field(default_factory=list)

    def wait(self, condition: Callable[[], object], what: str, *, supervise: bool = True) -> None:
        """Return once ``condition()`` is true; meanwhile look after the workers and for recovery."""

        def met() -> bool:
            if self.pump.error is not None:
                raise self.pump.error
            self._look()
            return bool(condition())

        self.deployment.wait(met, what, supervise=supervise)

    def wait_for_progress(self) -> None:
        """Return at a seeded point of the load: after so many more answers."""
        checker = self.deployment.checker
        wanted = checker.answered() + self.rng.randrange(40, 600)
        self.wait(lambda: checker.answered() >= wanted, "no answers before the fault")

    def strike(self) -> None:
        """Say that the fault is there: recovery counts from now, or from an earlier one still open."""
        if self.struck is None:
            self.struck = time.monotonic()
            self.marks = self.pump.marks()

    @property
    def recovered(self) -> bool:
        """Whether every partition has an answer to a record that was sent after the fault."""
        self._look()
        return self.struck is None

    def _look(self) -> None:
        if self.struck is not None and self.deployment.checker.answered_beyond(self.marks):
            self.recoveries_seconds.append(time.monotonic() - self.struck)
            self.struck = None

    def wait_recovered(self) -> None:
        """Return once the fault is recovered from."""
        self.wait(lambda: self.recovered, "not every partition goes on after the fault")

    def wait_dead(self, slot: Slot) -> None:
        """Return once a doomed worker has ended, having checked what it had committed by then."""
        self.wait(lambda: not slot.alive, f"the fault of worker {slot.number} did not come", supervise=False)
        self.strike()
        self.check_commits()

    def restore(self) -> None:
        """Undo what the fault left, the last first."""
        while self.undo:
            self.undo.pop()()

    def check_commits(self) -> None:
        """Compare commits with effects while nobody works, so that nothing is made good meanwhile."""
        if not any(slot.alive for slot in self.deployment.slots):
            findings = self.deployment.checker.check_commits()
            if findings:
                raise ChaosError(f"committed offsets are ahead of effects:\n{findings}")


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault.

    Attributes
    ----------
    workers:
        How many run when it comes; from so many to so many.
    order:
        The signal and step of a worker that brings it about itself.
    may_end:
        Whether workers may end by themselves meanwhile, each with one readable line.
    profiled:
        Whether it only comes where the model has profiles.
    lacks:
        Returns what this machine lacks for it, or None.
    """

    name: str
    inject: Callable[[Round], None]
    workers: tuple[int, int] = (1, 1)
    order: tuple[str, str] | None = None
    may_end: bool = False
    profiled: bool = False
    lacks: Callable[[], str | None] = lambda: None

    def orders(self, rng: random.Random) -> dict[int, str]:
        """Return the order of the round's first worker, if it has one."""
        if self.order is None:
            return {}
        number, step = self.order
        return {0: f"{number}@{step}:{rng.randrange(1, 4 if step == 'committed' else 16)}"}


# --- signals -------------------------------------------------------------------------------------------


def _ends_itself(now: Round) -> None:
    now.wait_dead(now.deployment.slot(0))


def _end_one(number: signal.Signals) -> Callable[[Round], None]:
    """End one of the workers from outside, at any moment."""

    def inject(now: Round) -> None:
        now.wait_for_progress()
        slot = now.rng.choice([slot for slot in now.deployment.slots if slot.wanted])
        slot.doomed = True
        slot.signal(number)
        now.wait_dead(slot)

    return inject


def _sleep(now: Round) -> None:
    """Hold a worker beyond its session, until another has taken over, and let it go on."""
    slot = now.deployment.slot(0)
    now.wait(lambda: slot.stopped, "the worker did not stop itself", supervise=False)
    _wake_later(now, slot)


def _stop(now: Round) -> None:
    now.wait_for_progress()
    slot = now.deployment.slot(0)
    slot.signal(signal.SIGSTOP)
    _wake_later(now, slot)


def _wake_later(now: Round, slot: Slot) -> None:
    now.undo.append(lambda: slot.signal(signal.SIGCONT) if slot.alive else None)
    now.strike()
    now.wait_recovered()  # the other worker has the partitions
    slot.signal(signal.SIGCONT)
    # What it does now, it does as a worker that has been given up; let it see load from there.
    before = now.deployment.checker.answered()
    now.wait(lambda: now.deployment.checker.answered() > before + 200, "no answers after waking")


# --- workers come and go -------------------------------------------------------------------------------


def _join(now: Round) -> None:
    now.wait_for_progress()
    number = len([slot for slot in now.deployment.slots if slot.wanted])
    now.strike()
    slot = now.deployment.start(number)
    now.wait(slot.ready, "the new worker is not ready")


def _leave(now: Round) -> None:
    now.wait_for_progress()
    slot = now.rng.choice([slot for slot in now.deployment.slots if slot.wanted])
    now.strike()
    now.deployment.stop([slot.number])


def _roll(now: Round) -> None:
    now.wait_for_progress()
    for slot in [slot for slot in now.deployment.slots if slot.wanted]:
        now.strike()
        now.deployment.stop([slot.number])
        started = now.deployment.start(slot.number)
        now.wait(started.ready, "a restarted worker is not ready")


# --- state folders -------------------------------------------------------------------------------------


def _end_for_good(now: Round) -> Slot:
    """End the worker in one of the two ways, and keep the supervisor from starting it again."""
    now.wait_for_progress()
    slot = now.deployment.slot(0)
    slot.wanted = False
    if now.rng.random() < 0.5:
        slot.kill()
    else:
        now.deployment.stop([0])
    now.strike()
    now.check_commits()
    return slot


def _delete_state(now: Round) -> None:
    slot = _end_for_good(now)
    shutil.rmtree(slot.state_dir)
    now.deployment.start(0)


def _corrupt_state(now: Round) -> None:
    """Damage files of the store; where the worker says that it cannot go on, do what its operator would."""
    slot = _end_for_good(now)
    files = [path for path in slot.state_dir.rglob("*.db/*") if path.name != "LOCK" and path.stat().st_size]
    for path in now.rng.sample(files, min(len(files), now.rng.randrange(1, 4))):
        _damage(path, now.rng)
    now.may_be_damaged = True
    now.deployment.start(0)
    lives = slot.lives

    def recovered() -> bool:
        if not slot.alive or slot.lives > lives:
            slot.check_end(may_end=True)
            slot.kill()
            shutil.rmtree(slot.state_dir)
            now.deployment.start(0)
            return True
        return now.recovered

    now.wait(recovered, "neither progress nor an end after damage", supervise=False)


def _damage(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if rng.random() < 0.3:
        path.write_bytes(content[: rng.randrange(len(content))])
        return
    for _ in range(rng.randrange(1, 20)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


# --- the broker ----------------------------------------------------------------------------------------


def _kill_broker(now: Round) -> None:
    now.wait_for_progress()
    broker = now.deployment.broker
    broker.kill()
    now.strike()
    pause = time.monotonic() + now.rng.uniform(0, 8)
    now.wait(lambda: time.monotonic() > pause, "")
    broker.start()


def _pause_broker(now: Round) -> None:
    now.wait_for_progress()
    broker = now.deployment.broker
    os.kill(broker.pid, signal.SIGSTOP)
    now.undo.append(lambda: os.kill(broker.pid, signal.SIGCONT))
    now.strike()
    pause = time.monotonic() + now.deployment.settings.kafka.session_timeout_seconds + now.rng.uniform(1, 6)
    now.wait(lambda: time.monotonic() > pause, "")
    os.kill(broker.pid, signal.SIGCONT)


def _alter(now: Round, topic: str, configs: dict[str, str | None]) -> None:
    changes: dict[str, Any] = {
        name: ("DELETE", None) if value is None else value for name, value in configs.items()
    }
    client = KafkaAdminClient(**client_config(now.deployment.settings.kafka))
    try:
        client.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=changes)])
    finally:
        client.close()


def _compact(now: Round) -> None:
    """Have the changelog compacted under load, then restore a lost state folder from what is left."""
    deployment = now.deployment
    topic = changelog_topic(deployment.settings)
    often = {"segment.ms": "500", "min.cleanable.dirty.ratio": "0.01", "max.compaction.lag.ms": "1000"}
    _alter(now, topic, dict(often))
    now.undo.append(lambda: _alter(now, topic, dict.fromkeys(often)))
    now.wait_for_progress()

    def compacted() -> bool:
        deployment.checker.follow(["changelog"])
        return deployment.checker.changelog_size() < deployment.checker.changelog_records * 0.8

    now.wait(compacted, "the changelog is not compacted")
    slot = _end_for_good(now)
    shutil.rmtree(slot.state_dir)
    deployment.start(0)


def _unwritable(name: str) -> Callable[[Round], None]:
    def inject(now: Round) -> None:
        now.wait_for_progress()
        topic = getattr(now.deployment.settings.topics, name)
        _alter(now, topic, {"max.message.bytes": "70"})
        now.undo.append(lambda: _alter(now, topic, {"max.message.bytes": None}))
        now.strike()
        slot = now.deployment.slot(0)
        ends = len(slot.last_words) + now.rng.randrange(1, 3)
        now.wait(
            lambda: len(slot.last_words) >= ends, f"the worker goes on although {name} cannot be written"
        )
        now.undo.pop()()

    return inject


# --- disk and clock ------------------------------------------------------------------------------------


def _no_tmpfs() -> str | None:
    return None if os.geteuid() == 0 and shutil.which("mount") else NEEDS_ROOT


def _fill_disk(now: Round) -> None:
    """Let the state lie on a small file system that runs full, and make room again once the worker ended."""
    deployment = now.deployment
    disk = deployment.folder / f"disk-{deployment.slot(0).lives}"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], check=True)

    def unmount() -> None:
        slot = deployment.slot(0)
        slot.wanted = False
        slot.kill()
        slot.state_dir = deployment.folder / "state-0"
        subprocess.run(["umount", str(disk)], check=True)

    now.undo.append(unmount)
    deployment.stop([0])
    slot = deployment.start(0, state_dir=disk / "state")
    now.wait(slot.ready, "the worker on the small disk is not ready")
    now.wait_for_progress()
    ballast = disk / "ballast"
    ends = len(slot.last_words)
    now.strike()

    def ended() -> bool:
        if slot.alive:
            _fill(ballast)
        return len(slot.last_words) > ends

    now.wait(ended, "the worker goes on although the disk is full")
    ballast.unlink()


def _fill(path: Path) -> None:
    with path.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(65_536))
        except OSError:
            return


def _no_faketime() -> str | None:
    return None if FAKETIME.is_file() else "libfaketime is not installed"


def _jump(now: Round) -> None:
    """Let the worker's wall clock jump to and fro; its monotonic clock goes on as a real one does."""
    deployment = now.deployment
    clock = deployment.folder / "clock"
    clock.write_text("+0d\n", encoding="ascii")
    deployment.stop([0])
    slot = deployment.start(
        0,
        variables={
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        },
    )
    now.wait(slot.ready, "the worker with a clock of its own is not ready")
    now.undo.append(lambda: deployment.stop([0]))
    for _ in range(3):
        now.wait_for_progress()
        clock.write_text(
            now.rng.choice(["-40d", "-1h", "-5s", "+5s", "+2h", "+40d"]) + "\n", encoding="ascii"
        )
        now.strike()


def _all() -> list[Fault]:
    found = [
        Fault(f"{name} at {step}", _ends_itself, order=(name, step), profiled=step in _PROFILED)
        for name in ("SIGKILL", "SIGTERM")
        for step in STEPS
    ]
    found += [
        Fault(
            f"SIGSTOP at {step}", _sleep, workers=(2, 2), order=("SIGSTOP", step), may_end=True,
            profiled=step in _PROFILED,
        )
        for step in _SLEEPS
    ]  # fmt: skip
    found += [
        Fault("SIGKILL at random", _end_one(signal.SIGKILL)),
        Fault("SIGTERM at random", _end_one(signal.SIGTERM)),
        Fault("SIGSTOP at random", _stop, workers=(2, 3), may_end=True),
        Fault("SIGKILL of one of several", _end_one(signal.SIGKILL), workers=(2, 4)),
        Fault("a worker joins", _join, workers=(1, 3)),
        Fault("a worker leaves", _leave, workers=(2, 4)),
        Fault("rolling restart", _roll, workers=(2, 3)),
        Fault("state folder deleted", _delete_state),
        Fault("state folder damaged", _corrupt_state, may_end=True),
        Fault("broker SIGKILL", _kill_broker, workers=(1, 2), may_end=True),
        Fault("broker SIGSTOP", _pause_broker, workers=(1, 2), may_end=True),
        Fault("changelog compacted", _compact),
        Fault("disk full", _fill_disk, may_end=True, lacks=_no_tmpfs),
        # A broker refuses records from more than an hour ahead.
        Fault("clock jumps", _jump, may_end=True, lacks=_no_faketime),
        Fault("alerts not writable", _unwritable("alerts"), may_end=True),
        Fault("dead letters not writable", _unwritable("dead_letters"), may_end=True),
    ]
    return found


#: Every fault by its name, as the table shows it.
FAULTS: dict[str, Fault] = {fault.name: fault for fault in _all()}
