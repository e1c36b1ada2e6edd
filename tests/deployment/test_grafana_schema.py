"""The dashboards are what Grafana's own schema says, by the models that Grafana Labs makes from it."""

from __future__ import annotations

import copy
import json
from enum import Enum
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from pydantic import ConfigDict, TypeAdapter, ValidationError

from support.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = ROOT / "grafana/dashboards"
DASHBOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))
}

register_default_plugins()


def problems(dashboard: dict[str, Any]) -> list[str]:
    """Return what the schema has no place for, and what has another type than it says."""
    model = Dashboard.from_json(copy.deepcopy(dashboard))
    encoded = json.loads(JSONEncoder(sort_keys=True).encode(model))
    return [*lost(dashboard, encoded, "$"), *wrong(model, "$")]


def lost(mine: Any, theirs: Any, path: str) -> Iterator[str]:
    """Yield what of a value did not survive the models."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for name, value in mine.items():
            if name not in theirs:
                if value is not None:
                    yield f"{path}.{name} is not known"
            else:
                yield from lost(value, theirs[name], f"{path}.{name}")
    elif isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        for at, (one, other) in enumerate(zip(mine, theirs, strict=True)):
            yield from lost(one, other, f"{path}[{at}]")
    elif mine != theirs:
        yield f"{path} is {mine!r}, and came back as {theirs!r}"


def parts_of(hint: Any) -> list[Any]:
    """Return all the types that a hint names, whatever they are wrapped in."""
    return [hint, *(part for inner in get_args(hint) for part in parts_of(inner))]


def built(hint: Any, held: Any) -> Any:
    """Return a list that was left as JSON as the models that it should hold; everything else as it is."""
    inner = [part for part in parts_of(hint) if hasattr(part, "from_json")]
    if isinstance(held, list) and inner and all(isinstance(item, dict) for item in held):
        return [inner[0].from_json(item) for item in held]
    return held


def adapter(hint: Any) -> TypeAdapter[Any]:
    """Return what checks a value: to the letter, but for the names of an enumeration, which JSON has as texts."""
    loose = any(isinstance(part, type) and issubclass(part, Enum) for part in parts_of(hint))
    return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True, strict=not loose))


def wrong(value: Any, path: str) -> Iterator[str]:
    """Yield the attributes of a model, and of those in it, whose value is not of the type it has there."""
    if isinstance(value, (list, tuple)):
        for at, item in enumerate(value):
            yield from wrong(item, f"{path}[{at}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from wrong(item, f"{path}.{name}")
    elif type(value).__module__.startswith("grafana_foundation_sdk") and not isinstance(value, Enum):
        hints = get_type_hints(type(value))
        for name, held in vars(value).items():
            if held is not None and name in hints:
                made = built(hints[name], held)
                if made is not held:
                    yield from lost(held, json.loads(JSONEncoder().encode(made)), f"{path}.{name}")
                    yield from wrong(made, f"{path}.{name}")
                try:
                    adapter(hints[name]).validate_python(made)
                except ValidationError as error:
                    yield f"{path}.{name}: {error.errors()[0]['msg']}"
            yield from wrong(held, f"{path}.{name}")


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_is_what_the_schema_says(name: str) -> None:
    assert problems(DASHBOARDS[name]) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda made: made.update(refreshEvery="5s"), "$.refreshEvery is not known"),
        (lambda made: made["panels"][0].update(tittle="x"), "$.panels[0].tittle is not known"),
        (lambda made: made["panels"][0]["gridPos"].update(w="wide"), "$.panels[0].grid_pos.w"),
        (lambda made: made["panels"][0]["targets"][0].update(exprs="1"), "targets[0].exprs is not known"),
        (lambda made: made["panels"][0].update(title=7), "$.panels[0].title"),
        (lambda made: made["panels"][0]["links"][0].update(uri="x"), "links[0].uri is not known"),
        (
            lambda made: made["panels"][0]["fieldConfig"]["defaults"]["color"].update(mode="gaudy"),
            "color.mode",
        ),
    ],
    ids=["unknown", "in a panel", "type", "in a query", "title", "in a link", "no such value"],
)
def test_what_the_schema_does_not_know_is_found(change: Any, found: str) -> None:
    made = copy.deepcopy(DASHBOARDS["overview"])
    change(made)
    assert any(found in problem for problem in problems(made)), problems(made)
