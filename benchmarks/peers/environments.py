"""An environment for each peer, made once from pinned requirements and kept in the cache."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Final

from benchmarks.workload import cache_folder
from stream.errors import RiskStreamError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["PEERS", "interpreter"]

#: What the core needs, at the versions of the worker's lock.
_CORE: Final = ("lightgbm==4.7.0", "numba==0.68.1", "numpy==2.4.6", "orjson==3.13.0", "jiter==0.19.0")

#: By module in this package: what it needs besides. Quix Streams 3.28 takes no pydantic above 2.13, so the
#: core runs on that there; only records that are not ordinary are validated by it, and there are none.
PEERS: Final = {
    "faust_agent": (
        "faust-streaming[rocksdict]==0.15.3",
        "aiokafka==0.14.0",
        "mode-streaming==0.7.1",
        "rocksdict==0.3.29",
        "uvloop==0.23.0",
        "pydantic==2.14.3",
    ),
    "quix": ("quixstreams==3.28.1", "confluent-kafka==2.12.2", "rocksdict==0.3.29", "pydantic==2.13.5"),
    "bare": ("confluent-kafka==2.16.1", "rocksdict==0.3.29", "pydantic==2.14.3", "pydantic-settings==2.16.3"),
}


def interpreter(peer: str) -> Path:
    """Return the peer's Python, its environment made where it is not there yet.

    Raises
    ------
    RiskStreamError
        pip cannot install it.
    """
    wanted = [*_CORE, *PEERS[peer]]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(" ".join(wanted).encode()).hexdigest()[:8]
    folder = cache_folder() / "env" / f"{peer}-{version}-{digest}"
    python = folder / "bin" / "python"
    if (folder / ".complete").is_file():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile("w+") as log:
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install", *wanted],
        ):
            if subprocess.run(command, stdout=log, stderr=log, check=False).returncode:
                log.seek(0)
                last = log.read().strip().splitlines()[-1:]
                raise RiskStreamError(f"the environment of the peer {peer} cannot be created: {last}")
    (folder / ".complete").touch()
    return python
