"""Rounds: one fault each, under load, recovered from and checked."""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from chaos.deployment import ChaosError, Deployment, Pump
from chaos.faults import FAULTS, KNOWN, SHARE, Round
from chaos.findings import Findings
from stream.cli.signals import raise_on_sigterm
from stream.kafka.local.apache import KafkaBroker
from stream.scoring.bundle import Thresholds
from support.bundles import made_bundle, trained_bundle
from support.profiles import PROFILES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from chaos.faults import Fault

__all__ = ["Lane", "Result", "deal", "plan", "run_lane", "save_bundles"]

#: The oracle is slow in the length of a history.
ROUNDS_A_DEPLOYMENT = 8

#: The cleaner looks every 15 s by default, and files are deleted a minute later.
BROKER_CONFIG = {"log.cleaner.backoff.ms": "500", "log.segment.delete.delay.ms": "1000"}


@dataclass(slots=True)
class Result:
    """What came of a round."""

    fault: str
    number: int
    #: Whether the deployment's model has profiles.
    profiled: bool = False
    transactions: int = 0
    late: int = 0
    redelivered: int = 0
    lost: int = 0
    doubled: int = 0
    recovery_seconds: float | None = None
    duration_seconds: float = 0.0
    problem: str = ""
    skipped: str = ""
    last_words: list[str] = field(default_factory=list)

    @property
    def known(self) -> str:
        """Why this fault is known not to be survived, empty where it has to be."""
        return KNOWN.get(self.fault, "")


def plan(rounds: int, seed: int, only: Iterable[str] = ()) -> list[str]:
    """Return the faults of so many rounds: each kind in turn, every turn in another order."""
    names = [name for name in FAULTS if not only or any(part in name for part in only)]
    if not names:
        raise SystemExit(f"no such fault; there are: {', '.join(FAULTS)}")
    rng = random.Random(f"plan {seed}")
    order: list[str] = []
    while len(order) < rounds:
        order += rng.sample(names, len(names))
    return order[:rounds]


