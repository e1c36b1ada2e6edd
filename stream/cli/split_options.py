"""The options that say how a file is split in time, shared by every verb that trains on one split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from stream.cli.durations import DURATION

if TYPE_CHECKING:
    from collections.abc import Callable

    from offline.train import TrainingOptions

__all__ = ["split_options", "training_options"]


def split_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options whose values :func:`training_options` takes."""
    fraction = click.FloatRange(0, 1, min_open=True, max_open=True)
    for option in (
        click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True),
        click.option("--seed", type=click.IntRange(min=0), default=7, show_default=True),
        click.option("--trees", type=click.IntRange(min=1), default=500, show_default=True, help="At most."),
        click.option(
            "--imbalance", default="none", show_default=True, help="What to do to the training part."
        ),
        click.option(
            "--profiles",
            help="Profiles of entities: accounts, cards, or a TOML file; none by default.",
        ),
        click.option(
            "--label-delay",
            type=DURATION,
            default="7d",
            show_default=True,
            help="Labels younger than this are not known.",
        ),
        click.option("--validation-fraction", type=fraction, default=0.15, show_default=True),
        click.option("--test-fraction", type=fraction, default=0.2, show_default=True),
    ):
        command = option(command)
    return command


def training_options(
    *,
    test_fraction: float,
    validation_fraction: float,
    label_delay: int,
    profiles: str | None,
    imbalance: str,
    trees: int,
    seed: int,
    threads: int,
) -> TrainingOptions:
    """Return the training options that the command line's mean.

    Raises
    ------
    ConfigError
        They contradict each other, or the imbalance is unknown.
    """
    from offline.imbalance import as_imbalance
    from offline.profiles import load_profiles
    from offline.train import TrainingOptions

    delay_days = label_delay / 86_400_000
    return TrainingOptions(
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        label_delay_ms=label_delay,
        imbalance=as_imbalance(imbalance),
        entities=() if profiles is None else load_profiles(profiles, label_delay_days=delay_days),
        trees=trees,
        seed=seed,
        threads=threads,
    )
