"""``riskstream evaluate``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from stream.cli.options import DURATION, data_options, read_table
from stream.cli.output import table_console, write_json

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["evaluate"]


#: Random orders that the ceiling is the mean of.
_ORDERS: Final = 20


class _Day(click.ParamType):
    """A calendar day, YYYY-MM-DD; its value is milliseconds since the epoch of its beginning in UTC."""

    name = "YYYY-MM-DD"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            day = datetime.strptime(value, "%Y-%m-%d").replace(tzinfo=UTC)
        except ValueError:
            self.fail(f"{value!r} is not a day such as 2018-08-08", param, ctx)
        return round(day.timestamp() * 1000)


@click.command()
@click.option(
    "--data", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Labelled transactions."
)
@data_options
@click.option("--first-test-week", required=True, type=_Day(), help="The first day of the first test week.")
@click.option(
    "--folds",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Number of consecutive test weeks.",
)
@click.option(
    "--label-delay",
    type=DURATION,
    default="7d",
    show_default=True,
    help="Age at which a label becomes known.",
)
@click.option("--user-only", is_flag=True, help="Leave out the profiles of merchants and labels.")
@click.option("--imbalance", help="How to resample each training part; by default as the recipe does.")
@click.option(
    "--retrain/--no-retrain", default=True, show_default=True, help="Train a new model for each week."
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the results to this JSON file.",
)
def evaluate(
    *,
    data: Path,
    dataset: str | None,
    mapping: Path | None,
    first_test_week: int,
    folds: int,
    label_delay: int,
    user_only: bool,
    imbalance: str | None,
    retrain: bool,
    threads: int,
    json_path: Path | None,
) -> None:
    """Evaluate the shipped recipe week after week, each time with the labels known by then.

    The protocol is the Fraud Detection Handbook's: the model of a test week learns from transactions whose
    labels were known before the week began, and leaves out users whose card was known to be compromised. For
    the handbook's data the command also prints the ceiling of an oracle that knows the fraud scenarios: the
    mean over 20 random orders of transactions that the oracle cannot tell apart.
    """
    from dataclasses import replace

    from offline.data.readers import read_scenarios
    from offline.evaluation.prequential import Protocol, evaluate_weeks, knowledge_scores, weekly_features
    from offline.training.imbalance import as_imbalance
    from offline.training.recipes import CARDS
    from stream.cli.output import progress_bar

    recipe = CARDS if imbalance is None else replace(CARDS, imbalance=as_imbalance(imbalance))
    if user_only:
        recipe = replace(recipe, name="user-only", entities=())
    protocol = Protocol(first_test_week, folds, label_delay_ms=label_delay, retrain=retrain)
    table = read_table(data, dataset, mapping)
    scenario = read_scenarios(data, dataset=dataset, mapping=mapping)
    ceiling = []
    if dataset == "handbook" and scenario is not None:
        ceiling = [knowledge_scores(table, scenario, label_delay, seed=seed) for seed in range(_ORDERS)]
    with progress_bar("Features", len(table)) as advance:
        features = weekly_features(table, recipe, protocol, progress=advance)
    with progress_bar("Weeks", folds) as advance:
        result = evaluate_weeks(
            table,
            recipe,
            protocol,
            scenario=scenario,
            ceiling=ceiling,
            threads=threads,
            features=features,
            progress=advance,
        )
    if json_path is not None:
        write_json(json_path, result)
    _print_summary(result, click.echo)


def _print_summary(result: dict[str, Any], echo: Callable[[str], None]) -> None:
    from rich.table import Table

    shown = Table(title=f"Recipe {result['config']['recipe']['name']}, by week")
    for name in (
        "week",
        "AUC",
        "average precision",
        "card precision@100",
        "maximum possible",
        "frauds",
        "learnt from",
    ):
        shown.add_column(name, justify="left" if name == "week" else "right")
    keys = ("auc", "average_precision", "card_precision_100", "card_precision_100_ceiling")
    for fold in result["folds"]:
        shown.add_row(
            fold["week"],
            *(f"{fold[key]:.4f}" for key in keys),
            f"{fold['frauds']:,}",
            f"{fold['training_frauds']:,}",
        )
    shown.add_section()
    shown.add_row("mean", *(f"{result['mean'][key]:.4f}" for key in keys))
    shown.add_row("std", *(f"{result['std'][key]:.4f}" for key in keys))
    if "knowledge_ceiling" in result:
        shown.add_row("ceiling", *(f"{result['knowledge_ceiling'][key]:.4f}" for key in keys))
    table_console().print(shown)
    if result["mean"]["recall_by_scenario"]:
        parts = ", ".join(
            f"{kind}: {value:.3f}" for kind, value in result["mean"]["recall_by_scenario"].items()
        )
        rate = result["config"]["recall_by_scenario_at_false_positive_rate"]
        echo(f"Recall by scenario at a false-positive rate of {rate:.0%}: {parts}")
