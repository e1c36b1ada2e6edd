"""``riskstream settings``: the settings in force, or the documentation of all settings."""

from __future__ import annotations

import itertools
from operator import attrgetter
from typing import Final

import click

from stream.cli.setting_references import setting_references
from stream.settings import load_settings

__all__ = ["reference", "settings"]

_HEAD: Final = """# Settings

Generated from the code by `riskstream settings --describe --markdown`; do not edit. Each setting is an
environment variable. The file named by `RISKSTREAM_ENV_FILE` (or `.env`) is read first, and environment
variables take precedence. `riskstream settings` shows the settings in force; its `kafka.bootstrap_servers` is
`RISKSTREAM_KAFKA__BOOTSTRAP_SERVERS`.
"""

_COLUMNS: Final = "| variable | type | default | description |\n|---|---|---|---|\n"


@click.command()
@click.option(
    "--describe",
    is_flag=True,
    help="Show every setting's environment variable, type, default and description instead.",
)
@click.option("--markdown", is_flag=True, help="With --describe: print Markdown tables.")
def settings(describe: bool, markdown: bool) -> None:
    """Show every setting in force, secrets hidden.

    The environment variable RISKSTREAM_KAFKA__BOOTSTRAP_SERVERS sets 'kafka.bootstrap_servers'.
    """
    if markdown and not describe:
        raise click.UsageError("--markdown needs --describe")
    if describe:
        click.echo(reference() if markdown else _table(), nl=False)
    else:
        click.echo(load_settings().describe())


def reference() -> str:
    """Return the reference page in Markdown."""
    parts = [_HEAD]
    for section, settings in itertools.groupby(setting_references(), attrgetter("section")):
        rows = "".join(
            f"| `{item.variable}` | {item.kind} | {f'`{item.default}`' if item.default else ''} "
            f"| {item.description} |\n"
            for item in settings
        )
        parts.append(f"\n## {section or 'General'}\n\n{_COLUMNS}{rows}")
    return "".join(parts)


def _table() -> str:
    rows = [("variable", "type", "default", "description")]
    rows += [
        (item.variable, item.kind, item.default or "-", item.description) for item in setting_references()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n"
        for row in rows
    )
