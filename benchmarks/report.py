"""Results as tables: for a terminal, and in Markdown for ``docs/explanation/performance.md``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

__all__ = ["markdown", "tables", "targets", "text", "write_markdown"]

_PLACE: Final = re.compile(r"(<!-- bench(: bars)? -->).*?(<!-- /bench -->)", re.DOTALL)
_WORKER: Final = "riskstream worker"
_CEILING: Final = "in-process ceiling"


@dataclass(frozen=True, slots=True)
class Table:
    """A title, a head and rows of texts; the first column is left-aligned, the others right."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Target:
    """A measured value and its target.

    Attributes
    ----------
    least:
        Whether the value must be at least the target; otherwise at most.
    """

    name: str
    value: float
    target: float
    unit: str
    least: bool

    @property
    def met(self) -> bool:
        """Return whether the value meets the target."""
        return self.value >= self.target if self.least else self.value <= self.target

    def cells(self) -> tuple[str, str, str, str]:
        """Return the row of the table."""
        sign = "≥" if self.least else "≤"
        return (
            self.name,
            f"{_short(self.value)}{self.unit}",
            f"{sign} {_short(self.target)}{self.unit}",
            "met" if self.met else "MISSED",
        )


def _short(value: float) -> str:
    if abs(value) >= 100:  # noqa: PLR2004
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"  # noqa: PLR2004


#: Name, function that reads the value from the results, target, unit, whether the target is a minimum.
_TARGETS: Final[tuple[tuple[str, Callable[[Any], float], float, str, bool], ...]] = (
    (
        "throughput of one worker against a plain Faust agent",
        lambda found: found["throughput"]["ratio"]["plain Faust agent"],
        6,
        " x",
        True,
    ),
    (
        "throughput against Quix Streams",
        lambda found: found["throughput"]["ratio"]["Quix Streams"],
        2.5,
        " x",
        True,
    ),
    (
        "throughput against the in-process ceiling",
        lambda found: 100 * found["throughput"]["ratio"][_CEILING],
        50,
        " %",
        True,
    ),
    (
        "transactions/s of one worker",
        lambda found: found["throughput"]["median"][_WORKER]["per_second"],
        15_000,
        "",
        True,
    ),
    ("latency at 2,000/s, p50", lambda found: found["latency"]["steady"]["p50"], 10, " ms", False),
    ("latency at 2,000/s, p99", lambda found: found["latency"]["steady"]["p99"], 40, " ms", False),
    ("latency at 2,000/s, p99.9", lambda found: found["latency"]["steady"]["p99.9"], 200, " ms", False),
    (
        "latency at 70 % of the throughput, p99",
        lambda found: found["latency"]["busy"]["p99"],
        150,
        " ms",
        False,
    ),
    ("latency of single transactions, p50", lambda found: found["latency"]["idle"]["p50"], 6, " ms", False),
    (
        "latency at 2,000/s with 50 hostile requests/s, p99",
        lambda found: found["requests"]["attacked"]["p99"],
        40,
        " ms",
        False,
    ),
    ("cost at ten times the users", lambda found: found["cost"]["growth"]["users_ratio"], 1.3, " x", False),
    (
        "cost at a hundred times the history",
        lambda found: found["cost"]["growth"]["history_ratio"],
        3,
        " x",
        False,
    ),
    ("changelog recovery, records/s", lambda found: found["recovery"]["per_second"], 50_000, "", True),
    (
        "CPU per transaction, one worker per partition against one worker",
        lambda found: found["cost"]["workers"]["workers_ratio"],
        1.2,
        " x",
        False,
    ),
)


def targets(found: dict[str, Any]) -> list[Target]:
    """Return each target with a measured figure."""
    measured = []
    for name, get, target, unit, least in _TARGETS:
        try:
            measured.append(Target(name, float(get(found)), target, unit, least))
        except KeyError:
            continue
    return measured


def tables(found: dict[str, Any]) -> list[Table]:
    """Return all results as tables."""
    made = []
    if reached := targets(found):
        made.append(
            Table("Targets", ("figure", "measured", "target", ""), [target.cells() for target in reached])
        )
    if "throughput" in found:
        made.append(_throughput(found["throughput"]))
    if "latency" in found:
        made.append(_latency(found["latency"]))
    if "requests" in found:
        made.append(_requests(found["requests"]))
    if "recovery" in found:
        item = found["recovery"]
        rows = [(f"{item['records']:,}", f"{item['per_second']:,.0f}", str(len(item["rounds"])))]
        made.append(Table("Recovery from the changelog", ("records", "records/s", "rounds"), rows))
    if "cost" in found:
        made += _cost(found["cost"])
    if "entity-join" in found:
        made.append(_entity_join(found["entity-join"]))
    if "stages" in found:
        item = found["stages"]
        rows = [
            (stage, f"{micros:.2f}", f"{100 * micros / item['total']:.0f} %")
            for stage, micros in item["micros"].items()
        ]
        rows.append(("total", f"{item['total']:.2f}", "100 %"))
        rows.append(("total, in micro-batches of a single record", f"{item['one_at_a_time']:.2f}", ""))
        title = f"Time by stage in process, micro-batches of {item['round']:,}"
        made.append(Table(title, ("stage", "us per transaction", "share"), rows))
    return made


