"""The mappings of file formats that come along."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from stream.errors import DataError
from stream.events.mapping import parse_mapping

if TYPE_CHECKING:
    from stream.events.mapping import ColumnMapping

__all__ = ["shipped_mapping", "shipped_mappings"]


def shipped_mappings() -> tuple[str, ...]:
    """Return the names of the mappings that come along."""
    folder = resources.files("offline") / "mappings"
    return tuple(
        sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))
    )


def shipped_mapping(dataset: str) -> ColumnMapping:
    """Return a shipped mapping by name.

    Raises
    ------
    DataError
        No mapping has that name; the text lists the names.
    """
    if dataset not in shipped_mappings():
        raise DataError(
            f"unknown dataset {dataset!r}; the shipped ones are {', '.join(shipped_mappings())}; "
            "for another format, write a mapping and pass it with --mapping"
        )
    text = (resources.files("offline") / "mappings" / f"{dataset}.toml").read_text(encoding="utf-8")
    return parse_mapping(text, dataset)
