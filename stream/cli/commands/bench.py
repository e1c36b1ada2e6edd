"""``riskstream bench``: measures the stream; from a checkout, which has the benchmarks beside the package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import click

import stream
from stream.errors import ConfigError

__all__ = ["bench"]

_PARTS = ("throughput", "latency", "recovery", "cost", "entity-join", "requests", "stages")


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(_PARTS))
@click.option("--broker", type=click.Choice(["kafka", "embedded"]), default="kafka", show_default=True)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Rounds of each measurement."
)
@click.option("--quick", is_flag=True, help="Fewer and shorter rounds: a first impression, not a result.")
@click.option(
    "--only",
    "contestants",
    multiple=True,
    help="Measure the throughput of this contestant only; may be repeated.",
)
@click.option(
    "--busy-rate",
    type=float,
    help="Transactions per second of the busy latency, without a throughput measurement.",
)
@click.option("--shared-cores", is_flag=True, help="Let the worker share its core with all other processes.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write all results to this JSON file."
)
@click.option(
    "--markdown",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Write the tables to this Markdown file, or between its markers; may be repeated.",
)
def bench(
    parts: tuple[str, ...], json_file: Path | None, contestants: tuple[str, ...], **options: Any
) -> None:
    """Measure throughput, latency, recovery, cost and the entity join on a broker of its own.

    Name the PARTS to measure; all by default. The entity join is the cost of a model that requests profiles
    of merchants, cards and devices for each transaction. The requests are hostile ones to /predict.

    The first run installs the peers into a cache folder (RISKSTREAM_CACHE_DIR).
    """
    from stream.cli.signals import raise_on_sigterm

    raise_on_sigterm()
    module = _benchmarks()
    known = module.CONTESTANTS
    chosen = tuple(name for name in known if not contestants or any(part in name for part in contestants))
    module.run(
        tuple(part for part in _PARTS if not parts or part in parts),
        module.Options(json=json_file, contestants=chosen, **options),
    )


def _benchmarks() -> Any:
    """Return the checkout's module of benchmarks.

    Raises
    ------
    ConfigError
        This is no checkout, or its development requirements are not installed.
    """
    root = Path(stream.__file__).resolve().parent.parent
    if not (root / "benchmarks" / "bench.py").is_file():
        raise ConfigError("the benchmarks are not part of the installed package: run it from a checkout")
    sys.path.insert(0, str(root))
    try:
        return importlib.import_module("benchmarks.bench")
    except ModuleNotFoundError as error:
        raise ConfigError(f"the benchmarks need {error.name}: run make setup in the checkout") from error
