"""The command ``riskstream``: the outermost layer, and the only one that may import both halves.

Each command has its own module, which is imported only when the command runs, so that a worker never loads
the training libraries.
"""

from __future__ import annotations

import importlib
import sys
from typing import Final

import click

from stream._version import __version__
from stream.errors import RiskStreamError

__all__ = ["main"]

#: Command -> (module, object, one-line help), in the order of the help.
_VERBS: Final[dict[str, tuple[str, str, str]]] = {
    "demo": (
        "stream.cli.demo.command",
        "demo",
        "Run the whole pipeline on this machine and show the results.",
    ),
    "worker": ("stream.cli.commands.worker", "worker", "Score transactions until stopped."),
    "settings": (
        "stream.cli.commands.settings",
        "settings",
        "Show the settings in force, secrets hidden, or describe all settings.",
    ),
    "topics": ("stream.cli.commands.topics", "topics", "Create the topics, or check existing ones."),
    "broker": ("stream.cli.commands.broker", "broker", "Run a broker on this machine, for development."),
    "simulate": ("stream.cli.commands.simulate", "simulate", "Simulate transactions with known frauds."),
    "inspect": (
        "stream.cli.commands.inspect",
        "inspect",
        "Validate a file of transactions.",
    ),
    "train": ("stream.cli.commands.train", "train", "Train a model and write its bundle."),
    "evaluate": (
        "stream.cli.commands.evaluate",
        "evaluate",
        "Evaluate a recipe week after week, as labels arrive.",
    ),
    "bundle": ("stream.cli.commands.bundle", "bundle", "Verify and sign model bundles."),
    "tune": ("stream.cli.commands.tune", "tune", "Search for better parameters on the validation part."),
    "compare-models": (
        "stream.cli.commands.compare",
        "compare_models",
        "Compare several models on one split.",
    ),
    "serve": ("stream.cli.commands.serve", "serve", "Score transactions on request over HTTP."),
    "features": (
        "stream.cli.commands.features",
        "features",
        "Compute every feature of a file of transactions.",
    ),
    "replay": ("stream.cli.commands.replay", "replay", "Send a file of transactions to the stream."),
    "alerts": ("stream.cli.commands.alerts", "alerts", "Watch the alerts."),
    "offsets": (
        "stream.cli.commands.offsets",
        "offsets",
        "Move the offsets at which workers continue.",
    ),
    "dlq": ("stream.cli.commands.dlq", "dlq", "Read and replay dead letters."),
    "skip": (
        "stream.cli.commands.skip",
        "skip",
        "Let workers skip a record that they cannot consume.",
    ),
    "bench": (
        "stream.cli.commands.bench",
        "bench",
        "Measure throughput, latency, recovery and cost (from a checkout).",
    ),
    "check": (
        "stream.cli.commands.check",
        "check",
        "Run preflight checks.",
    ),
    "metrics": ("stream.cli.commands.metrics", "metrics", "Write the reference table of metrics."),
    "schemas": ("stream.cli.commands.schemas", "schemas", "Export the JSON Schemas of the events."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _VERBS:
            return None
        module, name, _ = _VERBS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(verb, text) for verb, (_, _, text) in _VERBS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="riskstream")
def _cli() -> None:
    """Real-time transaction risk on Kafka."""


def main() -> None:
    """Run the command line; a RiskStream error becomes one readable line and its exit status."""
    try:
        _cli(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except RiskStreamError as error:
        click.echo(f"riskstream: {error}", err=True)
        sys.exit(error.exit_code)
