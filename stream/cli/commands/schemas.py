"""``riskstream schemas``: the events as JSON Schemas, for those who write producers and consumers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

import click

from stream.errors import ConfigError
from stream.events.compatibility import breaking_changes
from stream.events.models import Alert, DeadLetterHeader, Decision, Label, Transaction

__all__ = ["EVENTS", "build_schemas", "schemas", "to_text"]

Side = Literal["producer", "consumer"]

#: File name -> (model, the side whose documents the schema describes).
EVENTS: Final[dict[str, tuple[type[Transaction | Label | Alert | Decision], Side]]] = {
    "transaction.json": (Transaction, "producer"),
    "label.json": (Label, "producer"),
    "alert.json": (Alert, "consumer"),
    "decision.json": (Decision, "consumer"),
}

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

_HEADERS: Final[dict[DeadLetterHeader, str]] = {
    DeadLetterHeader.EXCEPTION: "Name of the error's class",
    DeadLetterHeader.MESSAGE: "The error's text, one line",
    DeadLetterHeader.TOPIC: "Topic that the record came from",
    DeadLetterHeader.PARTITION: "Partition that the record came from, a decimal number",
    DeadLetterHeader.OFFSET: "The record's offset there, a decimal number",
    DeadLetterHeader.FIELD: "JSON name of the offending field; $ for the record as a whole",
    DeadLetterHeader.REASON: "Why the field was rejected",
    DeadLetterHeader.TIMESTAMP: "When the record was rejected, RFC 3339 in UTC",
}


def build_schemas() -> dict[str, dict[str, Any]]:
    """Return every document by its file name.

    Transactions and labels are described as they are taken, alerts and decisions as they are sent.
    """
    documents: dict[str, dict[str, Any]] = {}
    for name, (model, side) in EVENTS.items():
        mode: Literal["validation", "serialization"] = "validation" if side == "producer" else "serialization"
        documents[name] = {"$schema": _DIALECT, **model.model_json_schema(mode=mode)}
    documents["dead-letter-headers.json"] = {
        "description": "Headers of a record on the dead-letter topic, UTF-8 text; key and value are the "
        "bytes received",
        "headers": {header.value: _HEADERS[header] for header in DeadLetterHeader},
    }
    return documents


def to_text(document: dict[str, Any]) -> str:
    """Return a document as it is written: sorted, so that equal schemas are equal files."""
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


@click.command()
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("docs/reference/schemas"),
    show_default=True,
    help="Folder for the files.",
)
@click.option("--allow-breaking", is_flag=True, help="Also replace a schema by an incompatible one.")
def schemas(output: Path, allow_breaking: bool) -> None:
    """Export the JSON Schemas of the events.

    Where a file exists already, a change that would break producers or consumers is refused.
    """
    documents = build_schemas()
    if not allow_breaking:
        problems = [problem for name in EVENTS for problem in _broken(output / name, documents[name])]
        if problems:
            raise ConfigError(
                "these changes would break producers or consumers: "
                + "; ".join(problems)
                + ". Undo them, or use --allow-breaking"
            )
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, document in documents.items():
            (output / name).write_text(to_text(document), encoding="utf-8")
            print(output / name)
    except OSError as error:
        raise ConfigError(f"--output: cannot write to {output}: {error.strerror}") from error


def _broken(path: Path, document: dict[str, Any]) -> list[str]:
    if not path.is_file():
        return []
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a JSON Schema: {error}; remove it first") from error
    return [f"{path.name} {problem}" for problem in breaking_changes(old, document, EVENTS[path.name][1])]
