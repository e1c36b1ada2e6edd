"""``riskstream compare-models``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from stream.cli.options import data_options, read_table, split_options, training_options
from stream.cli.output import table_console, write_json

__all__ = ["compare_models"]

#: A row each: text, the figure's name, its format.
_SHOWN: Final = (
    ("AUC", "auc", ".3f"),
    ("average precision", "average_precision", ".3f"),
    ("recall", "recall", ".3f"),
    ("precision", "precision", ".3f"),
    ("F1", "f1", ".3f"),
    ("recall at 1 % false positives", "recall_at_1_percent_false_positives", ".3f"),
    ("precision at 85 % recall", "precision_at_recall_85_percent", ".3f"),
    ("card precision@100", "card_precision_100", ".3f"),
    ("expected cost", "expected_cost", ",.0f"),
    ("training, s", "training_seconds", ".1f"),
    ("µs per score", "score_microseconds", ".2f"),
)

_CONFUSION: Final = (
    ("frauds found", "true_positive"),
    ("frauds missed", "false_negative"),
    ("false alarms", "false_positive"),
    ("true negatives", "true_negative"),
)


@click.command("compare-models")
@click.option(
    "--data", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Labelled transactions."
)
@data_options
@split_options
@click.option(
    "--trials", type=click.IntRange(min=1), default=30, show_default=True, help="Trials of the tuned model."
)
@click.option(
    "--bootstrap",
    type=click.IntRange(min=0),
    default=200,
    show_default=True,
    help="Bootstrap samples of users for the confidence intervals.",
)
@click.option(
    "--precision", type=click.FloatRange(0, 1), help="Choose the thresholds for this precision instead of F1."
)
@click.option(
    "--review-cost",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="Cost of reviewing an alert; a missed fraud costs its amount.",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the results to this JSON file.",
)
def compare_models(
    *,
    data: Path,
    dataset: str | None,
    mapping: Path | None,
    trials: int,
    bootstrap: int,
    precision: float | None,
    review_cost: float,
    json_path: Path | None,
    **split: Any,
) -> None:
    """Compare several models on one split in time: the value of history, tuning and resampling.

    The validation part chooses thresholds and the number of trees; each model scores the test part once.
    """
    options = training_options(**split)
    from offline.evaluation.compare import MODELS, Comparison
    from offline.evaluation.compare import compare_models as compare
    from stream.cli.output import progress_bar

    table = read_table(data, dataset, mapping)
    with progress_bar("Models", len(MODELS)) as advance:
        result = compare(
            table, Comparison(options, bootstrap, review_cost, trials, precision), progress=advance
        )
    if json_path is not None:
        write_json(json_path, result)
    _print(result)


def _print(result: dict[str, Any]) -> None:
    from rich.table import Table

    console = table_console()
    models = result["models"]
    shown = Table(title=f"Test part: {result['config']['rows']['test']:,} rows")
    shown.add_column("")
    for name in models:
        shown.add_column(name, justify="right")
    for text, key, form in _SHOWN:
        shown.add_row(text, *(format(figures[key], form) for figures in models.values()))
        if all(key in figures["confidence"] for figures in models.values()):
            edges = (figures["confidence"][key] for figures in models.values())
            shown.add_row(
                "  95 % interval, users resampled", *(f"{low:.3f}-{high:.3f}" for low, high in edges)
            )
    shown.add_section()
    for text, key in _CONFUSION:
        shown.add_row(text, *(f"{figures['confusion'][key]:,}" for figures in models.values()))
    console.print(shown)
    nothing = next(iter(models.values()))["cost_of_doing_nothing"]
    console.print(
        f"Without alerts the cost is {nothing:,.0f}; a review costs {result['config']['review_cost']:g}."
    )
