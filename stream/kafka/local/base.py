"""The base of the brokers that RiskStream starts itself: one child process, awaited and ended."""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Self

from stream.errors import BrokerError
from stream.kafka.admin import probe
from stream.settings import KafkaSettings

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["HOST", "START_TIMEOUT_SECONDS", "Broker", "free_port"]


#: The only address that these brokers listen on and advertise.
HOST: Final = "127.0.0.1"

#: Longest wait for the first response. Apache Kafka needs 4 s alone and several times that on a busy machine.
START_TIMEOUT_SECONDS: Final = 120.0

#: Longest wait between SIGTERM and SIGKILL. Apache Kafka writes its snapshot and clean-shutdown mark here.
STOP_TIMEOUT_SECONDS: Final = 30.0

#: How often a condition is looked at while something starts.
_POLL_SECONDS: Final = 0.05

#: Longest wait for a response while starting; short, so that a dead process is noticed soon.
_PROBE_TIMEOUT_SECONDS: Final = 2.0

#: Ports to pick from. They lie below Linux's ephemeral ports (32768 and up): between a kill and a restart
#: no client's outgoing connection can take the port, or connect to itself while trying to reach it.
_PORTS: Final = range(15_000, 32_000)

#: Another process may take a picked port before the broker does.
_PORT_ATTEMPTS: Final = 3

_LOG_LINES: Final = 5
_GUARD: Final = Path(__file__).with_name("_guard.py")


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nothing listens at this moment."""
    for port in random.sample(_PORTS, 100):
        if _is_free(port):
            return port
    raise BrokerError(f"no free port found on {HOST} between {_PORTS.start} and {_PORTS.stop}")


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError:
            return False
    return True


class Broker(ABC):
    """A broker in a child process, on 127.0.0.1.

    1. ``start`` returns once the broker answers metadata requests, or raises and leaves nothing behind.
    2. ``stop`` ends it in an orderly way, ``kill`` as a crash would; call either at any time, any number of
       times.
    3. After either, ``start`` may be called again and takes the same port.
    4. The child is killed when the thread that called ``start`` ends or the process dies in any way (on
       Linux; elsewhere only when the interpreter exits). So start it from a thread that lives on.
    5. The child has its own session: Ctrl-C in the terminal reaches it only through ``stop``.

    Parameters
    ----------
    port:
        0 picks a free port at the first start.
    client:
        The settings with which ``start`` reaches a broker that is not plain text; its address is not used.
    start_timeout_seconds:
        Longest wait in ``start``.
    """

    #: The name on the command line.
    kind: ClassVar[str]

    def __init__(
        self,
        *,
        port: int = 0,
        client: KafkaSettings | None = None,
        start_timeout_seconds: float = START_TIMEOUT_SECONDS,
    ) -> None:
        self._client = client or KafkaSettings()
        self._port = port
        self._picks_port = port == 0
        self._start_timeout_seconds = start_timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._owner_pid = 0

    @abstractmethod
    def _prepare(self) -> tuple[list[str], Path]:
        """Return the command, with an absolute path, and the file for its output.

        Raises
        ------
        BrokerError
            This machine lacks a program or file that the broker needs.
        """

    @abstractmethod
    def _clean_up(self) -> None:
        """Remove the temporary files of this broker; may be called again."""

    @property
    def port(self) -> int:
        """The port; 0 before the first start if a free port will be picked."""
        return self._port

    @property
    def bootstrap_servers(self) -> str:
        """The address for clients, as host:port."""
        return f"{HOST}:{self._port}"

    @property
    def pid(self) -> int:
        """Process id of the broker.

        Raises
        ------
        BrokerError
            It was not started, or was stopped.
        """
        if self._process is None:
            raise BrokerError(f"the {self.kind} broker is not running; start it first")
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process is there now."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the broker and wait until it answers; does nothing if it runs already.

        Raises
        ------
        BrokerError
            The port is taken, the broker lacks a file or program, it died (with its last log lines), or it
            did not answer in time.
        """
        if self.alive:
            return
        self._process = None
        try:
            for attempt in range(1, _PORT_ATTEMPTS + 1):
                try:
                    self._start_once()
                except _PortTakenError:
                    if not self._picks_port or attempt == _PORT_ATTEMPTS:
                        raise
                    self._port = 0
                else:
                    break
        except BaseException:
            self.stop()
            raise
        self._picks_port = False  # clients know it now: a restart must take the same one

    def _start_once(self) -> None:
        if self._port == 0:
            self._port = free_port()
        elif not _is_free(self._port):
            raise BrokerError(f"port {self._port} of {HOST} is in use; choose another, or 0 for any")
        command, log_path = self._prepare()
        guarded = [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), *command]
        self._owner_pid = os.getpid()
        atexit.register(self._stop_at_exit)
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the command is our own
                guarded, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + self._start_timeout_seconds
        kafka = self._client.model_copy(update={"bootstrap_servers": self.bootstrap_servers})
        problem = "it does not listen"
        while time.monotonic() < deadline:
            status = self._process.poll()
            if status is not None:
                tail = _last_lines(log_path)
                error = _PortTakenError if "in use" in tail else BrokerError
                raise error(f"the {self.kind} broker exited with status {status} while starting: {tail}")
            if _listens(self._port):
                try:
                    probe(kafka, _PROBE_TIMEOUT_SECONDS)
                except BrokerError as refusal:
                    problem = str(refusal)
                else:
                    return
            time.sleep(_POLL_SECONDS)
        raise BrokerError(
            f"the {self.kind} broker did not respond at {self.bootstrap_servers} within "
            f"{self._start_timeout_seconds:g} s: {problem}; its last log lines: "
            f"{_last_lines(log_path)}"
        )

    def stop(self) -> None:
        """End the broker: SIGTERM, a bounded wait, SIGKILL; then remove its temporary files."""
        self._end(signal.SIGTERM)
        self._clean_up()

    def kill(self) -> None:
        """End the broker as a crash would, by SIGKILL; its data stay for the next ``start``."""
        self._end(signal.SIGKILL)

    def _end(self, sent: signal.Signals) -> None:
        process, self._process = self._process, None
        atexit.unregister(self._stop_at_exit)
        if process is None:
            return
        try:
            process.send_signal(sent)
            process.wait(STOP_TIMEOUT_SECONDS)
        except BaseException as error:  # too slow, or this process was itself told to stop meanwhile
            process.kill()
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise

    def _stop_at_exit(self) -> None:
        if os.getpid() == self._owner_pid:  # a fork inherits the registration, but not the child
            self.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _PortTakenError(BrokerError):
    """The broker found its port taken."""


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
        return True
    return False


def _last_lines(path: Path) -> str:
    """Return the last lines of a log as one line, without stack traces."""
    lines: deque[str] = deque(maxlen=_LOG_LINES)
    with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as log:
        for line in log:
            if line.strip() and not line.startswith(("\t", "    ")):
                lines.append(line.strip())
    return " | ".join(lines) or "(it printed nothing)"
