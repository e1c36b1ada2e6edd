"""``riskstream worker``."""

from __future__ import annotations

import os
import signal
import sys

import click

from stream.settings import load_settings

__all__ = ["worker"]


@click.command()
def worker() -> None:
    """Score transactions until SIGTERM or Ctrl-C.

    Settings come from the environment: see 'riskstream settings'.
    """
    # Until the worker listens for it: a stop while it still prepares is a stop like any other.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    settings_in_force = load_settings()  # before the imports that take seconds: a wrong one is told at once
    from stream.runtime.fast_import import import_without_optional

    import_without_optional(drift=settings_in_force.drift.enabled)
    from stream.runtime.worker import run_worker

    sys.exit(run_worker(settings_in_force))
