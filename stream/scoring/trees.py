"""A LightGBM model compiled for many rows: the same scores to the last bit, SHAP values in closed form.

LightGBM walks one row after the other, and its TreeSHAP computes the weights of every path again for every
row. Here the trees are arrays that compiled loops walk, four rows at a time, and the part of SHAP that
depends on a path alone is computed once, when the model is loaded.

A leaf's share of a SHAP value depends only on which features of its path the row agrees with. Let m features
be on the path, z_j the share of training rows that pass feature j's conditions, a_j = 1 if the row passes
them and 0 otherwise, v the leaf's value. The Shapley weight of t of the m - 1 other features is the integral
of x^t (1 - x)^(m-1-t) over [0, 1], so the sum over all their sets is one integral of a product:

    phi_i = v (a_i - z_i) * integral of prod over j != i of (x a_j + (1 - x) z_j) dx

Its integrand is a polynomial of degree m - 1, for which Gauss-Legendre quadrature with ceil(m / 2) points is
exact.

Sources: Lundberg et al. 2020 for TreeSHAP; Yu et al. 2022 for Shapley values of trees by polynomials.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from stream.scoring.lightgbm_text import (
    _CATEGORICAL,
    _DEFAULT_LEFT,
    _MISSING_NAN,
    UnsupportedModelError,
    _parse,
    _Tree,
)
from stream.scoring.tree_kernels import _explain, _gauss, _slots, _walk, _widen

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["CompiledTrees"]


#: Bits of the word that selects a row's branch at each node of a tree.
_MAX_NODES: Final = 64

_MAX_POINTS: Final = 16

#: Rows explained together; their intermediate results fit the processor's first-level cache.
_ROWS: Final = 64


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
        """Lay out nodes and leaves in one array, tree after tree; a leaf is its own child.

        A categorical condition becomes a column after the model's own: 0 if the value is in the set, 1
        otherwise, so that every node is a comparison.
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
                child += [base + (item if item >= 0 else nodes + ~item) for item in tree.children[node]]
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
        """Compute SHAP's constants of every leaf; stores none if a tree is too large for it."""
        self.explains = all(
            len(tree.feature) <= _MAX_NODES and tree.depth() <= 2 * _MAX_POINTS for tree in trees
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
        self._points = np.zeros((_MAX_POINTS + 1, _MAX_POINTS))
        self._weights = np.zeros((_MAX_POINTS + 1, _MAX_POINTS))
        for points in range(1, _MAX_POINTS + 1):
            self._points[points, :points], self._weights[points, :points] = _gauss(points)

    def _wide(self, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the rows in the loops' form, the columns of categorical conditions after the others."""
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
        """Return rows that take many branches: values at thresholds, next to thresholds, and missing."""
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
                np.empty((2 * _MAX_POINTS, count), np.bool_), np.empty(count),
                np.empty((2 * _MAX_POINTS, count)), moved,
            )  # fmt: skip
            found[begin : begin + _ROWS] = moved.T
        return found
