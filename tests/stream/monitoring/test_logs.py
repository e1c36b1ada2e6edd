"""Log lines: JSON and console, their context, and how many of them there may be."""

from __future__ import annotations

import json
import logging
import threading
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from stream.monitoring.logs import (
    CONTEXT,
    ConsoleFormatter,
    JsonFormatter,
    LineBudget,
    Sparingly,
    configure_logging,
)
from stream.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[str]]]:
    """What a process configured by :func:`configure_logging` has written; it is put back afterwards."""
    names = ("", "faust", "mode", "aiokafka", "kafka", "asyncio", "opentelemetry", "urllib3")
    loggers = [logging.getLogger(name) for name in (*names, "stream.runtime.faust_adapter.consumer")]
    handlers, hook = loggers[0].handlers[:], threading.excepthook
    levels = [logger.level for logger in loggers]

    def written() -> list[str]:
        return capsys.readouterr().err.splitlines()

    yield written
    logging.captureWarnings(capture=False)
    loggers[0].handlers[:], threading.excepthook = handlers, hook
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def record(message: str, *values: object, **context: object) -> logging.LogRecord:
    made = logging.LogRecord("stream.test", logging.INFO, __file__, 1, message, values, None)
    made.__dict__.update(context)
    return made


def test_a_json_line_says_when_what_and_where() -> None:
    made = record(
        "sent %d", 3, transaction_id='t"\n1', topic="transactions", partition=2, offset=17, other="x"
    )
    made.created = 1_767_225_600.25
    line = JsonFormatter().format(made)
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2026-01-01T00:00:00.250Z",
        "level": "info",
        "logger": "stream.test",
        "message": "sent 3",
        "transaction_id": 't"\n1',
        "topic": "transactions",
        "partition": 2,
        "offset": 17,
    }


def test_a_console_line_has_the_same_behind_it() -> None:
    line = ConsoleFormatter().format(record("sent", transaction_id="t1", offset=17))
    assert line.endswith("INFO stream.test: sent transaction_id=t1 offset=17")


@pytest.mark.parametrize("hostile", ["t 1", "t1\n2026 ERROR root: fatal", 't"1', "a=b", "\x1b[2J", "\u2028"])
def test_an_id_cannot_pass_for_anything_else(hostile: str) -> None:
    [line] = ConsoleFormatter().format(record("sent", transaction_id=hostile, offset=1)).splitlines()
    said = line.partition(" transaction_id=")[2].removesuffix(" offset=1")
    assert json.loads(said) == hostile


def test_a_context_is_not_a_name_that_logging_has() -> None:
    assert not set(CONTEXT) & set(record("x").__dict__)


@pytest.mark.parametrize("form", ["console", "json"])
def test_libraries_are_kept_short(lines: Callable[[], list[str]], form: str) -> None:
    configure_logging(Settings(log_format=form))
    for _ in range(1_000):
        logging.getLogger("aiokafka.conn").error("cannot connect to node %s", 1)
        logging.getLogger("faust.agents").warning("rebalancing")
    logging.getLogger("mode").info("a step")
    try:
        raise OSError("gone")
    except OSError:
        logging.getLogger("aiokafka").exception("unexpected")
    written = lines()
    assert len(written) == 3
    if form == "json":
        assert [json.loads(line)["logger"] for line in written] == [
            "aiokafka.conn",
            "faust.agents",
            "aiokafka",
        ]


def test_own_lines_are_all_written(lines: Callable[[], list[str]]) -> None:
    configure_logging(Settings(log_format="json"))
    for offset in range(100):
        logging.getLogger("stream.runtime.processor").info("alert sent", extra={"offset": offset})
    assert [json.loads(line)["offset"] for line in lines()] == list(range(100))


def test_warnings_are_lines_too(lines: Callable[[], list[str]]) -> None:
    configure_logging(Settings(log_format="json"))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    [line] = lines()
    assert json.loads(line)["logger"] == "py.warnings"


def test_a_library_may_repeat_itself_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    sparingly, said = Sparingly(), record("away")
    said.name = "aiokafka"
    assert [sparingly.filter(said), sparingly.filter(said)] == [True, False]
    now += 31.0
    assert sparingly.filter(said)


def test_a_budget_lets_some_through_at_once_and_then_one_a_second() -> None:
    budget = LineBudget(burst=10, per_second=1.0)
    took: list[Any] = [budget.take(8, 100.0), budget.take(8, 100.0), budget.take(8, 100.5), budget.suppressed]
    assert took == [8, 2, 0, 14]
    assert (budget.take(8, 102.0), budget.take_suppressed(), budget.take_suppressed()) == (2, 20, 0)
    assert budget.take(1_000, 1_000.0) == 10


def test_what_is_told_is_bounded_whatever_comes() -> None:
    budget = LineBudget()
    assert sum(budget.take(2_000, second / 10) for second in range(1_000)) <= 10 + 100
