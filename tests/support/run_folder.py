"""A folder that all processes of one test run share: what one of them has made, the others take.

The process that controls the run makes it and holds its file ``alive``; what lives beside the run waits for that
lock, so it ends with the run, however the run ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_VARIABLE = "PYTEST_RUN_FOLDER"


class RunFolder:
    """The folder, from its maker's point of view."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="riskstream-tests-"))
        self._alive: IO[bytes] = (self.path / "alive").open("wb")
        fcntl.flock(self._alive, fcntl.LOCK_EX)
        os.environ[_VARIABLE] = str(self.path)

    def end(self, wait: Callable[[Path], None]) -> None:
        """Say that the run is over, wait for what lived beside it, and remove the folder."""
        os.environ.pop(_VARIABLE, None)
        self._alive.close()
        wait(self.path)
        shutil.rmtree(self.path, ignore_errors=True)


def run_folder() -> Path | None:
    """Return the folder of this run; None outside of pytest."""
    path = os.environ.get(_VARIABLE)
    return Path(path) if path else None


def wait_for_the_end(folder: Path) -> None:
    """Return once the run is over."""
    with (folder / "alive").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)


@contextlib.contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Keep every other process out."""
    with (folder / f"{name}.lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
