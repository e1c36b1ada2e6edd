"""``riskstream demo``: the whole pipeline on this machine, with a printed summary."""

from __future__ import annotations

import re
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stream.cli.options import data_options, read_table

if TYPE_CHECKING:
    from offline.data.table import TransactionTable
    from stream.cli.demo.run import DemoResult

__all__ = ["demo"]


@click.command()
@click.option("--broker", type=click.Choice(["embedded", "kafka"]), default="embedded", show_default=True)
@click.option(
    "--data",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Your own labelled transactions; by default the demo simulates 100,000.",
)
@data_options
@click.option(
    "--transactions",
    type=click.IntRange(min=1000),
    default=100_000,
    show_default=True,
    help="Number of transactions to simulate.",
)
@click.option("--seed", type=click.IntRange(min=0), default=7, show_default=True)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("var/demo"),
    show_default=True,
    help="Folder for bundle, state and log; the demo empties it first.",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the results to this JSON file.",
)
@click.option(
    "--picture", type=click.Path(path_type=Path, dir_okay=False), help="Save the output as an SVG picture."
)
@click.option("--keep", is_flag=True, help="Keep broker and worker running until Ctrl-C.")
def demo(
    *,
    broker: str,
    data: Path | None,
    dataset: str | None,
    mapping: Path | None,
    transactions: int,
    seed: int,
    folder: Path,
    json_path: Path | None,
    picture: Path | None,
    keep: bool,
) -> None:
    """Run the whole pipeline on this machine and show the results.

    The demo starts a broker, simulates (or reads) labelled transactions, trains a model on the first four
    fifths and starts a worker. It sends the first part at full speed to fill the users' histories and the
    unseen last fifth at a steady rate, and compares the stream's decisions with the labels.
    """
    import orjson
    from rich.console import Console

    from stream.cli.demo import run as demo_run
    from stream.cli.output import progress_bar
    from stream.cli.signals import raise_on_sigterm

    console = Console() if picture is None else Console(record=True, width=100)
    started = time.monotonic()
    raise_on_sigterm()
    _empty(folder)
    with ExitStack() as stack:
        running = stack.enter_context(demo_run.start_broker(broker))
        console.print(f"[bold]1[/] {_NAMES[broker]} on {running.bootstrap_servers}")
        table = _transactions(data, dataset, mapping, transactions, seed)
        frauds = 0 if table.is_fraud is None else int((table.is_fraud == 1).sum())
        origin = "simulated" if data is None else f"from {data.name}"
        console.print(f"[bold]2[/] {len(table):,} transactions {origin}, {frauds:,} of them fraud")
        with progress_bar("Features", len(table)) as advance:
            trained = demo_run.train_model(table, advance)
        trained.bundle.save(folder / "bundle")
        console.print(
            f"[bold]3[/] Model {trained.bundle.model_version}: {trained.bundle.training['trees']} trees on "
            f"{len(trained.bundle.spec.names)} features, trained on the past only"
        )
        settings = demo_run.demo_settings(folder, running.bootstrap_servers)
        log = folder / "worker.log"
        process, endpoint = stack.enter_context(demo_run.start_worker(settings, log))
        console.print(f"[bold]4[/] Worker {process.pid}, metrics on {endpoint}/metrics")
        result = demo_run.run_demo(table, trained, settings, process, progress_bar)
        if json_path is not None:
            json_path.write_bytes(orjson.dumps(result.to_json(), option=orjson.OPT_INDENT_2) + b"\n")
        _show(console, result, folder, time.monotonic() - started)
        if picture is not None:
            # Without rich's fonts, which a viewer would fetch from the web.
            drawn = re.sub(
                r"@font-face \{.*?\}", "", console.export_svg(title="riskstream demo"), flags=re.DOTALL
            )
            picture.write_text(drawn, encoding="utf-8")
        if keep:
            console.print(
                f"\nStill running: broker {running.bootstrap_servers}, worker {endpoint}. "
                "Try, in another terminal:\n"
                f"  RISKSTREAM_KAFKA__BOOTSTRAP_SERVERS={running.bootstrap_servers} riskstream alerts "
                "--from-beginning\nCtrl-C stops both."
            )
            process.wait()


_NAMES = {"embedded": "Embedded broker", "kafka": "Apache Kafka"}


def _empty(folder: Path) -> None:
    """Remove an earlier demo's files, and no other file in the folder."""
    for name in ("bundle", "state"):
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)


def _transactions(
    data: Path | None, dataset: str | None, mapping: Path | None, transactions: int, seed: int
) -> TransactionTable:
    if data is not None:
        return read_table(data, dataset, mapping)
    from offline.simulation.simulator import Simulation, simulate
    from stream.cli.output import progress_bar

    with progress_bar("Simulating", transactions) as advance:
        return simulate(Simulation(transactions=transactions, seed=seed), progress=advance)


def _show(console: Any, result: DemoResult, folder: Path, seconds: float) -> None:
    from rich.table import Table

    figures = Table(title="Results of this run", show_header=False, title_justify="left")
    figures.add_column()
    figures.add_column(justify="right")
    figures.add_row("transactions sent", f"{result.transactions:,}")
    figures.add_row("scored", f"{result.scored:,}")
    figures.add_row("lost / decided twice", f"{result.lost:,} / {result.duplicates:,}")
    figures.add_row("dead letters", f"{result.dead_letters:,}")
    figures.add_row("throughput at full speed", f"{result.throughput:,.0f} transactions/s")
    if result.latency is not None:
        latency = result.latency
        figures.add_row(
            "produce to alert, p50 / p99 / p99.9",
            f"{latency.p50:.1f} / {latency.p99:.1f} / {latency.p999:.1f} ms",
        )
    levels = result.alerts_by_level
    figures.add_row(
        f"alerts on the {result.unseen:,} unseen",
        f"{levels['HIGH']:,} HIGH, {levels['MEDIUM']:,} MEDIUM, {levels['LOW']:,} LOW",
    )
    if result.metrics:
        metrics = result.metrics
        figures.add_row("precision / recall, unseen", f"{metrics['precision']:.3f} / {metrics['recall']:.3f}")
        if metrics.get("auc") is not None:
            figures.add_row(
                "AUC / average precision, unseen",
                f"{metrics['auc']:.3f} / {metrics['average_precision']:.3f}",
            )
    console.print()
    console.print(figures)
    if result.top:
        console.print("\n[bold]The five highest alerts[/]")
    for alert in result.top:
        console.print(
            f"[bold]{alert['risk_score']:.4f} {alert['risk_level']}[/]  user {alert['user_id']}, "
            f"transaction {alert['transaction_id']}, {alert['event_time']}",
            highlight=False,
        )
        for reason in alert["reasons"][:3]:
            console.print(f"    {reason['sentence']}", highlight=False)
    console.print(
        f"\nDone in {seconds:.0f} s. Model and worker's log: {folder}. Next: 'riskstream demo --keep', then "
        "'riskstream alerts'; your own data: README, 'Your own data'.",
        highlight=False,
    )
