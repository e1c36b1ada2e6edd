"""The parser of LightGBM's text format."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

__all__ = ["UnsupportedModelError"]

_CATEGORICAL: Final = 1
_DEFAULT_LEFT: Final = 2
_MISSING_ZERO: Final = 1
_MISSING_NAN: Final = 2


class UnsupportedModelError(Exception):
    """The model has a part that is not compiled here; LightGBM itself must score."""


@dataclass(slots=True)
class _Tree:
    """A tree as in the model's text; a negative child is the leaf ``~child``."""

    feature: list[int]
    threshold: list[float]
    decision: list[int]
    children: list[tuple[int, int]]
    counts: list[int]
    leaf_value: list[float]
    leaf_count: list[int]
    categories: list[list[int]]

    def paths(self) -> list[list[tuple[int, bool]]]:
        """Return each leaf's path from the root: nodes, and whether it goes left there."""
        found: list[list[tuple[int, bool]]] = [[] for _ in self.leaf_value]
        waiting: list[tuple[int, list[tuple[int, bool]]]] = [(0, [])] if self.feature else []
        while waiting:
            node, path = waiting.pop()
            for child, left in zip(self.children[node], (True, False), strict=True):
                if child < 0:
                    found[~child] = [*path, (node, left)]
                else:
                    waiting.append((child, [*path, (node, left)]))
        return found

    def count(self, child: int) -> int:
        """Return how many training rows came to a node or leaf."""
        return self.leaf_count[~child] if child < 0 else self.counts[child]

    def depth(self) -> int:
        """Return the length of the longest path."""
        return max(map(len, self.paths()))


def _parse(text: str) -> tuple[float, int, list[_Tree]]:
    """Return the sigmoid's factor, the number of features and the trees of a model's text."""
    head, *bodies = re.split(r"^Tree=\d+\n", text.split("\nend of trees", 1)[0], flags=re.MULTILINE)
    about = dict(line.partition("=")[::2] for line in head.splitlines())
    objective = re.fullmatch(r"binary sigmoid:(\S+)", about["objective"])
    if objective is None or about["num_class"] != "1" or about["num_tree_per_iteration"] != "1":
        raise UnsupportedModelError(about["objective"])
    if re.search(r"^average_output$", head, re.MULTILINE):
        raise UnsupportedModelError("its trees are averaged")
    return float(objective.group(1)), int(about["max_feature_idx"]) + 1, [_tree(body) for body in bodies]


def _tree(body: str) -> _Tree:
    said = dict(line.partition("=")[::2] for line in body.splitlines())
    if said.get("is_linear", "0") != "0":
        raise UnsupportedModelError("its leaves are linear")

    def numbers(name: str) -> list[int]:
        return [int(part) for part in said.get(name, "").split()]

    inner = numbers("split_feature")
    decision = numbers("decision_type")
    if any(item >> 2 & 3 == _MISSING_ZERO and not item & _CATEGORICAL for item in decision):
        raise UnsupportedModelError("it treats zeros as missing values")
    words, bounds = numbers("cat_threshold"), numbers("cat_boundaries")
    tree = _Tree(
        feature=inner,
        threshold=[float(part) for part in said.get("threshold", "").split()],
        decision=decision,
        children=list(zip(numbers("left_child"), numbers("right_child"), strict=True)),
        counts=numbers("internal_count"),
        leaf_value=[float(part) for part in said["leaf_value"].split()],
        leaf_count=numbers("leaf_count"),
        categories=[words[first:last] for first, last in pairwise(bounds)],
    )
    if not len(inner) == len(tree.threshold) == len(decision) == len(tree.children):
        raise UnsupportedModelError("its node arrays differ in length")
    return tree
