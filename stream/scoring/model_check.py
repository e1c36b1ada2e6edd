"""A strict check of LightGBM's text format, before LightGBM reads it.

LightGBM's reader trusts the text: counts that disagree, a child that is its own ancestor or a wrong size end
the process or never return. What passes this check is a forest of binary trees whose every index is in range.
"""

from __future__ import annotations

import itertools
import math
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MalformedModelError", "checked_model_text"]

_MAX_TEXT: Final = 256 << 20
_MAX_TREES: Final = 50_000
_MAX_LEAVES: Final = 1 << 17
_MAX_FEATURES: Final = 10_000
_INT32: Final = 1 << 31
_END: Final = "end of trees\n"
_CATEGORICAL: Final = 1
_MAX_DECISION: Final = 15

#: Header lines whose value is one of a few, and those that are not checked further: LightGBM reads names and
#: infos as texts.
_HEADER: Final = {
    "version": re.compile(r"v[34]").fullmatch,
    "num_class": re.compile("1").fullmatch,
    "num_tree_per_iteration": re.compile("1").fullmatch,
    "label_index": re.compile("0").fullmatch,
    "max_feature_idx": re.compile(r"\d{1,5}").fullmatch,
    "objective": re.compile(r"binary sigmoid:\d{1,6}(\.\d{1,17})?(e[+-]?\d{1,2})?").fullmatch,
    "feature_names": re.compile(r"[^=\n]+").fullmatch,
    "feature_infos": re.compile(r"[^=\n]+").fullmatch,
    "tree_sizes": re.compile(r"\d{1,9}( \d{1,9})*").fullmatch,
}
_OPTIONAL_HEADER: Final = {"monotone_constraints": re.compile(r"-?\d( -?\d)*").fullmatch}
_FLAGS: Final = {"average_output"}


class MalformedModelError(Exception):
    """The text is not a binary model that LightGBM can read safely; the message says where and why."""


def checked_model_text(text: str, features: int) -> str:
    """Return the part of a model's text that scoring needs, which LightGBM can read safely.

    Parameters
    ----------
    features
        Number of features of the bundle.

    Raises
    ------
    MalformedModelError
        The text is something else.
    """
    if len(text) > _MAX_TEXT or not text.isascii():
        raise MalformedModelError(f"it has more than {_MAX_TEXT} characters, or some that are not ASCII")
    head, separator, _ = text.partition("\n\n")
    if not separator:
        raise MalformedModelError("its header does not end")
    header = _header(head)
    if int(header["max_feature_idx"]) + 1 != features or features > _MAX_FEATURES:
        raise MalformedModelError(
            f"it takes {int(header['max_feature_idx']) + 1} features, but its feature spec has {features}"
        )
    for name in ("feature_names", "feature_infos"):
        if len(header[name].split(" ")) != features:
            raise MalformedModelError(f"{name} has not {features} values")
    at = len(head) + len(separator)
    sizes = [int(size) for size in header["tree_sizes"].split(" ")]
    if len(sizes) > _MAX_TREES:
        raise MalformedModelError(f"it has more than {_MAX_TREES} trees")
    for number, size in enumerate(sizes):
        _check_tree(text[at : at + size], number, features)
        at += size
    if not text.startswith(_END, at):
        raise MalformedModelError("its trees do not end where tree_sizes says")
    return text[: at + len(_END)]


def _header(head: str) -> dict[str, str]:
    first, *lines = head.split("\n")
    if first != "tree":
        raise MalformedModelError("it is not a LightGBM model")
    header: dict[str, str] = {}
    for line in lines:
        name, equals, value = line.partition("=")
        known = _HEADER.get(name) or _OPTIONAL_HEADER.get(name)
        if name in header or (not (name in _FLAGS and not equals) and (known is None or not known(value))):
            raise MalformedModelError(f"its header has the line {line[:60]!r}")
        header[name] = value
    missing = _HEADER.keys() - header.keys()
    if missing:
        raise MalformedModelError(f"its header lacks {', '.join(sorted(missing))}")
    return header


