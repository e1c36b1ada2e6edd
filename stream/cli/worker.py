"""``riskstream worker`` and ``riskstream settings``."""

from __future__ import annotations

import sys

import click

from stream.settings import load_settings


@click.command()
def worker() -> None:
    """Score transactions until SIGTERM or Ctrl-C.

    Settings come from the environment: see 'riskstream settings'.
    """
    from stream.runtime.worker import run_worker

    sys.exit(run_worker(load_settings()))


@click.command()
def settings() -> None:
    """Show every setting in force, secrets hidden.

    A setting 'kafka.bootstrap_servers' is set by RISKSTREAM_KAFKA__BOOTSTRAP_SERVERS.
    """
    click.echo(load_settings().describe())
