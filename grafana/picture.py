"""Pictures of the dashboards: what their own queries find in a Prometheus, drawn without a browser.

``python grafana/picture.py --prometheus http://127.0.0.1:9090`` draws what is there. With ``--live`` Apache
Kafka, workers, Prometheus and transactions are started first (needs a checkout, Java, Maven and Debian's
``prometheus``); so the pictures in the docs were made. They show the content in Grafana's layout, not
Grafana's looks.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import signal
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.dates import AutoDateLocator, DateFormatter, date2num
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MultipleLocator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from streams import Worker

ROOT = Path(__file__).parents[1]
DASHBOARDS = ("overview", "stream", "model")
#: Grafana's grid: columns, and inches of one column and one row here; inches above for the title.
COLUMNS, COLUMN_INCHES, ROW_INCHES, TITLE_INCHES = 24, 0.46, 0.29, 0.45
#: Inches between a panel's edge and its plot: left, right, above, below.
MARGINS = (0.52, 0.14, 0.3, 0.52)
WITHOUT_AXES = (0.14, 0.14, 0.3, 0.08)
#: Dots an inch: a page shows it at about two thirds.
DPI = 100
POINTS = 120
SMALL, MEDIUM, LARGE, FIGURE = 6.5, 8.5, 12, 19
#: Of one legend: inches, and letters.
LEGEND_INCHES, LONGEST = 1.3, 24
FRAME, GRID = "#d5d8dd", "#eceef1"
#: Grafana's order of colours.
SERIES = ("#56a64b", "#f2cc0c", "#3274d9", "#ff780a", "#e02f44", "#5794f2", "#a352cc", "#8f3bb8", "#19730e")
#: What ``--live`` simulates: users, days, transactions before those that are streamed, then transactions a
#: second, so many times a second, and the share of the time after which another worker joins.
USERS, DAYS, PAST, RATE, TICKS, JOINED = 3_000, 120, 150_000, 300, 2, 0.45
VARIABLES = {"$job": ".*", "$instance": ".*", "$feature": ".*"}
COLORS = {"green": "#3a9a3a", "orange": "#d98200", "red": "#c4162a", "blue": "#3274d9"}


@dataclass(frozen=True)
class Source:
    """A Prometheus, and the time that is looked at."""

    address: str
    start: float
    end: float

    @property
    def step(self) -> float:
        """Seconds between two points."""
        return max(1.0, (self.end - self.start) / POINTS)

    def series(self, expression: str, *, instant: bool) -> list[tuple[dict[str, str], np.ndarray]]:
        """Return each series' labels and points, float64[n, 2] of time in s and value."""
        rate = f"{max(10, int(4 * self.step))}s"
        for name, value in {**VARIABLES, "$__rate_interval": rate}.items():
            expression = expression.replace(name, value)
        asked: dict[str, Any] = {"query": expression}
        if instant:
            path, asked["time"] = "query", self.end
        else:
            path = "query_range"
            asked |= {"start": self.start, "end": self.end, "step": self.step}
        url = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - the operator's own address
            found = json.load(answer)["data"]["result"]
        return [
            (one["metric"], np.array(one.get("values") or [one["value"]], dtype=np.float64)) for one in found
        ]


def human(value: float, unit: str) -> str:
    """Return a value with its unit, as short as Grafana says it."""
    if math.isnan(value):
        return "-"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "s":
        for size, name in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return f"{value * 1e6:.3g} µs" if value else "0 s"
    if unit == "bytes":
        for size, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return f"{value:.3g} B"
    suffix = {"reqps": "/s", "cps": "/s"}.get(unit, "")
    thousand = 1_000
    return f"{value:,.0f}{suffix}" if abs(value) >= thousand else f"{value:.3g}{suffix}"


def legend_of(template: str, labels: dict[str, str]) -> str:
    """Return a legend such as ``{{instance}} files``, filled in."""
    for name, value in labels.items():
        template = template.replace("{{" + name + "}}", value)
    return template


def color_of(value: float, steps: list[dict[str, Any]]) -> str:
    """Return the colour of the threshold that a value has reached."""
    chosen = steps[0]["color"]
    for step in steps[1:]:
        if value >= step["value"]:
            chosen = step["color"]
    return COLORS.get(chosen, "#333333")


def dates(times: np.ndarray) -> np.ndarray:
    """Return seconds since 1970 as matplotlib's dates."""
    return date2num((1000 * times).astype(np.int64).astype("datetime64[ms]"))


def draw_stat(axes: Axes, panel: dict[str, Any], source: Source) -> None:
    """Draw the last value, large, in the colour of its threshold."""
    defaults = panel["fieldConfig"]["defaults"]
    shown = []
    for target in panel["targets"]:
        for labels, points in source.series(target["expr"], instant=True):
            shown.append((legend_of(target["legendFormat"], labels), points[-1, 1]))
    axes.axis("off")
    text = "\n".join(f"{name} {human(value, defaults['unit'])}".strip() for name, value in shown[:4]) or "-"
    color = color_of(shown[0][1], defaults["thresholds"]["steps"]) if shown else "#333333"
    size = FIGURE if len(shown) < 2 else MEDIUM  # noqa: PLR2004
    axes.text(0.5, 0.45, text, ha="center", va="center", fontsize=size, color=color)


