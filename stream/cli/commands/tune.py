"""``riskstream tune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stream.cli.options import data_options, read_table, split_options, training_options
from stream.cli.output import write_json

if TYPE_CHECKING:
    from offline.training.tune import Objective

__all__ = ["tune"]


@click.command()
@click.option(
    "--data", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Labelled transactions."
)
@data_options
@split_options
@click.option("--trials", type=click.IntRange(min=1), default=30, show_default=True, help="Number of trials.")
@click.option(
    "--study",
    type=click.Path(path_type=Path, dir_okay=False),
    help="An SQLite file that stores the study; a second run continues it.",
)
@click.option(
    "--objective",
    type=click.Choice(["average-precision", "money"]),
    default="average-precision",
    show_default=True,
    help="money: the saved share of the frauds' amounts, minus the cost of alerts.",
)
@click.option(
    "--review-cost",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="Cost of reviewing an alert.",
)
@click.option(
    "--size-price",
    type=click.FloatRange(min=0),
    default=0.005,
    show_default=True,
    help="Gain of the objective that 10,000 leaves must bring.",
)
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the parameters to this JSON file.",
)
def tune(
    *,
    data: Path,
    dataset: str | None,
    mapping: Path | None,
    trials: int,
    study: Path | None,
    objective: Objective,
    review_cost: float,
    size_price: float,
    output: Path,
    **split: Any,
) -> None:
    """Search for better parameters than the shipped ones, by the validation part.

    The search never reads the test part. Pass its result to 'riskstream train --parameters', with the same
    options for the split.
    """
    options = training_options(**split)
    from dataclasses import fields

    from offline.training.tune import Tuning
    from offline.training.tune import tune as look
    from stream.cli.output import progress_bar

    table = read_table(data, dataset, mapping)
    with progress_bar("Trials", trials) as advance:
        tuning = Tuning(trials, study, size_price, objective, review_cost)
        found = look(table, options, tuning, progress=advance)
    chosen = {
        item.name: getattr(found.options, item.name)
        for item in fields(found.options)
        if getattr(found.options, item.name) != getattr(options, item.name)
    }
    value = {
        "parameters": chosen,
        "validation": {"average_precision": found.average_precision, "leaves": found.leaves},
        "trials": {"finished": found.trials, "pruned": found.pruned},
        "seed": options.seed,
        "study": {
            "objective": objective,
            "value": found.objective,
            "trials": found.history,
            "importances": found.importances,
        },
    }
    write_json(output, value)
    click.echo(
        f"{found.trials} trials finished, {found.pruned} pruned. Best on validation: average "
        f"precision {found.average_precision:.4f} with {found.leaves:,} leaves. Written to "
        f"{output}"
    )
