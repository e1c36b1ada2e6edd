"""The compiler of the kernels, and the types of what they take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from numba import njit

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Codes", "Flags", "Floats", "Ints", "Marks", "Slots", "compiled", "counted"]

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]
Marks: TypeAlias = npt.NDArray[np.uint32]
Slots: TypeAlias = npt.NDArray[np.int32]
Codes: TypeAlias = npt.NDArray[np.uint8]
Flags: TypeAlias = npt.NDArray[np.bool_]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def compiled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile a function with numba, in its own types; the machine code is cached beside the module.

    It must not make arrays nor return any: then it needs no counts of references to them, whose updates
    would cost an event more than its arithmetic.
    """
    jitted: Any = njit(cache=True, _nrt=False)(function)
    return jitted  # type: ignore[no-any-return]


def counted(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile a function that makes arrays."""
    jitted: Any = njit(cache=True, _nrt=True)(function)
    return jitted  # type: ignore[no-any-return]
