"""A LightGBM model compiled for many rows: the same scores to the last bit, SHAP values in closed form.

LightGBM walks one row after the other, and its TreeSHAP works out the weights of every path anew for every
row. Here the trees are arrays that compiled loops walk, four rows at a time, and what SHAP needs of a path
is worked out once, when the model is loaded.

What a leaf adds to a SHAP value depends only on which features of its path the row agrees with. Let m
features be on the path, z_j the share of training rows that feature j's conditions let through, a_j = 1
where the row passes them and 0 where not, v the leaf's value. The Shapley weight of t of the m - 1 other
features is the integral of x^t (1 - x)^(m-1-t) over [0, 1], so the sum over all their sets is one integral
of a product:

    phi_i = v (a_i - z_i) * integral of prod over j != i of (x a_j + (1 - x) z_j) dx

Its integrand is a polynomial of degree m - 1, for which ceil(m / 2) points of Gauss and Legendre are exact.

Sources: Lundberg et al. 2020 for TreeSHAP; Yu et al. 2022 for Shapley values of trees by polynomials.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numba import njit

import stream.features.compiled  # noqa: F401 - names the cache of machine code

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

__all__ = ["CompiledTrees", "UnsupportedModelError"]

_CATEGORICAL: Final = 1
_DEFAULT_LEFT: Final = 2
_MISSING_ZERO: Final = 1
_MISSING_NAN: Final = 2
#: LightGBM takes a value this near to zero for zero.
_ZERO: Final = float(np.float32(1e-35))
#: Bits of the word that says which way a row goes at each node of a tree.
_MOST_NODES: Final = 64
_MOST_POINTS: Final = 16
#: Rows explained together; what is kept of them fits the first level of a processor's cache.
_ROWS: Final = 64


class UnsupportedModelError(Exception):
    """The model has something that is not compiled here; LightGBM itself must be asked."""


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a loop that takes milliseconds, which other threads need not wait for."""
    jitted: Any = njit(cache=True, nogil=True, error_model="numpy", _nrt=False)(function)
    return jitted  # type: ignore[no-any-return]


@dataclass(slots=True)
class _Tree:
    """One tree as the model's text has it; a negative child is the leaf ``~child``."""

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


