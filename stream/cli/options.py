"""Options that several commands share: how to read a file, how to split it, which profiles."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from stream.errors import ConfigError
from stream.events.fields import MS_PER_DAY, parse_event_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from offline.data.table import TransactionTable
    from offline.training.train import TrainingOptions
    from stream.features.profiles.spec import EntityProfile

__all__ = [
    "DURATION",
    "EVENT_TIME",
    "DurationType",
    "chosen_profiles",
    "data_options",
    "imbalance_option",
    "parse_duration",
    "profiles_option",
    "read_table",
    "split_options",
    "tell_absent",
    "training_options",
]


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--dataset`` and ``--mapping`` to a command."""
    command = click.option(
        "--mapping",
        type=click.Path(path_type=Path, dir_okay=False),
        help="A TOML file that maps the columns of a CSV or Parquet file to fields.",
    )(command)
    return click.option("--dataset", help="A mapping that RiskStream ships: handbook or bank-ledger.")(
        command
    )


def read_table(path: Path, dataset: str | None, mapping: Path | None) -> TransactionTable:
    """Return the transactions of ``path``, read with the options.

    Raises
    ------
    ConfigError
        Both options are given.
    DataError
        The file or the mapping cannot be read.
    """
    if dataset is not None and mapping is not None:
        raise ConfigError("--dataset and --mapping exclude each other")
    from offline.data.card_numbers import without_card_numbers
    from offline.data.readers import read_transactions
    from stream.events.card_numbers import CardNumbers
    from stream.settings import load_settings

    settings = load_settings().card_numbers
    table = read_transactions(path, dataset=dataset, mapping=mapping)
    return without_card_numbers(table, CardNumbers(settings.policy, settings.hmac_key()))


class _EventTimeType(click.ParamType):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_event_time(value)
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, ctx)


#: A time with an offset, RFC 3339; its value is milliseconds since the epoch.
EVENT_TIME: Final = _EventTimeType()

_UNIT_MS: Final = {"d": MS_PER_DAY, "h": 3_600_000, "m": 60_000, "s": 1_000}
_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*([dhms])", re.ASCII).fullmatch


def parse_duration(text: str) -> int:
    """Return a duration such as ``3d`` or ``1.5h`` in milliseconds.

    Raises
    ------
    ValueError
        The text is not a number followed by d, h, m or s.
    """
    match = _DURATION(text.strip().lower())
    if match is None:
        msg = f"{text!r} is not a duration such as 3d, 12h, 30m or 45s"
        raise ValueError(msg)
    return round(float(match[1]) * _UNIT_MS[match[2]])


class DurationType(click.ParamType):
    """A click type with a value in milliseconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the milliseconds of ``value``, which may already be such."""
        if isinstance(value, int):
            return value
        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION: Final = DurationType()

imbalance_option = click.option(
    "--imbalance", default="none", show_default=True, help="How to resample the training part."
)

profiles_option = click.option(
    "--profiles", help="Entity profiles: accounts, cards, or a TOML file; none by default."
)


def chosen_profiles(name: str | None, label_delay_ms: int) -> tuple[EntityProfile, ...]:
    """Return the profiles of ``--profiles``.

    Raises
    ------
    ConfigError
        There are no such profiles, or a profile is wrong.
    """
    from offline.training.profiles import load_profiles

    return () if name is None else load_profiles(name, label_delay_days=label_delay_ms / MS_PER_DAY)


def tell_absent(table: TransactionTable, profiles: tuple[EntityProfile, ...]) -> None:
    """Print the profiles that are left out because the file has no such entity."""
    from offline.training.profiles import present

    for profile in profiles:
        if not present(table, (profile,)):
            click.echo(f"The file has no column for {profile.entity}: this profile is left out.")


def split_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of :func:`training_options`."""
    fraction = click.FloatRange(0, 1, min_open=True, max_open=True)
    for option in (
        click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True),
        click.option("--seed", type=click.IntRange(min=0), default=7, show_default=True),
        click.option(
            "--trees",
            type=click.IntRange(min=1),
            default=500,
            show_default=True,
            help="Maximum number of trees.",
        ),
        imbalance_option,
        profiles_option,
        click.option(
            "--label-delay",
            type=DURATION,
            default="7d",
            show_default=True,
            help="Age at which a label becomes known.",
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
    from offline.training.imbalance import as_imbalance
    from offline.training.train import TrainingOptions

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
