"""``riskstream compare-models``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from stream.cli.data_options import data_options, read_table
from stream.cli.figures import write_json
from stream.cli.split_options import split_options, training_options

__all__ = ["compare_models"]

_SHOWN: Final = (
    ("AUC", "auc"),
    ("AP", "average_precision"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("F1", "f1"),
    ("recall at 1 % FPR", "recall_at_1_percent_false_positives"),
    ("card p@100", "card_precision_100"),
)


@click.command("compare-models")
@click.option(
    "--data", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Labelled transactions."
)
@data_options
@split_options
@click.option(
    "--trials", type=click.IntRange(min=1), default=30, show_default=True, help="Of the tuned model."
)
@click.option(
    "--bootstrap",
    type=click.IntRange(min=0),
    default=200,
    show_default=True,
    help="Samples of users for the confidence intervals.",
)
@click.option(
    "--review-cost",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="Of looking at one alert; a missed fraud costs its amount.",
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here too."
)
def compare_models(
    *,
    data: Path,
    dataset: str | None,
    mapping: Path | None,
    trials: int,
    bootstrap: int,
    review_cost: float,
    json_path: Path | None,
    **split: Any,
) -> None:
    """Judge several models on one split in time, alike: what history, tuning and resampling are worth.

    Thresholds and the number of trees are chosen on the validation part; each scores the test part once.
    """
    options = training_options(**split)
    from offline.compare import MODELS, Comparison
    from offline.compare import compare_models as compare
    from stream.cli.progress import progress_bar

    table = read_table(data, dataset, mapping)
    with progress_bar("Models", len(MODELS)) as advance:
        result = compare(table, Comparison(options, bootstrap, review_cost, trials), progress=advance)
    if json_path is not None:
        write_json(json_path, result)
    _print(result)


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=f"Test part: {result['config']['rows']['test']:,} rows")
    shown.add_column("model")
    for name in (*(name for name, _ in _SHOWN), "AUC 95 %", "AP 95 %", "cost", "training s", "µs a score"):
        shown.add_column(name, justify="right")
    for name, figures in result["models"].items():
        intervals = (
            "-".join(f"{edge:.3f}" for edge in figures["confidence"].get(key, ()))
            for key in ("auc", "average_precision")
        )
        shown.add_row(
            name,
            *(f"{figures[key]:.3f}" for _, key in _SHOWN),
            *intervals,
            f"{figures['expected_cost']:,.0f}",
            f"{figures['training_seconds']:.1f}",
            f"{figures['score_microseconds']:.1f}",
        )
    Console(width=None if Console().is_terminal else 200).print(shown)