class CompiledTrees:
    """The trees of a binary model.

    Raises
    ------
    UnsupportedModelError
        Linear leaves, zeros taken for missing, averaged trees, or an unknown text.
    """

    def __init__(self, model_text: str) -> None:
        try:
            sigmoid, features, trees = _parse(model_text)
            self._build(sigmoid, features, trees)
            self._build_paths(trees)
        except (KeyError, ValueError, IndexError) as error:
            raise UnsupportedModelError(repr(error)) from error

    def _build(self, sigmoid: float, features: int, trees: list[_Tree]) -> None:
        """Lay out nodes and leaves in one array, a tree after the other; a leaf is its own child.

        A categorical condition becomes a column of its own behind the model's: 0 where the value is in the
        set, 1 where not, so that every node is a comparison.
        """
        self._sigmoid = sigmoid
        self._features = features
        virtual: dict[tuple[int, tuple[int, ...]], int] = {}
        column: list[int] = []
        threshold: list[float] = []
        nan_left: list[int] = []
        child: list[int] = []
        value: list[float] = []
        start = [0]
        for tree in trees:
            base, nodes = len(column), len(tree.feature)
            for node in range(nodes):
                feature, limit, nan = tree.feature[node], tree.threshold[node], 0
                if tree.decision[node] & _CATEGORICAL:
                    chosen = (feature, tuple(tree.categories[int(limit)]))
                    feature, limit = features + virtual.setdefault(chosen, len(virtual)), 0.5
                elif tree.decision[node] >> 2 & 3 == _MISSING_NAN:
                    nan = tree.decision[node] & _DEFAULT_LEFT
                else:  # LightGBM takes a missing value for 0 where training met none
                    nan = int(limit >= 0)
                column.append(feature)
                threshold.append(limit)
                nan_left.append(1 if nan else 0)
                child += [base + (one if one >= 0 else nodes + ~one) for one in tree.children[node]]
                value.append(0.0)
            for leaf, leaf_value in enumerate(tree.leaf_value):
                column.append(0)
                threshold.append(0.0)
                nan_left.append(0)
                child += [base + nodes + leaf] * 2
                value.append(leaf_value)
            start.append(len(column))
        self._column = np.array(column, np.int32)
        self._threshold = np.array(threshold)
        self._nan_left = np.array(nan_left, np.bool_)
        self._child = np.array(child, np.int32)
        self._value = np.array(value)
        self._start = np.array(start, np.int64)
        self._depth = np.array([tree.depth() for tree in trees], np.int64)
        self._virtual_feature = np.array([feature for feature, _ in virtual], np.int64)
        ends = np.cumsum([0, *(len(words) for _, words in virtual)])
        self._virtual_start = ends.astype(np.int64)
        self._virtual_words = np.array([word for _, words in virtual for word in words], np.uint32)

    def _build_paths(self, trees: list[_Tree]) -> None:
        """Work out what SHAP needs of every leaf; leaves nothing where a tree is too large for it."""
        self.explains = all(
            len(tree.feature) <= _MOST_NODES and tree.depth() <= 2 * _MOST_POINTS for tree in trees
        ) and all(min(tree.leaf_count, default=1) > 0 for tree in trees if tree.feature)
        self._expectation = 0.0
        if not self.explains:
            return
        feature: list[int] = []
        share: list[float] = []
        left: list[int] = []
        right: list[int] = []
        leaves: list[tuple[float, int]] = []
        slots, tree_leaves = [0], [0]
        for tree in trees:
            total = tree.counts[0] if tree.feature else 1
            for leaf, path in enumerate(tree.paths()):
                part = tree.leaf_count[leaf] / total if tree.feature else 1.0
                self._expectation += part * tree.leaf_value[leaf]
                own = _slots(tree, path)
                if own:
                    for name, (passed, goes_left, goes_right) in own.items():
                        feature.append(name)
                        share.append(passed)
                        left.append(goes_left)
                        right.append(goes_right)
                    leaves.append((tree.leaf_value[leaf], (len(own) + 1) // 2))
                    slots.append(len(feature))
            tree_leaves.append(len(leaves))
        self._leaf_value = np.array([value for value, _ in leaves])
        self._leaf_points = np.array([points for _, points in leaves], np.int64)
        self._slots = np.array(slots, np.int64)
        self._tree_leaves = np.array(tree_leaves, np.int64)
        self._slot_feature = np.array(feature, np.int64)
        self._slot_share = np.array(share)
        self._slot_left = np.array(left, np.uint64)
        self._slot_right = np.array(right, np.uint64)
        self._points = np.zeros((_MOST_POINTS + 1, _MOST_POINTS))
        self._weights = np.zeros((_MOST_POINTS + 1, _MOST_POINTS))
        for points in range(1, _MOST_POINTS + 1):
            self._points[points, :points], self._weights[points, :points] = _gauss(points)

    def _wide(self, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the rows as the loops take them, the columns of categorical conditions behind the others."""
        wide = np.empty((len(rows), self._features + len(self._virtual_feature)))
        _widen(
            np.ascontiguousarray(rows),
            wide,
            self._features,
            self._virtual_feature,
            self._virtual_start,
            self._virtual_words,
        )
        return wide

    def scores(self, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return each row's probability: float64[n] of float64[n, features]."""
        scores = np.zeros(len(rows))
        _walk(
            self._wide(rows), self._column, self._threshold, self._nan_left, self._child, self._value,
            self._start, self._depth, self._sigmoid, scores,
        )  # fmt: skip
        return scores

    def trial_rows(self, count: int) -> npt.NDArray[np.float64]:
        """Return rows that go many ways: each value at a threshold of its feature, beside one, or missing."""
        random = np.random.default_rng(count)
        rows = random.integers(-1, 40, (count, self._features)).astype(np.float64)
        inner = np.flatnonzero(self._child[::2] != np.arange(len(self._column)))
        for feature in np.unique(self._column[inner]).tolist():
            if feature < self._features:
                met = self._threshold[inner[self._column[inner] == feature]]
                values = np.concatenate([met, np.nextafter(met, np.inf), met * 1.5, met - 1.0, [0.0, np.nan]])
                rows[:, feature] = random.choice(values, count)
        return rows

    def contributions(self, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return SHAP contributions to the log-odds: float64[n, features + 1], the last the expectation.

        Only where ``explains`` is true.
        """
        found = np.empty((len(rows), self._features + 1))
        wide = self._wide(rows)
        for begin in range(0, len(rows), _ROWS):
            part = np.ascontiguousarray(wide[begin : begin + _ROWS].T)
            count = part.shape[1]
            moved = np.zeros((self._features + 1, count))
            moved[-1] = self._expectation
            _explain(
                part, count, self._column, self._threshold, self._nan_left, self._start, self._tree_leaves,
                self._leaf_value, self._leaf_points, self._slots, self._slot_feature, self._slot_share,
                self._slot_left, self._slot_right, self._points, self._weights, np.empty(count, np.uint64),
                np.empty((2 * _MOST_POINTS, count), np.bool_), np.empty(count),
                np.empty((2 * _MOST_POINTS, count)), moved,
            )  # fmt: skip
            found[begin : begin + _ROWS] = moved.T
        return found


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
    if any(one >> 2 & 3 == _MISSING_ZERO and not one & _CATEGORICAL for one in decision):
        raise UnsupportedModelError("it takes zeros for missing values")
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
        raise UnsupportedModelError("its nodes do not agree")
    return tree


def _slots(tree: _Tree, path: list[tuple[int, bool]]) -> dict[int, tuple[float, int, int]]:
    """Return of each feature on a path: the share let through, and the nodes where it goes left or right."""
    found: dict[int, tuple[float, int, int]] = {}
    for node, goes_left in path:
        share, left, right = found.get(tree.feature[node], (1.0, 0, 0))
        child = tree.children[node][0 if goes_left else 1]
        share *= tree.count(child) / tree.counts[node]
        left, right = (left | 1 << node, right) if goes_left else (left, right | 1 << node)
        found[tree.feature[node]] = (share, left, right)
    return found


def _gauss(points: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return points and weights of Gauss and Legendre on [0, 1]."""
    at, weights = np.polynomial.legendre.leggauss(points)
    return (at + 1) / 2, weights / 2


@_compiled
def _widen(rows: Any, wide: Any, features: int, feature: Any, start: Any, words: Any) -> None:
    for row in range(len(wide)):
        for place in range(features):
            value = rows[row, place]
            wide[row, place] = 0.0 if abs(value) <= _ZERO else value
        for place in range(len(feature)):
            value = wide[row, feature[place]]
            inside = 1.0
            # As LightGBM: a missing or negative value is in no set, and a fraction is cut off.
            if -1.0 < value < 2147483648.0:  # what its int holds
                code = int(value)
                word = code >> 5
                if word < start[place + 1] - start[place] and words[start[place] + word] >> (code & 31) & 1:
                    inside = 0.0
            wide[row, features + place] = inside


@_compiled
def _walk(
    rows: Any, column: Any, threshold: Any, nan_left: Any, child: Any, value: Any,
    start: Any, depth: Any, sigmoid: float, scores: Any,
) -> None:  # fmt: skip
    """Add up the leaves tree by tree, in LightGBM's order, then the sigmoid.

    Four rows go down together, each as far as the tree's deepest leaf: their steps do not wait for each
    other, and there is no branch to guess.
    """
    count = len(rows)
    whole = count - count % 4
    for tree in range(len(depth)):
        root, levels = start[tree], depth[tree]
        for row in range(0, whole, 4):
            one = two = three = four = root
            for _ in range(levels):
                x = rows[row, column[one]]
                one = child[2 * one + (0 if (x <= threshold[one]) | (np.isnan(x) & nan_left[one]) else 1)]
                x = rows[row + 1, column[two]]
                two = child[2 * two + (0 if (x <= threshold[two]) | (np.isnan(x) & nan_left[two]) else 1)]
                x = rows[row + 2, column[three]]
                three = child[
                    2 * three + (0 if (x <= threshold[three]) | (np.isnan(x) & nan_left[three]) else 1)
                ]
                x = rows[row + 3, column[four]]
                four = child[2 * four + (0 if (x <= threshold[four]) | (np.isnan(x) & nan_left[four]) else 1)]
            scores[row] += value[one]
            scores[row + 1] += value[two]
            scores[row + 2] += value[three]
            scores[row + 3] += value[four]
        for row in range(whole, count):
            one = root
            for _ in range(levels):
                x = rows[row, column[one]]
                one = child[2 * one + (0 if (x <= threshold[one]) | (np.isnan(x) & nan_left[one]) else 1)]
            scores[row] += value[one]
    for row in range(count):
        scores[row] = 1.0 / (1.0 + np.exp(-sigmoid * scores[row]))


@_compiled
def _explain(
    columns: Any, count: int, column: Any, threshold: Any, nan_left: Any, start: Any, tree_leaves: Any,
    leaf_value: Any, leaf_points: Any, slots: Any, slot_feature: Any, slot_share: Any, slot_left: Any,
    slot_right: Any, points: Any, weights: Any, way: Any, agrees: Any, product: Any, total: Any, found: Any,
) -> None:  # fmt: skip
    """Add every leaf to the SHAP values of ``count`` rows, which lie side by side in ``columns``.

    The inner loops go over rows and have no branches, so that a processor takes several at a time.
    """
    for tree in range(len(tree_leaves) - 1):
        root = start[tree]
        nodes = (start[tree + 1] - start[tree]) // 2  # one leaf more than nodes
        for row in range(count):
            way[row] = 0
        for node in range(nodes):
            limit, nan = threshold[root + node], nan_left[root + node]
            bit, place = np.uint64(1) << np.uint64(node), column[root + node]
            for row in range(count):
                x = columns[place, row]
                way[row] |= bit if (x <= limit) | (np.isnan(x) & nan) else np.uint64(0)
        for leaf in range(tree_leaves[tree], tree_leaves[tree + 1]):
            first, size = slots[leaf], slots[leaf + 1] - slots[leaf]
            for slot in range(size):
                left, right = slot_left[first + slot], slot_right[first + slot]
                for row in range(count):
                    agrees[slot, row] = (way[row] & (left | right)) == left
                    total[slot, row] = 0.0
            degree = leaf_points[leaf]
            for point in range(degree):
                x, weight = points[degree, point], weights[degree, point] * leaf_value[leaf]
                for row in range(count):
                    product[row] = weight
                for slot in range(size):
                    against = (1.0 - x) * slot_share[first + slot]
                    agreeing = x + against
                    for row in range(count):
                        product[row] *= agreeing if agrees[slot, row] else against
                for slot in range(size):
                    against = (1.0 - x) * slot_share[first + slot]
                    without_agreeing, without_against = 1.0 / (x + against), 1.0 / against
                    for row in range(count):
                        total[slot, row] += product[row] * (
                            without_agreeing if agrees[slot, row] else without_against
                        )
            for slot in range(size):
                share, place = slot_share[first + slot], slot_feature[first + slot]
                for row in range(count):
                    found[place, row] += total[slot, row] * ((1.0 if agrees[slot, row] else 0.0) - share)
