"""The options of training, shared by every verb that trains on one split in time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from stream.cli.durations import DURATION

if TYPE_CHECKING:
    from collections.abc import Callable

    from offline.table import TransactionTable
    from offline.train import TrainingOptions
    from stream.features.entities import EntityProfile

__all__ = [
    "chosen_profiles",
    "imbalance_option",
    "profiles_option",
    "split_options",
    "tell_absent",
    "training_options",
]

imbalance_option = click.option(
    "--imbalance", default="none", show_default=True, help="What to do to the training part."
)
profiles_option = click.option(
    "--profiles", help="Profiles of entities: accounts, cards, or a TOML file; none by default."
)


def chosen_profiles(name: str | None, label_delay_ms: int) -> tuple[EntityProfile, ...]:
    """Return what ``--profiles`` means.

    Raises
    ------
    ConfigError
        There are no such profiles, or one is wrong.
    """
    from offline.profiles import load_profiles

    return () if name is None else load_profiles(name, label_delay_days=label_delay_ms / 86_400_000)


def tell_absent(table: TransactionTable, profiles: tuple[EntityProfile, ...]) -> None:
    """Say which profiles are left out, since the file names no such entity."""
    from offline.profiles import present

    for profile in profiles:
        if not present(table, (profile,)):
            click.echo(f"The file names no {profile.entity}: that profile is left out.")


def split_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options whose values :func:`training_options` takes."""
    fraction = click.FloatRange(0, 1, min_open=True, max_open=True)
    for option in (
        click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True),
        click.option("--seed", type=click.IntRange(min=0), default=7, show_default=True),
        click.option("--trees", type=click.IntRange(min=1), default=500, show_default=True, help="At most."),
        imbalance_option,
        profiles_option,
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
    from offline.train import TrainingOptions

    return TrainingOptions(
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        label_delay_ms=label_delay,
        imbalance=as_imbalance(imbalance),
        entities=chosen_profiles(profiles, label_delay),
        trees=trees,
        seed=seed,
        threads=threads,
    )
