"""``make chaos``: many seeded rounds on Apache Kafka, and a table of what came of them."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import queue
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.environment import describe, environment
from chaos.faults import KNOWN
from chaos.rounds import Result, deal, plan, run_lane, save_bundles
from chaos.table import failed, lines
from stream.cli.signals import raise_on_sigterm
from stream.kafka.local.apache import missing_tools


def main() -> int:
    options = _options()
    missing = missing_tools()
    if missing is not None:
        print(f"chaos: {missing}", file=sys.stderr)
        return 4
    raise_on_sigterm()
    found = environment()
    print(*describe(found), f"seed      {options.seed}", sep="\n", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="riskstream-chaos-"))
    bundles = save_bundles(folder)
    started = time.monotonic()
    try:
        results = _run_lanes(options, folder, bundles, started)
    finally:
        logs = sorted(folder.glob("lane-*/failed-round-*"))
        if not logs:
            shutil.rmtree(folder, ignore_errors=True)
    minutes = (time.monotonic() - started) / 60
    print("", *lines(results), "", sep="\n")
    done = sum(not result.skipped for result in results)
    print(
        f"{done} rounds in {minutes:.1f} minutes, {options.lanes} at once; recovery is the time from the fault"
    )
    print("until every partition has an answer to a record sent after it, with the shipped timeouts")
    if logs:
        print(f"logs of failed rounds are in {folder}")
    if options.json is not None:
        report = {
            **found,
            "seed": options.seed,
            "minutes": round(minutes, 2),
            "known": KNOWN,
            "rounds": [asdict(result) for result in results],
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if not done or any(map(failed, results)) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", default=[], help="part of a fault's name; may be repeated")
    parser.add_argument("--json", type=Path, help="write every round to this file")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no round after these")
    parser.add_argument("--lanes", type=int, default=2, help="brokers that have rounds at the same time")
    return parser.parse_args()


def _run_lanes(
    options: argparse.Namespace, folder: Path, bundles: dict[bool, Path], started: float
) -> list[Result]:
    """Deal the rounds out to lanes, each a process with a broker, and collect what they report."""
    rounds = deal(plan(options.rounds, options.seed, options.only), options.lanes)
    context = multiprocessing.get_context("spawn")
    reports: Any = context.Queue()
    deadline = started + 60 * options.minutes
    lanes = [
        context.Process(
            target=run_lane,
            daemon=True,
            args=(
                folder / f"lane-{lane}",
                bundles,
                options.seed,
                rounds[lane],
                deadline,
                reports,
            ),
        )
        for lane in range(options.lanes)
    ]
    for lane in lanes:
        lane.start()
    results: list[Result] = []
    while any(lane.is_alive() for lane in lanes) or not reports.empty():
        try:
            result = reports.get(timeout=0.5)
        except queue.Empty:
            continue
        results.append(result)
        print(_line(result), flush=True)
    if any(lane.exitcode for lane in lanes):
        raise SystemExit("chaos: a lane died, see above")
    return sorted(results, key=lambda result: result.number)


def _line(result: Result) -> str:
    if result.skipped:
        return f"{result.number:>4} skipped {result.fault}: {result.skipped}"
    recovery = "-" if result.recovery_seconds is None else f"{result.recovery_seconds:.1f} s"
    verdict = "known" if result.problem and result.known else "FAILED" if result.problem else "ok"
    kind = "profiles" if result.profiled else ""
    text = (
        f"{result.number:>4} {verdict:<6} {result.fault:<26} {kind:<8} {result.transactions:>6,} transactions, "
        f"lost {result.lost}, doubled {result.doubled}, redelivered {result.redelivered}, "
        f"recovery {recovery}, {result.duration_seconds:.0f} s"
    )
    for words in result.last_words:
        text += f"\n            it said: {words[:300]}"
    if result.problem:
        text += "\n            " + result.problem.replace("\n", "\n            ")
    return text


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
