"""Mappings: which column of a file, or which member of a message, is which field of a transaction.

A mapping is a TOML file. Every key is checked; an unknown key is an error that names it::

    never = ["SCENARIO"]                # columns that no feature may ever read

    [columns]                           # Transaction field = the file's column
    transaction_id = "ID"
    user_id = "CUSTOMER"
    event_time = "WHEN"
    amount = "AMOUNT"

    [constants]                         # Transaction field = one text for every row
    currency = "EUR"
    channel = "card"
    transaction_type = "purchase"

    [time]
    format = "iso"                      # iso, epoch_s, epoch_ms, offset, or a strptime format
    zone = "UTC"                        # needed for times without an offset
    # unit = "seconds"                  # with format = "offset": since origin, in ms, seconds or days
    # origin = "2018-04-01T00:00:00Z"

    [label]
    column = "FRAUD"
    fraud = ["1"]
    legitimate = ["0"]
    delay_days = 7.0                    # or time_column = "KNOWN_AT"
    scenario_column = "SCENARIO"        # the kind of fraud, for reports only; never a feature

    [attributes]                        # additional features: name = the file's column
    numeric = { velocity = "VELOCITY" }
    categorical = { region = "REGION" }
"""

from __future__ import annotations

import tomllib
import zoneinfo
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stream.errors import DataError
from stream.events.fields import parse_event_time

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "REQUIRED_FIELDS",
    "AttributeColumns",
    "ColumnMapping",
    "LabelColumns",
    "TimeFormat",
    "load_mapping",
    "parse_mapping",
]


#: Transaction fields without which a row is no transaction.
REQUIRED_FIELDS: Final = (
    "transaction_id",
    "user_id",
    "event_time",
    "amount",
    "currency",
    "channel",
    "transaction_type",
)

_FieldName = Literal[
    "transaction_id",
    "user_id",
    "event_time",
    "amount",
    "currency",
    "channel",
    "transaction_type",
    "pre_balance",
    "post_balance",
    "merchant_id",
    "card_id",
    "device_id",
    "ip",
    "country",
]

