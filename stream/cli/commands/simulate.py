"""``riskstream simulate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stream.events.fields import MS_PER_DAY

if TYPE_CHECKING:
    from offline.data.table import TransactionTable

__all__ = ["simulate"]


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A .jsonl, .csv or .parquet file; required without --measure.",
)
@click.option("--transactions", type=click.IntRange(min=100), default=100_000, show_default=True)
@click.option("--fraud-rate", type=click.FloatRange(0, 0.5), default=0.02, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=7, show_default=True)
@click.option(
    "--users", type=click.IntRange(min=2), help="Number of users; by default one for every 50 transactions."
)
@click.option("--days", type=click.IntRange(min=2), default=120, show_default=True)
@click.option(
    "--measure", is_flag=True, help="Print how hard the data is: weak baselines next to history features."
)
def simulate(
    *,
    output: Path | None,
    transactions: int,
    fraud_rate: float,
    seed: int,
    users: int | None,
    days: int,
    measure: bool,
) -> None:
    """Make transactions with known frauds, sorted by event time.

    The file has the fields of a transaction, is_fraud and label_time, when the label becomes known.
    The same options give the same bytes.
    """
    if output is None and not measure:
        raise click.UsageError("give --output, --measure, or both")
    from offline.data.writers import check_output, write_table
    from offline.simulation.simulator import Simulation
    from offline.simulation.simulator import simulate as make
    from stream.cli.output import progress_bar

    if output is not None:
        check_output(output)
    simulation = Simulation(
        transactions=transactions, fraud_rate=fraud_rate, seed=seed, users=users, days=days
    )
    with progress_bar("Simulating", transactions) as advance:
        table = make(simulation, progress=advance)
    if output is not None:
        with progress_bar("Writing", transactions) as advance:
            write_table(table, output, progress=advance)
        frauds = 0 if table.is_fraud is None else int((table.is_fraud == 1).sum())
        click.echo(
            f"{output}: {len(table):,} transactions of {len(set(table.user_id.tolist())):,} users, "
            f"{frauds:,} frauds ({frauds / len(table):.2%})"
        )
    if measure:
        _print_difficulty(table)


def _print_difficulty(table: TransactionTable) -> None:
    from rich.console import Console
    from rich.table import Table

    from offline.evaluation.baselines import measure_difficulty

    shown = Table(title="Difficulty, on the last fifth of the rows")
    for heading in ("baseline", "AUC", "average precision"):
        shown.add_column(heading, justify="left" if heading == "baseline" else "right")
    for name, metrics in measure_difficulty(table, allowed_lateness_ms=3 * MS_PER_DAY).items():
        shown.add_row(name, *(_figure(metrics[key]) for key in ("auc", "average_precision")))
    Console().print(shown)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