def deal(names: Sequence[str], lanes: int) -> list[list[tuple[int, str, bool]]]:
    """Return each lane's rounds: number, fault, and whether with profiles.

    A lane's deployments are with and without in turn; a fault that only comes with profiles has them anyway.
    """
    rounds = list(enumerate(names, 1))
    return [
        [
            (number, name, bool((at // ROUNDS_A_DEPLOYMENT + lane) % 2) or FAULTS[name].profiled)
            for at, (number, name) in enumerate(rounds[lane::lanes])
        ]
        for lane in range(lanes)
    ]


def save_bundles(folder: Path) -> dict[bool, Path]:
    """Write the models of deployments without and with profiles, and return where each lies."""
    bundles = {
        False: trained_bundle(),
        # Of random rows; with these thresholds some of what it scores deserves an alert.
        True: made_bundle(entities=PROFILES, thresholds=Thresholds(high=0.52, medium=0.5, prediction=0.5)),
    }
    found = {profiled: folder / ("profiled" if profiled else "plain") for profiled in bundles}
    for profiled, bundle in bundles.items():
        bundle.save(found[profiled])
    return found


class Lane:
    """A broker of its own, and deployments on it one after the other, a few rounds each.

    Parameters
    ----------
    bundles
        See :func:`save_bundles`.
    """

    def __init__(self, folder: Path, bundles: Mapping[bool, Path], seed: int) -> None:
        self._folder = folder
        self._bundles = bundles
        self._seed = seed
        self._broker = KafkaBroker(extra_config=BROKER_CONFIG)
        self._deployment: Deployment | None = None
        self._rounds = 0
        self._deployments = 0

    def __enter__(self) -> Self:
        self._broker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._discard()
        self._broker.stop()

    def _discard(self) -> None:
        deployment, self._deployment, self._rounds = self._deployment, None, 0
        if deployment is not None:
            deployment.close()
            shutil.rmtree(deployment.folder, ignore_errors=True)

    def _current(self, findings: Findings, *, profiled: bool) -> Deployment:
        if self._deployment is not None and self._deployment.profiled != profiled:
            _end(self._deployment, findings)
            self._rounds = ROUNDS_A_DEPLOYMENT
        if self._rounds >= ROUNDS_A_DEPLOYMENT:
            self._discard()
        if self._deployment is None:
            self._deployments += 1
            self._deployment = Deployment(
                self._broker,
                self._folder / f"deployment-{self._deployments}",
                self._bundles[profiled],
                f"{self._seed} {self._deployments}",
                profiled=profiled,
            )
        self._rounds += 1
        return self._deployment

    def run(self, name: str, number: int, *, profiled: bool) -> Result:
        """Run one round; whatever is found wrong is in the result, and ends the deployment.

        Another kind of deployment than the last round's is a new one, the last one's end checked before.
        """
        fault = FAULTS[name]
        result = Result(name, number, profiled)
        lacks = fault.lacks()
        if lacks is not None:
            result.skipped = lacks
            return result
        started = time.monotonic()
        findings = Findings()
        try:
            deployment = self._current(findings, profiled=profiled)
            last = self._rounds >= ROUNDS_A_DEPLOYMENT
            self._round(deployment, fault, random.Random(f"{self._seed} {number}"), result, findings)
            if last:
                _end(deployment, findings)
        except ChaosError as error:
            findings.wrong.insert(0, str(error))
        result.lost, result.doubled, result.problem = findings.lost, findings.doubled, str(findings)
        if findings:
            self._keep_logs(number)
        # What a known defect leaves behind may show only rounds later.
        if findings or result.known:
            self._discard()
        if not self._broker.alive:
            self._broker.start()
        result.duration_seconds = time.monotonic() - started
        return result

    def _keep_logs(self, number: int) -> None:
        deployment = self._deployment
        if deployment is not None:
            kept = self._folder / f"failed-round-{number}"
            kept.mkdir(parents=True, exist_ok=True)
            for log in deployment.folder.glob("*.log"):
                shutil.copy(log, kept)

    def _round(
        self, deployment: Deployment, fault: Fault, rng: random.Random, result: Result, findings: Findings
    ) -> None:
        checker = deployment.checker
        late, redelivered = checker.late, checker.redelivered
        words = [len(slot.last_words) for slot in deployment.slots]
        deployment.may_end = False
        deployment.arrange(rng.randint(*fault.workers), orders=fault.orders(rng))
        deployment.may_end = fault.may_end
        pump = Pump(deployment, rng, SHARE)
        now = Round(deployment, rng, pump)
        pump.start()
        try:
            fault.inject(now)
            now.wait_recovered()
            pump.stop()
            try:
                deployment.wait(_nothing_open(checker.unanswered), "not every transaction is answered")
            except ChaosError as error:
                open_now = [(where, checker.sent_at(where)) for where in checker.unanswered()[:8]]
                raise ChaosError(f"not answered: {open_now}\n{error}") from error
            try:
                deployment.wait(_nothing_open(checker.under_way), "something remains under way")
            except ChaosError as error:
                raise ChaosError(f"under way: {checker.under_way()}\n{error}") from error
            findings.join(checker.check())
            _check_state(deployment, findings, may_be_damaged=now.may_be_damaged)
        except BaseException:
            with contextlib.suppress(Exception):
                now.restore()
            with contextlib.suppress(Exception):
                pump.stop()
            raise
        finally:
            result.transactions = pump.sent
            result.late, result.redelivered = checker.late - late, checker.redelivered - redelivered
            result.recovery_seconds = max(now.recoveries_seconds, default=None)
        now.restore()
        # What becomes of a worker that was given up belongs to this round, however late it learns of it.
        deployment.wait(deployment.settled, "not every worker is a member of the group again")
        for at, slot in enumerate(deployment.slots):
            result.last_words += slot.last_words[words[at] if at < len(words) else 0 :]
        if now.may_be_damaged:  # damage that nobody has read yet is not for the next round to find
            slot = deployment.slot(0)
            deployment.stop([0])
            shutil.rmtree(slot.state_dir, ignore_errors=True)


def _nothing_open(found: Callable[[], list[Any]]) -> Callable[[], bool]:
    return lambda: not found()


def _check_state(deployment: Deployment, findings: Findings, *, may_be_damaged: bool) -> None:
    """Compare stores, changelog and source.

    More than once where need be: the last write may be a moment behind the last answer, and a worker that only
    now joins the others writes owner records while the changelog is read.
    """
    checker, found = deployment.checker, Findings()

    def right() -> bool:
        nonlocal found
        found = checker.check_stores(
            [slot.state_dir for slot in deployment.slots],
            deployment.folder / "copies",
            may_be_damaged=may_be_damaged,
        )
        found.join(checker.check_state())
        if not found:
            found.join(checker.check_whole_changelog())
        return not found

    with contextlib.suppress(ChaosError):
        deployment.wait(right, "", timeout_seconds=15)
    findings.join(found)


def _end(deployment: Deployment, findings: Findings) -> None:
    """Stop every worker and compare once more: stores that are closed, the changelog from its start."""
    deployment.arrange(1)  # the last fault may have left no store at all: here is one, restored where need be
    deployment.stop([slot.number for slot in deployment.slots])
    checker = deployment.checker
    checker.follow()
    for found in (
        checker.check(),
        checker.check_state(),
        checker.check_commits(),
        checker.check_whole_changelog(),
        checker.check_stores([slot.state_dir for slot in deployment.slots], deployment.folder / "copies"),
    ):
        findings.join(found)


def run_lane(
    folder: Path,
    bundles: Mapping[bool, Path],
    seed: int,
    rounds: list[tuple[int, str, bool]],
    deadline: float,
    reports: Any,
) -> None:
    """Run a lane's rounds in a process of its own, and put each result into the queue ``reports``."""
    raise_on_sigterm()
    folder.mkdir()
    with Lane(folder, bundles, seed) as lane:
        for number, name, profiled in rounds:
            if time.monotonic() > deadline:
                break
            reports.put(lane.run(name, number, profiled=profiled))
    reports.close()
    reports.join_thread()
