"""The compiled loops over a model's trees: scores and SHAP values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numba import njit

import stream.jit  # noqa: F401 - names the cache of machine code

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from stream.scoring.lightgbm_text import _Tree


#: LightGBM takes a value this near to zero for zero.
_ZERO: Final = float(np.float32(1e-35))


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a loop that takes milliseconds, which other threads need not wait for."""
    jitted: Any = njit(cache=True, nogil=True, error_model="numpy", _nrt=False)(function)
    return jitted  # type: ignore[no-any-return]


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
        for index in range(features):
            value = rows[row, index]
            wide[row, index] = 0.0 if abs(value) <= _ZERO else value
        for index in range(len(feature)):
            value = wide[row, feature[index]]
            inside = 1.0
            # As LightGBM: a missing or negative value is in no set, and a fraction is cut off.
            if -1.0 < value < 2147483648.0:  # what its int holds
                code = int(value)
                word = code >> 5
                if word < start[index + 1] - start[index] and words[start[index] + word] >> (code & 31) & 1:
                    inside = 0.0
            wide[row, features + index] = inside


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
            item = two = three = four = root
            for _ in range(levels):
                x = rows[row, column[item]]
                item = child[2 * item + (0 if (x <= threshold[item]) | (np.isnan(x) & nan_left[item]) else 1)]
                x = rows[row + 1, column[two]]
                two = child[2 * two + (0 if (x <= threshold[two]) | (np.isnan(x) & nan_left[two]) else 1)]
                x = rows[row + 2, column[three]]
                three = child[
                    2 * three + (0 if (x <= threshold[three]) | (np.isnan(x) & nan_left[three]) else 1)
                ]
                x = rows[row + 3, column[four]]
                four = child[2 * four + (0 if (x <= threshold[four]) | (np.isnan(x) & nan_left[four]) else 1)]
            scores[row] += value[item]
            scores[row + 1] += value[two]
            scores[row + 2] += value[three]
            scores[row + 3] += value[four]
        for row in range(whole, count):
            item = root
            for _ in range(levels):
                x = rows[row, column[item]]
                item = child[2 * item + (0 if (x <= threshold[item]) | (np.isnan(x) & nan_left[item]) else 1)]
            scores[row] += value[item]
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
            bit, index = np.uint64(1) << np.uint64(node), column[root + node]
            for row in range(count):
                x = columns[index, row]
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
                share, index = slot_share[first + slot], slot_feature[first + slot]
                for row in range(count):
                    found[index, row] += total[slot, row] * ((1.0 if agrees[slot, row] else 0.0) - share)
