"""One broker of each kind for all processes of a test run, in a process of its own beside them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from stream.kafka.local.apache import KafkaBroker
from stream.kafka.local.embedded import EmbeddedBroker
from support.helpers import PATIENCE_SECONDS, is_running, wait_until
from support.paths import ROOT, SEARCH_PATH
from support.run_folder import locked, wait_for_the_end

KINDS: dict[str, type[EmbeddedBroker | KafkaBroker]] = {"embedded": EmbeddedBroker, "kafka": KafkaBroker}


@dataclass(frozen=True)
class SharedBroker:
    """A broker that another process has started; nobody may stop it."""

    kind: str
    port: int
    pid: int

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        return is_running(self.pid)


def shared_broker(kind: str, folder: Path) -> SharedBroker:
    """Return the run's broker of a kind, started by whoever asks first."""
    address = folder / f"{kind}.json"
    with locked(folder, kind):
        if not address.exists():
            log = folder / f"{kind}.log"
            with log.open("wb") as file:
                host = subprocess.Popen(
                    [sys.executable, "-m", "support.shared_brokers", kind, str(folder)],
                    cwd=ROOT,
                    env={**os.environ, "PYTHONPATH": SEARCH_PATH},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                )

            def started() -> bool:
                assert host.poll() is None, log.read_text(errors="replace")
                return address.exists()

            wait_until(started, f"the {kind} broker does not start", 2 * PATIENCE_SECONDS)
    known: dict[str, Any] = json.loads(address.read_bytes())
    return SharedBroker(kind, known["port"], known["pid"])


def wait_for_hosts(folder: Path) -> None:
    """Return once the hosts of the brokers have ended; they do when the run is over."""
    for path in folder.glob("*.json"):
        host = json.loads(path.read_bytes())["host"]
        if is_running(host):
            psutil.Process(host).wait(PATIENCE_SECONDS)


def main(kind: str, folder: Path) -> None:
    """Host a broker until the run is over."""
    with KINDS[kind]() as broker:
        known = {"port": broker.port, "pid": broker.pid, "host": os.getpid()}
        made = folder / f".{kind}"
        made.write_text(json.dumps(known), encoding="ascii")
        made.rename(folder / f"{kind}.json")
        wait_for_the_end(folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
