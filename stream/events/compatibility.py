"""Which changes of an event's JSON Schema would break those who already send or receive it.

It knows the part of JSON Schema that Pydantic writes for the events: types, anyOf, enum, const, bounds,
pattern, format, arrays, objects and references.
"""

from __future__ import annotations

from typing import Any, Final, Literal

__all__ = ["breaking_changes"]

#: Keyword -> whether a larger value is the stricter one.
_BOUNDS: Final = {
    "minimum": True,
    "exclusiveMinimum": True,
    "minLength": True,
    "minItems": True,
    "minProperties": True,
    "maximum": False,
    "exclusiveMaximum": False,
    "maxLength": False,
    "maxItems": False,
    "maxProperties": False,
}

_FORMS: Final = ("pattern", "format")
Schema = dict[str, Any]


def breaking_changes(old: Schema, new: Schema, side: Literal["producer", "consumer"]) -> list[str]:
    """Return the reasons why ``new`` would break a producer or a consumer that was written for ``old``.

    A producer breaks if a document that it may send today is rejected, or loses a field, tomorrow. A consumer
    breaks if a document may arrive tomorrow that cannot arrive today, or if a field disappears. Additional
    fields do not harm a consumer.

    Parameters
    ----------
    old, new:
        JSON Schemas of an object.
    side:
        The side whose documents the schema describes.

    Returns
    -------
    list[str]
        One readable line for each breaking change, with the path of the field; empty without any.
    """
    if side == "producer":
        return _Comparison(sent=old, taken=new, removed="is no longer accepted").differences(old, new, "$")
    return _Comparison(sent=new, taken=old, removed=None).differences(new, old, "$")


class _Comparison:
    """Yield the documents of one schema that the other one does not accept.

    ``removed`` is the complaint about a field that one side sends and the other does not know; None if that
    does no harm, and a known field that is never sent does.
    """

    def __init__(self, sent: Schema, taken: Schema, removed: str | None) -> None:
        self._sent, self._taken, self._removed = sent, taken, removed

    def differences(self, sent: Schema, taken: Schema, path: str) -> list[str]:
        problems: list[str] = []
        takers = _alternatives(taken, self._taken)
        for alternative in _alternatives(sent, self._sent):
            # Each kind of value that is sent needs one accepting schema; the nearest gives the complaint.
            attempts = [self._compare(alternative, taker, path) for taker in takers]
            attempts.sort(key=lambda attempt: (_is_type_change(attempt), len(attempt)))
            problems += attempts[0]
        return problems

    def _compare(self, sent: Schema, taken: Schema, path: str) -> list[str]:
        types = sent.get("type"), taken.get("type")
        if types[1] is not None and types[0] != types[1] and types != ("integer", "number"):
            return [f"{path}: {_TYPE_CHANGE} from {_expected(types, self._removed)}"]
        problems = _narrowed_values(sent, taken, path)
        if "properties" in sent or "properties" in taken:
            problems += self._fields(sent, taken, path)
        for keyword in ("items", "additionalProperties"):
            inner = taken.get(keyword)
            if isinstance(inner, dict):
                outer = sent.get(keyword)
                problems += self.differences(outer if isinstance(outer, dict) else {}, inner, f"{path}[]")
            elif inner is False and sent.get(keyword) is not False:
                problems.append(f"{path}: additional fields are rejected")
        return problems

    def _fields(self, sent: Schema, taken: Schema, path: str) -> list[str]:
        given, known = sent.get("properties", {}), taken.get("properties", {})
        always = set(sent.get("required", ()))
        problems = [
            f"{path}.{name}: is required"
            for name in sorted(taken.get("required", ()))
            if name not in always and (self._removed is not None or name in given)
        ]
        for name in sorted(given.keys() | known.keys()):
            if name in given and name in known:
                problems += self.differences(given[name], known[name], f"{path}.{name}")
            elif name in given and self._removed is not None:
                problems.append(f"{path}.{name}: {self._removed}")
            elif name in known and self._removed is None:
                problems.append(f"{path}.{name}: is no longer sent")
        return problems


_TYPE_CHANGE: Final = "the type changes"


def _expected(types: tuple[object, object], removed: str | None) -> str:
    before, after = types if removed is not None else reversed(types)
    return f"{before or 'anything'} to {after or 'anything'}"


def _is_type_change(problems: list[str]) -> bool:
    return any(_TYPE_CHANGE in problem for problem in problems)


def _narrowed_values(sent: Schema, taken: Schema, path: str) -> list[str]:
    problems = []
    values, allowed = _values(sent), _values(taken)
    if allowed is not None:
        extra = sorted(set(values) - set(allowed)) if values is not None else ["any value"]
        problems += [f"{path}: {value} is not among the known values" for value in extra]
    for keyword, larger_is_stricter in _BOUNDS.items():
        bound, limit = sent.get(keyword), taken.get(keyword)
        if limit is None:
            continue
        if bound is None or (limit > bound if larger_is_stricter else limit < bound):
            problems.append(f"{path}: {keyword} differs, {bound} against {limit}")
    for keyword in _FORMS:
        if keyword in taken and taken[keyword] != sent.get(keyword):
            problems.append(f"{path}: {keyword} differs, {sent.get(keyword)} against {taken[keyword]}")
    return problems


def _values(schema: Schema) -> list[str] | None:
    if "const" in schema:
        return [repr(schema["const"])]
    return [repr(value) for value in schema["enum"]] if "enum" in schema else None


def _alternatives(schema: Schema, root: Schema) -> list[Schema]:
    """Return the alternatives of a schema, each with at most one type; a value must fit one of them."""
    if "$ref" in schema:
        return _alternatives(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root)
    if "anyOf" in schema:
        return [inner for choice in schema["anyOf"] for inner in _alternatives(choice, root)]
    kinds = schema.get("type")
    if isinstance(kinds, list):
        return [{**schema, "type": kind} for kind in kinds]
    return [schema]
