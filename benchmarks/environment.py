"""The environment of a benchmark: machine, versions, commit and load, reported with every result."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import psutil

__all__ = ["describe", "environment"]

_PACKAGES: Final = (
    "riskstream",
    "numpy",
    "numba",
    "lightgbm",
    "rocksdict",
    "faust-streaming",
    "aiokafka",
    "mode-streaming",
    "orjson",
    "uvloop",
    "pydantic",
)


def environment() -> dict[str, Any]:
    """Return the machine, the versions, the commit and the load as JSON values.

    Load averages are those of the moment of the call: ask before the first measurement, so that what
    others did on the machine shows and what the benchmark did does not.
    """
    memory = psutil.virtual_memory()
    return {
        "machine": {
            "cpu": _cpu_model(),
            "cores": psutil.cpu_count(logical=False) or 0,
            "threads": psutil.cpu_count() or 0,
            "memory_gib": round(memory.total / 2**30, 1),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        },
        "versions": {
            "python": f"{platform.python_implementation()} {platform.python_version()}",
            **{name: _version(name) for name in _PACKAGES},
        },
        "commit": _commit(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "memory_available_gib": round(memory.available / 2**30, 1),
    }


def describe(found: dict[str, Any]) -> list[str]:
    """Return what :func:`environment` found as lines to print."""
    machine, commit = found["machine"], found["commit"]
    loads = " ".join(f"{load:.2f}" for load in found["load_average"])
    cores = f"{machine['cpu']}, {machine['cores']} cores ({machine['threads']} threads)"
    changed = " with uncommitted changes" if commit["changed"] else ""
    return [
        f"machine   {cores}, {machine['memory_gib']} GiB, {machine['system']}",
        "versions  " + ", ".join(f"{name} {number}" for name, number in found["versions"].items()),
        f"commit    {commit['hash']}{changed}",
        f"load      {loads} (1, 5, 15 minutes, before the first measurement)",
    ]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu_model() -> str:
    """Return the processor's name; the standard library knows it on few systems only."""
    source = Path("/proc/cpuinfo")
    if source.is_file():
        for line in source.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> dict[str, Any]:
    """Return the checkout's commit and whether files differ from it; unknown outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        return {
            "hash": commit,
            "changed": bool(_git(folder, "status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {"hash": "unknown", "changed": False}


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()