def draw_lines(axes: Axes, panel: dict[str, Any], source: Source) -> None:
    """Draw every series over time, one upon the other where the panel stacks them."""
    defaults = panel["fieldConfig"]["defaults"]
    found = [
        (legend_of(target["legendFormat"], labels), points)
        for target in panel["targets"]
        for labels, points in source.series(target["expr"], instant=False)
    ]
    axes.set_prop_cycle(color=SERIES)
    if defaults["custom"]["stacking"]["mode"] != "none":
        found.sort(key=lambda one: -one[1][:, 1].max())
        times = np.unique(np.concatenate([points[:, 0] for _, points in found] or [[]]))
        bottom = np.zeros(len(times))
        for name, points in found:
            values = np.zeros(len(times))
            values[np.searchsorted(times, points[:, 0])] = np.nan_to_num(points[:, 1])
            top = bottom + values
            axes.fill_between(dates(times), bottom, top, label=name, alpha=0.6, linewidth=0)
            bottom = top
    else:
        found.sort(key=lambda one: -one[1][-1, 1])
        for name, points in found:
            axes.plot(dates(points[:, 0]), points[:, 1], label=name, linewidth=1.2)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlim(*dates(np.array([source.start, source.end])))
    axes.xaxis.set_major_locator(AutoDateLocator(minticks=3, maxticks=6))
    axes.xaxis.set_major_formatter(
        DateFormatter("%H:%M" if source.end - source.start >= 5 * 60 else "%H:%M:%S")
    )
    if defaults["custom"]["scaleDistribution"]["type"] == "log":
        axes.set_yscale("log")
    else:
        _, high = axes.get_ylim()
        # What is nothing all the time lies on the axis, not in the middle.
        some = any(np.nanmax(points[:, 1]) > 0 for _, points in found)
        axes.set_ylim(0, high if some else 1)
        if defaults["unit"] == "bytes" and some:
            axes.yaxis.set_major_locator(MultipleLocator(2.0 ** math.ceil(math.log2(high / 5))))
    axes.yaxis.set_major_formatter(lambda value, _: human(value, defaults["unit"]))
    handles, names = axes.get_legend_handles_labels()
    if any(names):
        columns = max(1, round(axes.get_position().width * COLUMNS * COLUMN_INCHES / LEGEND_INCHES))
        shown = min(len(names), columns)
        axes.legend(
            handles[:shown],
            [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names[:shown]],
            fontsize=SMALL,
            loc="upper left",
            bbox_to_anchor=(-0.01, -0.2 / (axes.get_position().height * axes.figure.get_figheight())),
            ncols=shown,
            frameon=False,
            handlelength=1.2,
            columnspacing=1.2,
            borderaxespad=0.4,
        )


def draw_heatmap(axes: Axes, panel: dict[str, Any], source: Source) -> None:
    """Draw a histogram's buckets over time."""
    found = source.series(panel["targets"][0]["expr"], instant=False)
    rows = sorted(((float(labels["le"]), points) for labels, points in found), key=lambda row: row[0])
    times = sorted({at for _, points in rows for at in points[:, 0]})
    cells = np.zeros((len(rows), len(times)))
    for place, (_, points) in enumerate(rows):
        cells[place, np.searchsorted(times, points[:, 0])] = points[:, 1]
    cells = np.diff(cells, axis=0, prepend=0).clip(min=0)
    axes.pcolormesh(np.sqrt(cells), cmap="Oranges")
    # Each row's upper edge.
    axes.set_yticks(np.arange(len(rows)) + 1, [f"{edge:g}" for edge, _ in rows])
    marks = np.linspace(0, len(times) - 1, 4, dtype=int)
    axes.set_xticks(marks, [time.strftime("%H:%M", time.gmtime(times[mark])) for mark in marks])


def draw_table(axes: Axes, panel: dict[str, Any], source: Source) -> None:
    """Draw what the queries find now, a row each: what the labels say."""
    axes.axis("off")
    lines = []
    for target in panel["targets"]:
        rows = [labels for labels, _ in source.series(target["expr"], instant=True)]
        names = sorted({name for row in rows for name in row} - {"__name__", "job"})
        cells = [names, *sorted([row.get(name, "") for name in names] for row in rows)]
        widths = [max(len(row[column]) for row in cells) + 2 for column in range(len(names))]
        lines += [
            "".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells
        ]
        lines.append("")
    text = "\n".join(lines) if any(lines) else panel["fieldConfig"]["defaults"].get("noValue", "none")
    axes.text(0, 0.98, text, va="top", fontsize=SMALL, linespacing=1.6, family="monospace")


DRAWN = {"stat": draw_stat, "timeseries": draw_lines, "heatmap": draw_heatmap, "table": draw_table}


