"""``riskstream train``."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from stream.cli.options import (
    DURATION,
    EVENT_TIME,
    chosen_profiles,
    data_options,
    imbalance_option,
    profiles_option,
    read_table,
    tell_absent,
)
from stream.cli.output import write_json
from stream.errors import DataError

if TYPE_CHECKING:
    from offline.training.train import TrainingResult

__all__ = ["train"]


_PARTS: Final = ("train", "validation", "test")


@click.command()
@click.option(
    "--data", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Labelled transactions."
)
@data_options
@click.option(
    "--output", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the bundle."
)
@click.option(
    "--train-until",
    type=EVENT_TIME,
    help="Begin the test part at this time (RFC 3339) instead of by --test-fraction.",
)
@click.option(
    "--test-fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of the rows in the test part; 0.2 by default.",
)
@click.option(
    "--validation-fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.15,
    show_default=True,
)
@click.option(
    "--label-delay",
    type=DURATION,
    default="7d",
    show_default=True,
    help="Age at which a label becomes known.",
)
@click.option(
    "--trees", type=click.IntRange(min=1), default=500, show_default=True, help="Maximum number of trees."
)
@click.option("--leaves", type=click.IntRange(min=2), default=31, show_default=True)
@click.option(
    "--precision", type=click.FloatRange(0, 1), help="Choose the threshold for this precision instead of F1."
)
@imbalance_option
@profiles_option
@click.option(
    "--parameters",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Parameters that 'riskstream tune' wrote; overrides --leaves.",
)
@click.option("--seed", type=click.IntRange(min=0), default=7, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--allowed-lateness", type=DURATION, default="3d", show_default=True)
@click.option(
    "--refund-types",
    default="refund,reversal",
    show_default=True,
    help="Transaction types that are refunds: they have a history of their own, like every transaction "
    "with a negative amount. Empty: such types count as payments.",
)
@click.option(
    "--user-ttl",
    type=DURATION,
    default="0s",
    help="A user's history begins anew after this long without a transaction, as the worker's "
    "RISKSTREAM_HISTORY__USER_TTL_DAYS; by default never.",
)
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), help="Write an HTML report about the run."
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the metrics to this JSON file.",
)
def train(
    *,
    data: Path,
    dataset: str | None,
    mapping: Path | None,
    output: Path,
    train_until: int | None,
    test_fraction: float | None,
    validation_fraction: float,
    label_delay: int,
    trees: int,
    leaves: int,
    precision: float | None,
    imbalance: str,
    profiles: str | None,
    parameters: Path | None,
    seed: int,
    threads: int,
    allowed_lateness: int,
    refund_types: str,
    user_ttl: int,
    report: Path | None,
    json_path: Path | None,
) -> None:
    """Train a model and write its bundle.

    The rows are split in the order of time: train, a gap of the label delay, validation, a gap, test.
    The test part is scored once, at the end, and decides nothing.
    """
    if train_until is not None and test_fraction is not None:
        raise click.UsageError("--train-until and --test-fraction exclude each other")
    from dataclasses import replace

    from offline.reporting.model_card import model_card
    from offline.training.imbalance import as_imbalance
    from offline.training.train import TrainingOptions, load_parameters
    from offline.training.train import train as fit
    from stream.cli.output import progress_bar

    options = TrainingOptions(
        train_until_ms=train_until,
        test_fraction=0.2 if test_fraction is None else test_fraction,
        validation_fraction=validation_fraction,
        label_delay_ms=label_delay,
        allowed_lateness_ms=allowed_lateness,
        user_ttl_ms=user_ttl,
        refund_types=tuple(name for text in refund_types.split(",") if (name := text.strip())),
        trees=trees,
        leaves=leaves,
        precision_target=precision,
        imbalance=as_imbalance(imbalance),
        entities=chosen_profiles(profiles, label_delay),
        seed=seed,
        threads=threads,
    )
    tuning = None
    if parameters is not None:
        options = replace(options, **load_parameters(parameters))
        tuning = json.loads(parameters.read_bytes())
    table = read_table(data, dataset, mapping)
    tell_absent(table, options.entities)
    with progress_bar("Features", len(table)) as advance:
        result = fit(table, options, now=datetime.now(UTC), progress=advance)
    try:
        result.bundle.save(output)
        (output / "model-card.md").write_text(model_card(result), encoding="utf-8")
        if report is not None:
            from offline.reporting.report import render_report

            report.write_text(render_report(table, result, tuning=tuning), encoding="utf-8")
    except OSError as error:
        raise DataError(f"the bundle or its metrics cannot be written: {error}") from error
    if json_path is not None:
        write_json(json_path, _figures(result))
    _print_summary(result, output)


def _figures(result: TrainingResult) -> dict[str, Any]:
    bundle = result.bundle
    return {
        "model_version": bundle.model_version,
        "feature_spec": bundle.spec.hash,
        "metrics": bundle.metrics,
        "training": bundle.training,
    }


def _print_summary(result: TrainingResult, output: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    bundle = result.bundle
    console = Console()
    shown = Table(title=f"Model {bundle.model_version}, {bundle.training['trees']} trees")
    shown.add_column("")
    for name in _PARTS:
        shown.add_column(name, justify="right")
    for label, key in (("rows", "rows"), ("frauds", "frauds")):
        shown.add_row(label, *(f"{bundle.training[name][key]:,}" for name in _PARTS))
    for label, key in (("from", "first"), ("to", "last")):
        shown.add_row(label, *(bundle.training[name][key][:16] for name in _PARTS))
    for key in ("auc", "average_precision", "precision", "recall", "f1"):
        figures = (f"{bundle.metrics[name][key]:.3f}" for name in _PARTS[1:])
        shown.add_row(key.replace("_", " "), "-", *figures)
    console.print(shown)
    counts = bundle.metrics["test"]["confusion"]
    console.print(
        f"Threshold {bundle.thresholds.prediction:.3f}, chosen on validation. On test: "
        f"{counts['true_positive']:,} frauds found, {counts['false_negative']:,} missed, "
        f"{counts['false_positive']:,} false alarms."
    )
    console.print(
        "Most important features: " + ", ".join(name for name, gain in result.gains[:8] if gain > 0)
    )
    if bundle.training["invalid_rows"]:
        console.print(
            f"{bundle.training['invalid_rows']:,} rows are not valid transactions and were left out."
        )
    console.print(f"Bundle written to {output}")
    if bundle.spec.entities:
        entities = ", ".join(dict.fromkeys(profile.entity for profile in bundle.spec.entities))
        console.print(
            f"The model uses profiles of {entities}; workers maintain them and read the topic 'labels'."
        )
