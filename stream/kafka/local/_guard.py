"""Turn into a broker that dies with its parent: ``_guard.py PARENT_PID COMMAND [ARGUMENT ...]``.

Run as a script by :mod:`stream.kafka.local.base`, never imported. The kernel keeps the "signal me when my
parent dies" setting over an exec, so the process id stays the broker's own and nothing is left to watch
over it. Setting it here rather than in a ``preexec_fn`` keeps the parent free to have threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def _main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above could take effect
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - the command is our own, and a shell would be in the way


if __name__ == "__main__":
    _main()