class _Lines:
    """The lines of a tree, each asked for once."""

    def __init__(self, block: str, number: int) -> None:
        self._where = f"tree {number}"
        first, *lines = block.rstrip("\n").split("\n")
        if first != f"Tree={number}" or not block.endswith("\n"):
            raise MalformedModelError(f"{self._where} is not where tree_sizes says")
        self._lines: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition("=")
            if name in self._lines:
                raise self.error(f"has {name[:40]!r} twice")
            self._lines[name] = value

    def error(self, reason: str) -> MalformedModelError:
        return MalformedModelError(f"{self._where} {reason}")

    def integers(
        self, name: str, count: int, good: Callable[[int], bool], *, optional: bool = False
    ) -> list[int]:
        found = self._values(name, count, r"-?\d{1,10}", optional=optional)
        values = [int(part) for part in found]
        if not all(-_INT32 <= value < _INT32 and good(value) for value in values):
            raise self.error(f"has a value of {name} out of range")
        return values

    def numbers(
        self, name: str, count: int, *, optional: bool = False, infinite: bool = False
    ) -> list[float]:
        number = r"-?(inf|\d{1,330}(\.\d{1,330})?([eE][+-]?\d{1,3})?)"
        values = [float(part) for part in self._values(name, count, number, optional=optional)]
        if not infinite and not all(map(math.isfinite, values)):
            raise self.error(f"has a value of {name} that is not finite")
        return values

    def _values(self, name: str, count: int, pattern: str, *, optional: bool) -> list[str]:
        text = self._lines.pop(name, None)
        if text is None and optional:
            return []
        parts = (text or "").split(" ") if text else []
        if text is None or len(parts) != count:
            raise self.error(f"has not {count} values of {name}")
        matches = re.compile(pattern).fullmatch
        if not all(map(matches, parts)):
            raise self.error(f"has a value of {name} that is not a number")
        return parts

    def count(self, name: str) -> int:
        """Return how many values a statistic of a tree of a single leaf has: one or none."""
        return 1 if self._lines.get(name) else 0

    def end(self) -> None:
        if self._lines:
            raise self.error(f"has the unknown line {next(iter(self._lines))[:40]!r}")


def _check_tree(block: str, number: int, features: int) -> None:
    lines = _Lines(block, number)
    [leaves] = lines.integers("num_leaves", 1, lambda value: 0 < value <= _MAX_LEAVES)
    nodes = leaves - 1
    [categories] = lines.integers("num_cat", 1, lambda value: 0 <= value <= nodes)
    lines.integers("split_feature", nodes, lambda value: 0 <= value < features)
    lines.numbers("split_gain", nodes)
    thresholds = lines.numbers("threshold", nodes, infinite=True)
    decisions = lines.integers("decision_type", nodes, lambda value: 0 <= value <= _MAX_DECISION)
    in_range = range(-leaves, nodes)
    left = lines.integers("left_child", nodes, in_range.__contains__)
    right = lines.integers("right_child", nodes, in_range.__contains__)
    _check_shape(lines, left, right, leaves)
    lines.numbers("leaf_value", leaves)
    # A tree of a single leaf has no statistics, or empty ones.
    for name, count in (("leaf_weight", leaves), ("internal_value", nodes), ("internal_weight", nodes)):
        lines.numbers(name, count if nodes else lines.count(name), optional=True)
    for name, count in (("leaf_count", leaves), ("internal_count", nodes)):
        lines.integers(name, count if nodes else lines.count(name), _natural, optional=True)
    chosen = [threshold for threshold, kind in zip(thresholds, decisions, strict=True) if kind & _CATEGORICAL]
    if not all(threshold.is_integer() and 0 <= threshold < categories for threshold in chosen):
        raise lines.error("has a categorical node without categories")
    if categories:
        bounds = lines.integers("cat_boundaries", categories + 1, _natural)
        if bounds[0] != 0 or any(a >= b for a, b in itertools.pairwise(bounds)):
            raise lines.error("has cat_boundaries that do not increase")
        words = lines.numbers("cat_threshold", bounds[-1])
        if not all(word.is_integer() and 0 <= word < 1 << 32 for word in words):
            raise lines.error("has a value of cat_threshold out of range")
    lines.integers("is_linear", 1, lambda value: value == 0)
    lines.numbers("shrinkage", 1)
    lines.end()


def _natural(value: int) -> bool:
    return value >= 0


def _check_shape(lines: _Lines, left: list[int], right: list[int], leaves: int) -> None:
    """Return if every node and leaf is reached from the root, once."""
    nodes = len(left)
    seen = bytearray(nodes + leaves)
    waiting = [0] if nodes else []
    while waiting:
        node = waiting.pop()
        for child in (left[node], right[node]):
            index = child if child >= 0 else nodes + ~child
            if seen[index] or child == 0:
                raise lines.error("is no tree: a node or leaf has two parents")
            seen[index] = 1
            if child >= 0:
                waiting.append(child)
    if nodes and sum(seen) != nodes - 1 + leaves:
        raise lines.error("is no tree: a node or leaf has no parent")
