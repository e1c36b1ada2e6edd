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

_PARTS = ("throughput", "latency", "recovery", "cost", "hop", "stages")


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(_PARTS))
@click.option("--broker", type=click.Choice(["kafka", "embedded"]), default="kafka", show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Rounds of each.")
@click.option("--quick", is_flag=True, help="Fewer and shorter: a look, not a result.")
@click.option("--only", "contestants", multiple=True, help="A contestant of the throughput; may be repeated.")
@click.option("--busy-rate", type=float, help="Of the busy latency, where the throughput is not measured.")
@click.option("--shared-cores", is_flag=True, help="Let the worker share its core with all else.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write everything as JSON.")
@click.option(
    "--markdown",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Write the tables in Markdown, or into the file's places for them; may be repeated.",
)
def bench(
    parts: tuple[str, ...], json_file: Path | None, contestants: tuple[str, ...], **options: Any
) -> None:
    """Measure throughput, latency, recovery, cost and the hop on a broker of its own; all unless told what.

    The hop is what a model pays that asks merchants, cards and devices about each transaction.

    The peers are installed into a cache folder the first time (RISKSTREAM_CACHE_DIR).
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
