"""The tutorials work: their commands run as they are written, and print the output that is shown."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from support.pages import TUTORIALS, shell_blocks

#: A tutorial takes some 20 s, and minutes where the kernels are not compiled yet.
LIMIT_SECONDS = 400
PORTS = ("9092", "9108", "9110", "8080")


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def environment(ports: dict[str, int]) -> dict[str, str]:
    """Return a reader's environment, with the venv on the path and no settings of this machine."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RISKSTREAM_")}
    folder = str(Path(sys.executable).parent)
    # The worker's default port; the pages need not name it.
    return inherited | {
        "PATH": f"{folder}{os.pathsep}{inherited['PATH']}",
        "RISKSTREAM_METRICS__PORT": str(ports["9108"]),
        "COLUMNS": "120",
    }


def run(blocks: list[tuple[str, str]], folder: Path) -> list[str]:
    """Run the blocks in a single shell, as a reader does; returns the output of each."""
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    # The shell ends its background commands and waits for them, whatever becomes of the page.
    script = "set -e -o pipefail\ntrap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n"
    for number, (code, _) in enumerate(blocks):
        script += f"echo '::block {number}::'\n{code}"
    script = re.sub(rf"\b({'|'.join(PORTS)})\b", lambda found: str(ports[found[0]]), script)
    output = folder / "output.txt"
    with output.open("w+") as file:
        shell = subprocess.Popen(
            ["bash", "-c", script],
            cwd=folder,
            env=environment(ports),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = shell.wait(LIMIT_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    text = output.read_text()
    logs = "".join(log.read_text()[-2000:] for log in folder.glob("worker*.log")) if status else ""
    assert status == 0, text[-4000:] + logs
    return re.split(r"::block \d+::\n", text)[1:]


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda path: path.stem)
def test_the_commands_work_and_print_what_is_shown(page: Path, tmp_path: Path) -> None:
    blocks = shell_blocks(page.read_text(encoding="utf-8"))
    assert blocks
    for (code, shown), printed in zip(blocks, run(blocks, tmp_path), strict=True):
        for line in shown.splitlines():
            assert " ".join(line.split()) in " ".join(printed.split()), f"after {code!r}:\n{printed[-2000:]}"


def test_there_are_tutorials() -> None:
    assert {page.stem for page in TUTORIALS} == {"first-model", "first-alert", "own-kafka", "own-data"}
