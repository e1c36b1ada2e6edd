"""The options that say how to read a file of transactions, shared by every verb that reads one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from stream.errors import ConfigError
from stream.events import parse_event_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from offline.table import TransactionTable

__all__ = ["EVENT_TIME", "data_options", "read_table"]


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--dataset`` and ``--mapping`` to a command."""
    command = click.option(
        "--mapping",
        type=click.Path(path_type=Path, dir_okay=False),
        help="A TOML file that says what the columns of a CSV or Parquet file mean.",
    )(command)
    return click.option("--dataset", help="A mapping that comes along: handbook or bank-ledger.")(command)


def read_table(path: Path, dataset: str | None, mapping: Path | None) -> TransactionTable:
    """Return the transactions of ``path``, read as the options say.

    Raises
    ------
    ConfigError
        Both options are given.
    DataError
        The file or the mapping cannot be read.
    """
    if dataset is not None and mapping is not None:
        raise ConfigError("--dataset and --mapping exclude each other")
    from offline.datasets import read_transactions

    return read_transactions(path, dataset=dataset, mapping=mapping)


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
