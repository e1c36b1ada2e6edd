"""``riskstream alerts``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.table import Table

    from stream.settings import Settings

__all__ = ["alerts"]


_LEVELS: Final = ("LOW", "MEDIUM", "HIGH")

_SHOWN_ALERTS: Final = 20
_STYLES: Final = {"HIGH": "bold red", "MEDIUM": "yellow", "LOW": "dim"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the JSON of each alert, one per line.")
@click.option("--from-beginning", is_flag=True, help="Begin with the existing alerts.")
@click.option("--limit", type=click.IntRange(min=1), help="Exit after this many alerts.")
@click.option(
    "--level",
    type=click.Choice(list(reversed(_LEVELS)), case_sensitive=False),
    default="LOW",
    help="Show alerts of this level and above.",
)
def alerts(*, as_json: bool, from_beginning: bool, limit: int | None, level: str) -> None:
    """Watch the alerts until Ctrl-C: a live table in a terminal, or JSON lines.

    Reads without a consumer group and commits nothing, so watching never disturbs another reader.
    """
    from stream.cli.signals import stop_on_signals
    from stream.kafka.admin import require_topics
    from stream.settings import load_settings

    settings = load_settings()
    require_topics(settings)
    wanted = frozenset(_LEVELS[_LEVELS.index(level.upper()) :])
    with stop_on_signals() as stop:
        found = _read(settings, wanted, from_beginning=from_beginning, limit=limit, stop=stop)
        if as_json or not sys.stdout.isatty():
            _print_lines(found)
        else:
            _show_table(found)


def _read(
    settings: Settings,
    levels: frozenset[str],
    *,
    from_beginning: bool,
    limit: int | None,
    stop: Callable[[], bool],
) -> Iterator[tuple[bytes, dict[str, Any]] | None]:
    """Yield each alert of the levels as its bytes and its JSON; None after each poll."""
    from stream.kafka.reader import TopicReader

    seen = 0
    with TopicReader(settings, settings.topics.alerts) as reader:
        for batches in reader.follow(from_beginning=from_beginning, stop=stop):
            for record in (record for records in batches.values() for record in records):
                alert = _parsed(record.value)
                if alert is None or alert.get("risk_level") not in levels:
                    continue
                yield record.value, alert
                seen += 1
                if limit is not None and seen >= limit:
                    return
            yield None


def _parsed(raw: bytes | None) -> dict[str, Any] | None:
    """Return an alert's JSON, None for a record that is no alert."""
    import orjson

    try:
        value = orjson.loads(raw or b"")
        usable = isinstance(value["risk_score"], int | float) and all(
            isinstance(reason, dict) for reason in value["reasons"]
        )
    except (ValueError, TypeError, KeyError):
        return None
    return value if usable else None


def _print_lines(found: Iterator[tuple[bytes, dict[str, Any]] | None]) -> None:
    out = sys.stdout.buffer
    for item in found:
        if item is not None:
            out.write(item[0] + b"\n")
            out.flush()


def _show_table(found: Iterator[tuple[bytes, dict[str, Any]] | None]) -> None:
    from rich.console import Console
    from rich.live import Live

    rows: list[dict[str, Any]] = []
    total = 0
    with Live(_table(rows, total), console=Console(), auto_refresh=False) as live:
        for item in found:
            if item is None:
                live.update(_table(rows, total), refresh=True)
                continue
            total += 1
            rows = [*rows[-(_SHOWN_ALERTS - 1) :], item[1]]
        live.update(_table(rows, total), refresh=True)


def _table(rows: list[dict[str, Any]], total: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{total:,} alerts")
    for heading in ("event time", "user", "transaction", "score", "level", "why"):
        table.add_column(heading, overflow="fold" if heading == "why" else "ellipsis")
    for alert in rows:
        reasons = alert.get("reasons") or [{}]
        # Texts come from producers: shown as they are, never as markup.
        cells = (
            str(alert.get("event_time", ""))[:19],
            str(alert.get("user_id", "")),
            str(alert.get("transaction_id", "")),
            f"{alert.get('risk_score', 0):.4f}",
            str(alert.get("risk_level", "")),
            str(reasons[0].get("sentence", "")),
        )
        style = _STYLES.get(str(alert.get("risk_level")), "")
        table.add_row(
            *(Text(cell, style=style if index in (3, 4) else "") for index, cell in enumerate(cells))
        )
    return table
