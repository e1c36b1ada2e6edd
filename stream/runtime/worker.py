"""A worker's life: prepare, warm up, run until a signal or a fatal error, stop in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvloop

from stream.errors import RiskStreamError
from stream.monitoring.logs import configure_logging
from stream.runtime.lifecycle import Runtime, prepare
from stream.runtime.wiring import build_runtime

if TYPE_CHECKING:
    from stream.settings import Settings

__all__ = ["STOP_SECONDS", "run_worker"]


logger = logging.getLogger(__name__)

#: A longer stop is cut off. By then everything acknowledged is durable: the stop waited for the micro-batches
#: first, and records without a commit are recognised when they are consumed again.
STOP_SECONDS: Final = 4.0


def run_worker(settings: Settings) -> int:
    """Run a worker until SIGTERM or SIGINT; returns the exit status.

    Raises
    ------
    RiskStreamError
        It could not start.
    """
    configure_logging(settings)
    sys.setswitchinterval(_SWITCH_SECONDS)
    for line in settings.describe().splitlines():
        logger.info("setting %s", line)
    runtime = build_runtime(settings)
    prepare(runtime)
    _spare_the_collector()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(runtime))


async def _run(runtime: Runtime) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    runtime.on_fatal_error = stop.set
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, _tell, runtime)
    app = runtime.app
    app.loop = loop
    app.finalize()
    starting = asyncio.ensure_future(app.start())
    stopping = asyncio.ensure_future(stop.wait())
    watching = asyncio.ensure_future(_watch(runtime, stop))
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done() and starting.exception() is not None:
        runtime.fatal = starting.exception()
        stop.set()
    await stopping
    status = _exit_status(runtime)
    _force_exit_later(status)
    watching.cancel()
    if not starting.done():
        starting.cancel()
    logger.info("stopping")
    if status == 0:
        await runtime.decide_pending()
    # A crashed part of Faust may cancel this task, too.
    with contextlib.suppress(Exception, asyncio.CancelledError):
        await app.stop()
    logger.info("stopped")
    _leave(status)
    return status


async def _watch(runtime: Runtime, stop: asyncio.Event) -> None:
    """Log when the worker is ready, and notice a crash of a part of Faust."""
    announced = False
    while not stop.is_set():
        ready = runtime.ready
        runtime.metrics.ready.set(ready)
        if ready and not announced:
            text = "ready: state restored, accepting transactions"
            logger.info(text, extra={"records": runtime.recovered})
            announced = True
        if runtime.app.crashed:
            if runtime.fatal is None:
                runtime.fatal = runtime.app.crash_reason or RuntimeError("the Faust app crashed")
            stop.set()
        await asyncio.sleep(0.05)


def _tell(runtime: Runtime) -> None:
    """Log the state of everything, for an operator who wonders why nothing moves (SIGUSR1)."""
    watchdog = runtime.watchdog
    lines = [
        f"positions {runtime.positions()}, lag {watchdog.lag}, ready {runtime.ready}",
        f"{runtime.processor.describe()}; {watchdog.stalled_seconds:.0f} s without progress",
        runtime.app.consumer.describe(),
    ]
    for task in asyncio.all_tasks():
        frames = task.get_stack(limit=4)
        where = " < ".join(
            f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
            for frame in reversed(frames)
        )
        lines.append(f"{task.get_name()}: {where}")
    logger.warning("status on request:\n  %s", "\n  ".join(lines))


def _exit_status(runtime: Runtime) -> int:
    error = runtime.fatal
    if error is None:
        return 0
    # One line, whatever the error: the lines before it have the details.
    logger.error("fatal: %s", str(error).splitlines()[0] if str(error) else repr(error))
    if not isinstance(error, RiskStreamError):
        logger.debug("fatal", exc_info=error)
    return error.exit_code if isinstance(error, RiskStreamError) else 1


def _force_exit_later(status: int) -> None:
    """End the process even where a library's thread hangs (a Faust worker may ignore SIGTERM for ever)."""
    timer = threading.Timer(STOP_SECONDS, _leave, [status])
    timer.daemon = True
    timer.start()


def _leave(status: int) -> None:
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


#: Thresholds of the garbage collector: net new objects between two young collections, young collections
#: between two middle ones, middle ones between two full ones.
_COLLECT_EVERY: Final = (100_000, 20, 50)


def _spare_the_collector() -> None:
    """Let the garbage collector look at a micro-batch's leftovers, not at its data.

    A micro-batch of two thousand records holds some ten thousand tuples at a time, none in a cycle. With
    Python's threshold of 700 the collector would walk each micro-batch dozens of times, and all imported
    libraries now and then.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_EVERY)


#: How long a thread keeps the interpreter while another thread waits for it. With Python's 5 ms, each of the
#: many short turns of the event loop and the consumer may wait 5 ms while a large micro-batch is decided;
#: with a tenth of that, a third of the processor goes into switching.
_SWITCH_SECONDS: Final = 0.002