_ConstantName = Literal["currency", "channel", "transaction_type", "country"]
_Column = Annotated[str, Field(min_length=1)]
_AttributeName = Annotated[str, Field(min_length=1, max_length=64)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TimeFormat(_Part):
    """How the file writes event times; columns that are timestamps already only need the zone."""

    format: str = Field(
        default="iso", description="iso, epoch_s, epoch_ms, offset, or a strptime format with a %"
    )
    zone: str | None = Field(default=None, description="IANA zone of times that carry no offset")
    unit: Literal["ms", "seconds", "days"] | None = Field(default=None, description="With format offset")
    origin: str | None = Field(default=None, description="With format offset: RFC 3339 with an offset")

    @model_validator(mode="after")
    def _check(self) -> TimeFormat:
        if self.format not in ("iso", "epoch_s", "epoch_ms", "offset") and "%" not in self.format:
            msg = "format must be iso, epoch_s, epoch_ms, offset or a strptime format such as %d.%m.%Y %H:%M"
            raise ValueError(msg)
        if self.zone is not None:
            try:
                zoneinfo.ZoneInfo(self.zone)
            except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
                msg = f"zone {self.zone!r} is not an IANA time zone such as UTC or Europe/Brussels"
                raise ValueError(msg) from error
        if (self.format == "offset") != (self.unit is not None and self.origin is not None):
            msg = "format offset requires unit and origin, and no other format accepts them"
            raise ValueError(msg)
        if self.origin is not None:
            parse_event_time(self.origin)
        return self


class LabelColumns(_Part):
    """Where the truth stands, and when it becomes known."""

    column: _Column
    fraud: tuple[str, ...] = Field(default=("1", "true"), strict=False, description="Texts that mean fraud")
    legitimate: tuple[str, ...] = Field(
        default=("0", "false"), strict=False, description="Texts that mean legitimate"
    )
    delay_days: float | None = Field(
        default=None, ge=0, strict=False, description="Delay after the event at which the label becomes known"
    )
    time_column: _Column | None = Field(
        default=None, description="Column with the time at which the label becomes known"
    )
    scenario_column: _Column | None = Field(
        default=None, description="Column with the kind of fraud, for reports only"
    )

    @model_validator(mode="after")
    def _check(self) -> LabelColumns:
        if self.delay_days is not None and self.time_column is not None:
            msg = "delay_days and time_column exclude each other"
            raise ValueError(msg)
        return self


class AttributeColumns(_Part):
    """Further columns that become features: attribute's name = the file's column."""

    numeric: dict[_AttributeName, _Column] = Field(default_factory=dict)
    categorical: dict[_AttributeName, _Column] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> AttributeColumns:
        both = sorted(self.numeric.keys() & self.categorical.keys())
        if both:
            msg = f"{both[0]} is both numeric and categorical"
            raise ValueError(msg)
        return self


class ColumnMapping(_Part):
    """A file format, see the module's docstring."""

    columns: dict[_FieldName, _Column]
    constants: dict[_ConstantName, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)
    time: TimeFormat = Field(default_factory=TimeFormat)
    label: LabelColumns | None = None
    attributes: AttributeColumns = Field(default_factory=AttributeColumns)
    never: tuple[_Column, ...] = Field(
        default=(), strict=False, description="Columns that no feature may read"
    )

    @model_validator(mode="after")
    def _check(self) -> ColumnMapping:
        for name in REQUIRED_FIELDS:
            if name not in self.columns and name not in self.constants:
                where = (
                    "columns or constants"
                    if name in ("currency", "channel", "transaction_type")
                    else "columns"
                )
                msg = f"{name} is required: name it in {where}"
                raise ValueError(msg)
        for name in self.constants:
            if name in self.columns:
                msg = f"{name} is in both columns and constants"
                raise ValueError(msg)
        inputs = {
            **{column: name for name, column in self.columns.items()},
            **{column: f"attribute {name}" for name, column in self.attributes.numeric.items()},
            **{column: f"attribute {name}" for name, column in self.attributes.categorical.items()},
        }
        labels = [] if self.label is None else [self.label.column, self.label.time_column]
        for column in [*labels, None if self.label is None else self.label.scenario_column]:
            if column in inputs:
                msg = f"column {column} contains the label and cannot also be the {inputs[column]}"
                raise ValueError(msg)
        for column in self.never:
            if column in inputs or column in labels:
                msg = f"column {column} is listed in never and must not be mapped"
                raise ValueError(msg)
        return self

    def used_columns(self) -> tuple[str, ...]:
        """Return every column of the file that is read, once each."""
        used = [
            *self.columns.values(),
            *self.attributes.numeric.values(),
            *self.attributes.categorical.values(),
        ]
        if self.label is not None:
            used.append(self.label.column)
            if self.label.time_column is not None:
                used.append(self.label.time_column)
        return tuple(dict.fromkeys(used))


def parse_mapping(text: str, name: str) -> ColumnMapping:
    """Return the mapping that a TOML text holds; ``name`` is for the error.

    Raises
    ------
    DataError
        Not TOML, or a key is unknown, missing or wrong; the text names the key.
    """
    try:
        return ColumnMapping.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"mapping {name} is not TOML: {error}") from error
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False, include_input=False):
            key = ".".join(str(part) for part in item["loc"] if part != "[key]")
            reason = "unknown key" if item["type"] == "extra_forbidden" else item["msg"]
            if "[key]" in item["loc"]:
                reason = f"unknown key ({reason})"
            reason = reason.removeprefix("Value error, ")
            problems.append(f"{key}: {reason}" if key else reason)
        raise DataError(f"mapping {name}: {'; '.join(problems)}") from error


def load_mapping(path: Path) -> ColumnMapping:
    """Return the mapping in the file ``path``.

    Raises
    ------
    DataError
        The file cannot be read, or see :func:`parse_mapping`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise DataError(f"mapping {path} cannot be read: {error}") from error
    return parse_mapping(text, str(path))