def _throughput(found: dict[str, Any]) -> Table:
    rows = []
    for name, item in found["median"].items():
        ratio = found["ratio"].get(name)
        rounds = [rate["transactions"] / rate["seconds"] for rate in found["rounds"][name]]
        rows.append(
            (
                name,
                f"{item['per_second']:,.0f}",
                f"{min(rounds):,.0f} - {max(rounds):,.0f}",
                f"{item['cpu_micros']:.1f}",
                f"{item['rss_mib']:,.0f}",
                f"{100 * item['alert_share']:.1f} %",
                "" if ratio is None else f"{ratio:.2f}",
            )
        )
    count = max(map(len, found["rounds"].values()))
    head = (
        "",
        "transactions/s",
        "lowest - highest",
        "CPU us per transaction",
        "MiB",
        "alerts",
        "ratio of the worker to this",
    )
    return Table(f"Throughput, medians of {count} rounds", head, rows)


def _latency(found: dict[str, Any]) -> Table:
    rows = []
    for name in ("steady", "busy", "idle"):
        if name in found:
            item = found[name]
            label = f"{item['rate']:,.0f}/s" if "rate" in item else "single transactions"
            figures = (f"{item[part]:.1f}" for part in ("p50", "p90", "p99", "p99.9", "max"))
            sent = (f"{item['sent_p50']:.1f}", f"{item['sent_p99']:.1f}") if "sent_p50" in item else ("", "")
            rows.append((label, *figures, f"{item['alerts']:,.0f}", *sent))
    head = ("", "p50", "p90", "p99", "p99.9", "max", "alerts", "due to stored in Kafka, p50", "p99")
    return Table("Latency from due time to consumed alert, ms", head, rows)


def _requests(found: dict[str, Any]) -> Table:
    labels = {"calm": "no requests", "attacked": "50 hostile requests/s"}
    statuses = ", ".join(f"{count:,} x {status}" for status, count in found["statuses"].items())
    rows = [
        (
            label,
            *(f"{found[name][part]:.1f}" for part in ("p50", "p90", "p99", "p99.9", "max")),
            statuses if name == "attacked" else "",
        )
        for name, label in labels.items()
    ]
    head = ("at 2,000 transactions/s", "p50", "p90", "p99", "p99.9", "max", "statuses of the requests")
    return Table("Latency with score requests, ms", head, rows)


def _cost(found: dict[str, Any]) -> list[Table]:
    made = []
    if "growth" in found:
        rows = [
            (name, f"{item['micros']:.1f}", f"{item['cpu_micros']:.1f}", f"{item['state_bytes']:,.0f}")
            for name, item in found["growth"]["cases"].items()
        ]
        head = (
            "in process",
            "us per transaction",
            "CPU us per transaction",
            "bytes of state per transaction",
        )
        made.append(Table("Cost of a transaction", head, rows))
    if "workers" in found:
        item = found["workers"]
        rows = [
            (count, f"{item['per_second'][count]:,.0f}", f"{micros:.1f}")
            for count, micros in item["cpu_micros"].items()
        ]
        made.append(
            Table("Workers on one machine", ("workers", "transactions/s", "CPU us per transaction"), rows)
        )
    return made


def _entity_join(found: dict[str, Any]) -> Table:
    rows = []
    first = next(iter(found["median"].values()))
    for name, item in found["median"].items():
        ratio = found["ratio"][name]
        rounds = [each["per_second"] for each in found["rounds"][name]]
        rows.append(
            (
                name,
                f"{item['per_second']:,.0f}",
                f"{min(rounds):,.0f} - {max(rounds):,.0f}",
                f"{ratio['per_second']:.2f}",
                f"{item['cpu_micros']:.1f}",
                f"{ratio['cpu_micros']:.2f}",
                f"{item['p50']:.1f}",
                f"{item['p50'] - first['p50']:+.1f}",
                f"{ratio['p50']:.2f}",
                f"{item['p99']:.1f}",
                f"{ratio['p99']:.2f}",
            )
        )
    head = (
        "model", "transactions/s", "lowest - highest", "ratio", "CPU us per transaction", "ratio",
        f"p50, ms at {found['rate']:,.0f}/s", "added", "ratio", "p99, ms", "ratio",
    )  # fmt: skip
    count = max(map(len, found["rounds"].values()))
    return Table(
        f"Cost of the entity join, medians of {count} rounds, ratios to user features only", head, rows
    )


def text(table: Table) -> str:
    """Return a table for a terminal."""
    lines = [table.head, *table.rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(table.head))]

    def row(cells: Iterable[str]) -> str:
        parts = [
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "   " + "  ".join(parts).rstrip()

    return "\n".join([f"\n{table.title}\n", *map(row, lines)])


def markdown(found: dict[str, Any], environment: Iterable[str], *, short: bool = False) -> str:
    """Return the tables in Markdown, or the first alone, behind the environment."""
    parts = ["```\n" + "\n".join(environment) + "\n```"]
    for table in tables(found)[: 1 if short else None]:
        head = "| " + " | ".join(table.head) + " |"
        rule = "|---|" + "---:|" * (len(table.head) - 1)
        rows = ["| " + " | ".join(row) + " |" for row in table.rows]
        parts.append("\n".join([f"**{table.title}**\n", head, rule, *rows]))
    return "\n\n".join(parts) + "\n"


def write_markdown(path: Path, found: dict[str, Any], environment: list[str]) -> None:
    """Write the tables to a file, or between the markers of an existing file.

    The markers are ``<!-- bench -->``, or ``<!-- bench: bars -->`` for the first table alone, and
    ``<!-- /bench -->``; the rest of the file stays as it is.
    """
    before = path.read_text(encoding="utf-8") if path.exists() else ""

    def fill(index: re.Match[str]) -> str:
        return f"{index[1]}\n{markdown(found, environment, short=index[2] is not None)}{index[3]}"

    after, indexes = _PLACE.subn(fill, before)
    path.write_text(after if indexes else markdown(found, environment), encoding="utf-8")
