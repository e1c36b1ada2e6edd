"""The table of a chaos run."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from chaos.faults import FAULTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chaos.rounds import Result

__all__ = ["failed", "lines"]

_HEADINGS = (
    "rounds",
    "profiled",
    "transactions",
    "late",
    "redelivered",
    "lost",
    "doubled",
    "recovery p50",
    "max",
)


def failed(result: Result) -> bool:
    """Whether a round ended as none may; a known defect does not count."""
    return bool(result.problem) and not result.known


def lines(results: Sequence[Result]) -> list[str]:
    """Return the table's lines, a fault each and all of them last; then a line for each thing to be told."""
    done = [result for result in results if not result.skipped]
    rows = [
        (name, [result for result in done if result.fault == name])
        for name in FAULTS
        if any(result.fault == name for result in done)
    ]
    width = max([len(name) for name, _ in rows] + [5])
    table = [" ".join([f"{'fault':<{width}}", *(f"{heading:>12}" for heading in _HEADINGS)])]
    table += [_row(name, group, width) for name, group in rows]
    table.append(_row("all", done, width))
    told = []
    for name, _ in rows:
        known = {result.known for result in done if result.fault == name and result.problem and result.known}
        told += [f"known     {name}: {reason}" for reason in known]
    skipped = {result.fault: result.skipped for result in results if result.skipped}
    told += [f"skipped   {name}: {reason}" for name, reason in skipped.items()]
    for result in done:
        if failed(result):
            told.append(f"FAILED    round {result.number}, {result.fault}: {result.problem}")
    return [*table, *told]


def _row(name: str, group: Sequence[Result], width: int) -> str:
    recoveries = [result.recovery_seconds for result in group if result.recovery_seconds is not None]
    cells = [
        f"{len(group):,}",
        f"{sum(result.profiled for result in group):,}",
        f"{sum(result.transactions for result in group):,}",
        f"{sum(result.late for result in group):,}",
        f"{sum(result.redelivered for result in group):,}",
        f"{sum(result.lost for result in group):,}",
        f"{sum(result.doubled for result in group):,}",
        f"{statistics.median(recoveries):.1f} s" if recoveries else "-",
        f"{max(recoveries):.1f} s" if recoveries else "-",
    ]
    mark = " !" if any(failed(result) for result in group) else ""
    return " ".join([f"{name:<{width}}", *(f"{cell:>12}" for cell in cells)]) + mark
