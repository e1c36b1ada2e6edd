"""The documentation of every setting, as texts, for ``riskstream settings --describe``."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args, get_origin

from pydantic import SecretStr

from stream.settings import Settings, setting_fields

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

__all__ = ["SettingReference", "setting_references"]


class SettingReference(NamedTuple):
    """The documentation of a setting, as texts.

    Attributes
    ----------
    section
        Name of the section, empty for top-level settings.
    default
        Empty if there is no default value.
    """

    section: str
    variable: str
    kind: str
    default: str
    description: str


_KINDS: Final[dict[Any, str]] = {
    bool: "true or false",
    float: "number",
    int: "integer",
    str: "text",
    Path: "path",
    SecretStr: "secret",
    date: "date",
}


def setting_references() -> list[SettingReference]:
    """Return the documentation of every setting, in the order of the models."""
    return [
        SettingReference(section, variable, _kind(field), _default(field), field.description or "")
        for section, variable, field in setting_fields(Settings)
    ]


def _kind(field: FieldInfo) -> str:
    """Return a field's type and bounds as text."""
    annotation: Any = field.annotation
    if get_origin(annotation) is UnionType:  # ``X | None``
        [annotation] = (part for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is Literal:
        return ", ".join(get_args(annotation))
    signs = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
    bounds = [
        f"{sign} {getattr(item, name):,}"
        for name, sign in signs
        for item in field.metadata
        if hasattr(item, name)
    ]
    return ", ".join([_KINDS[annotation], *bounds])


def _default(field: FieldInfo) -> str:
    """Return a field's default as an environment variable would contain it."""
    value = field.default
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
