"""The exported schemas are the code's, and a change that breaks somebody is noticed."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any, Literal

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from stream.cli.commands.schemas import EVENTS, build_schemas, schemas, to_text
from stream.errors import ConfigError
from stream.events.compatibility import breaking_changes
from stream.events.models import DeadLetterHeader
from support.paths import SCHEMAS

if TYPE_CHECKING:
    from pathlib import Path

Document = dict[str, Any]


def committed(name: str) -> Document:
    document: Document = json.loads((SCHEMAS / name).read_text(encoding="utf-8"))
    return document


@pytest.mark.parametrize("name", sorted(build_schemas()))
def test_the_committed_schema_is_what_the_code_exports(name: str) -> None:
    assert (SCHEMAS / name).read_text(encoding="utf-8") == to_text(build_schemas()[name]), (
        "run 'riskstream schemas' and commit docs/reference/schemas"
    )


def test_nothing_else_lies_there() -> None:
    assert {path.name for path in SCHEMAS.iterdir()} == set(build_schemas())


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_the_code_breaks_nobody_who_goes_by_the_committed_schema(name: str) -> None:
    assert breaking_changes(committed(name), build_schemas()[name], EVENTS[name][1]) == []


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_each_schema_is_valid_json_schema(name: str) -> None:
    Draft202012Validator.check_schema(committed(name))


def test_every_dead_letter_header_is_described() -> None:
    headers = committed("dead-letter-headers.json")["headers"]
    assert set(headers) == {header.value for header in DeadLetterHeader}
    assert all(headers.values())


# --- the checker itself, on doctored schemas -----------------------------------------------------------

Path_ = tuple[str, ...]


def doctored(name: str, path: Path_, value: object) -> Document:
    """The committed schema with one member set; ``...`` removes it."""
    document = copy.deepcopy(committed(name))
    at: Any = document
    for step in path[:-1]:
        at = at[int(step)] if isinstance(at, list) else at[step]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return document


def field(name: str, *more: str) -> Path_:
    return ("properties", name, *more)


LABEL_REQUIRED = ["event_time", "is_fraud", "label_time", "transaction_id", "user_id"]

BREAKS_PRODUCERS: list[tuple[str, Path_, object, str]] = [
    ("label.json", ("required",), [*LABEL_REQUIRED, "source"], r"\$\.source: is required"),
    ("transaction.json", field("memo"), ..., r"\$\.memo: is no longer accepted"),
    (
        "transaction.json",
        field("user_id", "type"),
        "integer",
        r"\$\.user_id: the type changes from string to integer",
    ),
    ("transaction.json", field("user_id", "minLength"), 2, r"\$\.user_id: minLength"),
    ("transaction.json", field("user_id", "maxLength"), 64, r"\$\.user_id: maxLength"),
    ("transaction.json", field("currency", "pattern"), "^EUR$", r"\$\.currency: pattern"),
    ("transaction.json", field("currency", "enum"), ["EUR"], r"\$\.currency: any value is not among"),
    (
        "transaction.json",
        field("event_time", "anyOf"),
        [{"type": "string", "format": "date-time"}],
        "integer",
    ),
    ("transaction.json", field("event_time", "anyOf", "1", "minimum"), 5, r"\$\.event_time: minimum"),
    ("transaction.json", field("amount", "anyOf", "0", "maximum"), 100, r"\$\.amount: maximum"),
    (
        "transaction.json",
        field("pre_balance", "anyOf"),
        [{"type": "number"}, {"type": "null"}],
        r"\$\.pre_balance: the type changes",
    ),
    (
        "transaction.json",
        field("attributes", "anyOf", "0", "maxProperties"),
        8,
        r"\$\.attributes: maxProperties",
    ),
    (
        "transaction.json",
        field("attributes", "anyOf", "0", "additionalProperties", "type"),
        ["number"],
        r"\$\.attributes\[\]: the type changes from string to number",
    ),
    ("transaction.json", ("additionalProperties",), False, "additional fields are rejected"),
]

BREAKS_CONSUMERS: list[tuple[str, Path_, object, str]] = [
    ("alert.json", field("reasons"), ..., r"\$\.reasons: is no longer sent"),
    ("decision.json", field("features"), ..., r"\$\.features: is no longer sent"),
    (
        "alert.json",
        field("risk_score", "type"),
        "string",
        r"\$\.risk_score: the type changes from number to string",
    ),
    (
        "alert.json",
        field("prediction", "type"),
        "number",
        r"\$\.prediction: the type changes from integer to number",
    ),
    ("alert.json", field("risk_score", "maximum"), 100, r"\$\.risk_score: maximum"),
    ("alert.json", field("risk_score", "maximum"), ..., r"\$\.risk_score: maximum"),
    ("alert.json", field("event_time", "format"), ..., r"\$\.event_time: format"),
    (
        "alert.json",
        field("event_time"),
        {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]},
        r"\$\.event_time: the type changes from string to null",
    ),
    (
        "alert.json",
        ("$defs", "RiskLevel", "enum"),
        ["HIGH", "MEDIUM", "LOW", "ODD"],
        r"\$\.risk_level: 'ODD' is not among the known values",
    ),
    (
        "alert.json",
        ("$defs", "Reason", "properties", "sentence"),
        ...,
        r"\$\.reasons\[\]\.sentence: is no longer",
    ),
    (
        "alert.json",
        ("$defs", "Reason", "required"),
        ["contribution", "value", "sentence"],
        r"\$\.reasons\[\]\.feature: is required",
    ),
]

HARMLESS: list[tuple[str, Path_, object]] = [
    ("transaction.json", field("branch"), {"type": "string"}),
    ("transaction.json", ("required",), ["user_id"]),
    ("transaction.json", field("user_id", "maxLength"), 512),
    ("transaction.json", field("user_id", "description"), "Somebody"),
    ("transaction.json", field("currency", "pattern"), ...),
    ("transaction.json", field("attributes", "anyOf", "0", "maxProperties"), 128),
    ("label.json", field("is_fraud"), {"type": ["boolean", "string"]}),
    ("alert.json", field("note"), {"type": "string"}),
    ("alert.json", field("risk_score", "minimum"), 0.5),
    ("alert.json", field("risk_score", "type"), "integer"),
    ("alert.json", ("$defs", "RiskLevel", "enum"), ["HIGH", "MEDIUM"]),
    ("alert.json", ("$defs", "Reason", "properties", "rank"), {"type": "integer"}),
    ("decision.json", field("alert_id"), {"type": "string"}),
]


@pytest.mark.parametrize(("name", "path", "value", "expected"), BREAKS_PRODUCERS)
def test_what_breaks_producers_is_found(name: str, path: Path_, value: object, expected: str) -> None:
    assert_one(committed(name), doctored(name, path, value), "producer", expected)


@pytest.mark.parametrize(("name", "path", "value", "expected"), BREAKS_CONSUMERS)
def test_what_breaks_consumers_is_found(name: str, path: Path_, value: object, expected: str) -> None:
    assert_one(committed(name), doctored(name, path, value), "consumer", expected)


def assert_one(old: Document, new: Document, side: Literal["producer", "consumer"], expected: str) -> None:
    import re

    problems = breaking_changes(old, new, side)
    assert problems
    assert any(re.search(expected, problem) for problem in problems), problems
    assert len(problems) == 1, problems


def test_an_enum_value_that_is_removed_breaks_producers() -> None:
    old = {"type": "object", "properties": {"kind": {"type": "string", "enum": ["a", "b"]}}}
    new = {"type": "object", "properties": {"kind": {"type": "string", "enum": ["a"]}}}
    assert breaking_changes(old, new, "producer") == ["$.kind: 'b' is not among the known values"]
    assert breaking_changes(new, old, "producer") == []


@pytest.mark.parametrize(("name", "path", "value"), HARMLESS)
def test_what_breaks_nobody_passes(name: str, path: Path_, value: object) -> None:
    assert breaking_changes(committed(name), doctored(name, path, value), EVENTS[name][1]) == []


# --- the command ---------------------------------------------------------------------------------------


def test_the_command_writes_every_file_the_same_each_time(tmp_path: Path) -> None:
    for _ in range(2):
        result = CliRunner().invoke(schemas, ["--output", str(tmp_path)])
        assert result.exit_code == 0, result.output
        for name, document in build_schemas().items():
            assert (tmp_path / name).read_text(encoding="utf-8") == to_text(document)


def test_the_command_refuses_a_breaking_change_unless_told(tmp_path: Path) -> None:
    published = doctored("alert.json", field("colour"), {"type": "string"})
    (tmp_path / "alert.json").write_text(to_text(published), encoding="utf-8")
    result = CliRunner().invoke(schemas, ["--output", str(tmp_path)])
    assert isinstance(result.exception, ConfigError)
    assert "alert.json $.colour: is no longer sent" in str(result.exception)
    assert json.loads((tmp_path / "alert.json").read_text(encoding="utf-8")) == published
    assert CliRunner().invoke(schemas, ["--output", str(tmp_path), "--allow-breaking"]).exit_code == 0
    assert "colour" not in (tmp_path / "alert.json").read_text(encoding="utf-8")