def draw(dashboard: dict[str, Any], source: Source) -> Figure:
    """Return the picture of a dashboard's content."""
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    width, height = COLUMNS * COLUMN_INCHES, rows * ROW_INCHES + TITLE_INCHES
    figure = plt.figure(figsize=(width, height))
    title = 1 - 0.5 * TITLE_INCHES / height
    figure.text(0.5, title, dashboard["title"], ha="center", va="center", size=LARGE)
    for panel in dashboard["panels"]:
        left, right, above, below = WITHOUT_AXES if panel["type"] in {"stat", "table"} else MARGINS
        place = panel["gridPos"]
        x, w = place["x"] * COLUMN_INCHES, place["w"] * COLUMN_INCHES
        h = place["h"] * ROW_INCHES
        y = height - TITLE_INCHES - place["y"] * ROW_INCHES - h
        frame = (x + 0.04) / width, (y + 0.03) / height
        figure.add_artist(
            FancyBboxPatch(
                frame,
                (w - 0.08) / width,
                (h - 0.06) / height,
                boxstyle="round,pad=0,rounding_size=0.004",
                facecolor="none",
                edgecolor=FRAME,
                linewidth=0.8,
            )
        )
        figure.text((x + 0.12) / width, (y + h - 0.17) / height, panel["title"], size=MEDIUM, va="center")
        axes = figure.add_axes(
            (
                (x + left) / width,
                (y + below) / height,
                (w - left - right) / width,
                (h - above - below) / height,
            )
        )
        axes.tick_params(labelsize=SMALL, length=2)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        DRAWN[panel["type"]](axes, panel, source)
    return figure


@contextlib.contextmanager
def live(seconds: float) -> Iterator[str]:
    """Let workers score transactions for a while, and yield the address of a Prometheus that watched them.

    The users' past and the traffic are one simulation, and the model was trained on the past: what is shown
    is a model at its ordinary work. In the middle a second worker joins.
    """
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from offline.simulation.simulator import Simulation, simulate
    from offline.training.train import TrainingOptions, train
    from stream.kafka.local.apache import KafkaBroker
    from support.helpers import wait_until
    from support.prometheus_tools import Prometheus
    from support.streams import Sent, Stream

    now = datetime.now(UTC)
    total = PAST + int(RATE * seconds)
    start_ms = int((now - timedelta(days=DAYS)).timestamp() * 1000)
    table = simulate(Simulation(transactions=total, users=USERS, days=DAYS, start_ms=start_ms, seed=12))
    bundle = train(table.slice(0, PAST), TrainingOptions(trees=200), now=now).bundle
    records = [Sent(key, value) for key, value in table.to_records()]
    with KafkaBroker() as broker, tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        bundle.save(folder / "bundle")
        stream = Stream(
            broker,
            folder,
            folder / "bundle",
            drift={"window_transactions": 5_000},
            decisions={"features": False},
            # Small, so that what is stored reaches the disk while somebody looks.
            rocksdb={"write_buffer_mib": 16, "block_cache_mib": 64},
        )
        stop = threading.Event()

        def feed() -> None:
            size = RATE // TICKS
            for start in range(PAST, len(records), size):
                # Of each tick's transactions one comes twice, and something that is none.
                stream.produce([*records[start : start + size], records[start], Sent(b"u", b"{}")])
                if stop.wait(1 / TICKS):
                    return

        feeder = threading.Thread(target=feed)
        try:
            worker = stream.start()
            stream.produce(records[:PAST])
            taken = "riskstream_transactions_total"
            wait_until(lambda: worker.metric(taken) >= PAST, "the past is not taken", seconds)
            with Prometheus(folder, [_host(worker)]) as prometheus:
                feeder.start()
                stop.wait(JOINED * seconds)
                apart = stream.settings.model_copy(update={"state_dir": folder / "state of the second"})
                second = stream.start(apart, ready=False)
                wait_until(lambda: second.address, "the second worker does not listen")
                prometheus.watch([_host(worker), _host(second)])
                wait_until(lambda: not feeder.is_alive(), "the transactions do not end", 3 * seconds)
                yield prometheus.address
        finally:
            stop.set()
            if feeder.is_alive():
                feeder.join()
            stream.close()


def _host(worker: Worker) -> str:
    return worker.address.removeprefix("http://")


def main() -> None:
    """Draw every dashboard."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--prometheus", help="the address of a Prometheus that watches workers")
    where.add_argument("--live", action="store_true", help="start everything, and draw what it did")
    parser.add_argument("--minutes", type=float, default=5.0, help="the time shown (5)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/dashboards", help="the folder")
    chosen = parser.parse_args()
    chosen.output.mkdir(parents=True, exist_ok=True)
    seconds = 60 * chosen.minutes
    # However it is told to end, it ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended before its time"))
    with live(seconds) if chosen.live else contextlib.nullcontext(chosen.prometheus) as address:
        end = time.time()
        for name in DASHBOARDS:
            dashboard = json.loads((ROOT / f"grafana/dashboards/{name}.json").read_text(encoding="utf-8"))
            figure = draw(dashboard, Source(address.rstrip("/"), end - seconds, end))
            path = chosen.output / f"{name}.png"
            figure.savefig(path, dpi=DPI, pil_kwargs={"optimize": True})
            plt.close(figure)
            sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
