"""The compiler of the kernels, and the types of their arguments."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Codes", "Fingerprints", "Flags", "Floats", "Ints", "Slots", "jit", "jit_alloc", "prefetch"]


Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]
Fingerprints: TypeAlias = npt.NDArray[np.uint32]
Slots: TypeAlias = npt.NDArray[np.int32]
Codes: TypeAlias = npt.NDArray[np.uint8]
Flags: TypeAlias = npt.NDArray[np.bool_]


def _sources_digest() -> str:
    """Return the version of all compiled code: a digest of the modules that contain it."""
    package = Path(__file__).resolve().parent
    found = blake2b(digest_size=8)
    for path in sorted(
        [
            package / "jit.py",
            *(p for name in ("state", "features", "scoring") for p in (package / name).rglob("*.py")),
        ]
    ):
        found.update(path.read_bytes())
    return found.hexdigest()


# numba caches machine code by module and does not notice that a function which this module calls has changed
# in another module: after an upgrade in place it would run the old code. So each version of the sources has
# its own cache.
_CACHE_ROOT: Final = config.CACHE_DIR or str(Path(__file__).resolve().parent / "__pycache__")


if os.access(_CACHE_ROOT if Path(_CACHE_ROOT).exists() else Path(_CACHE_ROOT).parent, os.W_OK):
    config.CACHE_DIR = str(Path(_CACHE_ROOT) / f"kernels-{_sources_digest()}")


_P = ParamSpec("_P")
_R = TypeVar("_R")


def jit(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile a function with numba; the machine code is cached beside the module.

    The function must neither create nor return arrays: then it needs no reference counts, whose updates would
    cost an event more than its arithmetic.
    """
    jitted: Any = njit(cache=True, _nrt=False)(function)
    return jitted  # type: ignore[no-any-return]


def jit_alloc(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile a function that makes arrays."""
    jitted: Any = njit(cache=True, _nrt=True)(function)
    return jitted  # type: ignore[no-any-return]


def _no_prefetch(array: Any, index: int | np.int64) -> None:
    """Stand in for :func:`prefetch` where the kernels are run as plain Python."""


@intrinsic  # type: ignore[untyped-decorator]
def _prefetch(_context: Any, array: Any, index: Any) -> Any:  # noqa: ARG001 - numba's signature
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        items = context.make_array(signature.args[0])(context, builder, values[0]).data
        address = builder.bitcast(builder.gep(items, [values[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [address, number(0), number(3), number(1)])  # to read, to keep, data
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


#: ``prefetch(array, index)`` requests the cache line of an item (in C order) before it is needed. A batch's
#: users lie far apart in memory, and most of an event's cost is the wait for them; requested while earlier
#: users are processed, the lines arrive in parallel instead of one after the other. It changes no result and
#: never faults, for any index.
prefetch: Callable[[Any, int | np.int64], None] = _no_prefetch if config.DISABLE_JIT else _prefetch
