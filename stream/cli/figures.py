"""Figures of a command as a JSON file, the same for every verb that judges something."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stream.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["write_json"]


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
