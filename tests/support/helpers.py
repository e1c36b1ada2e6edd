"""What several suites use: settings on a shared broker, and waiting for a condition."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

import psutil

from stream.errors import BrokerError
from stream.kafka import admin
from stream.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from stream.kafka.local.base import Broker

#: Only a hang meets it; nothing is asserted about how long a thing takes.
PATIENCE_SECONDS = 60.0


def settings_for(broker: Broker, **overrides: Any) -> Settings:
    """Settings on ``broker`` with an app id and topic names that no other test has.

    A section is given as a mapping and merged: ``settings_for(broker, topics={"partitions": 2})``.
    """
    unique = uuid.uuid4().hex[:8]
    names = ("transactions", "alerts", "decisions", "labels", "dead_letters", "control")
    sections: dict[str, dict[str, Any]] = {
        "kafka": {"bootstrap_servers": broker.bootstrap_servers},
        "topics": {name: f"{name.replace('_', '-')}-{unique}" for name in names},
        "metrics": {"port": 0},
    }
    values: dict[str, Any] = {"app_id": f"test-{unique}"}
    for name, value in overrides.items():
        if isinstance(value, dict):
            sections[name] = {**sections.get(name, {}), **value}
        else:
            values[name] = value
    return Settings(**{**sections, **values})


def wait_until(condition: Callable[[], object], what: str, timeout_seconds: float = PATIENCE_SECONDS) -> None:
    """Return once ``condition()`` is true; fail, saying ``what``, where it never is."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_seconds:g} s in vain: {what}")
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether a process is there and not merely waiting to be collected."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_ready(settings: Settings, timeout_seconds: float) -> None:
    """Wait until the broker answers metadata requests.

    Raises
    ------
    BrokerError
        The broker did not answer within ``timeout_seconds``. A refusal (wrong password) is raised at once.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        left = max(deadline - time.monotonic(), 0.1)
        try:
            admin.probe(settings.kafka, left)
        except admin._RefusedError:
            raise
        except BrokerError:
            if time.monotonic() >= deadline:
                raise
        else:
            return
