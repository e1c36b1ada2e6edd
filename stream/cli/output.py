"""Figures of a command as a JSON file, the same for every verb that judges something."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stream.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["progress_bar", "table_console", "write_json"]


#: Columns of a table in a file, which has no width of its own.
_FILE_WIDTH: Final = 160


def table_console() -> Console:
    """Return the console for wide tables: as wide as the terminal, or wide enough in a file."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_FILE_WIDTH)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file for people to read.

    Raises
    ------
    DataError
        It cannot be written.
    """
    import orjson

    try:
        path.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}") from error


@contextmanager
def progress_bar(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar while the block runs; the value is called with how much was done since the last call."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(text, total=total)
        yield lambda done: progress.advance(task, done)
