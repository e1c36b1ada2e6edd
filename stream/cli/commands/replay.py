"""``riskstream replay``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stream.cli.options import EVENT_TIME, data_options, read_table
from stream.errors import ConfigError

if TYPE_CHECKING:
    from offline.data.table import TransactionTable

__all__ = ["replay"]


@click.command()
@click.option(
    "--data", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Transactions to send."
)
@data_options
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Records to send per second.")
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds of event time per second: 60 sends an hour in a minute.",
)
@click.option(
    "--from-fraction",
    type=click.FloatRange(0, 1, max_open=True),
    help="Skip this share of the rows at the beginning.",
)
@click.option("--from", "from_time", type=EVENT_TIME, help="Skip events before this time (RFC 3339).")
@click.option("--limit", type=click.IntRange(min=1), help="Send at most this many transactions.")
@click.option("--labels", is_flag=True, help="Also send each label, once event time reaches its label time.")
def replay(
    *,
    data: Path,
    dataset: str | None,
    mapping: Path | None,
    rate: float | None,
    speed: float | None,
    from_fraction: float | None,
    from_time: int | None,
    limit: int | None,
    labels: bool,
) -> None:
    """Send a file of transactions to the stream, in the file's order.

    As fast as can be, or paced by --rate or --speed. Ends when all are acknowledged.
    """
    for item, other in (("rate", "speed"), ("from_fraction", "from_time")):
        if locals()[item] is not None and locals()[other] is not None:
            names = " and ".join(
                "--" + name.removesuffix("_time").replace("_", "-") for name in (item, other)
            )
            raise click.UsageError(f"{names} exclude each other")
    from offline.replay import Pacing, count_labels, table_records
    from offline.replay import replay as send
    from stream.cli.output import progress_bar
    from stream.cli.signals import stop_on_signals
    from stream.kafka.admin import require_topics
    from stream.settings import load_settings

    settings = load_settings()
    if settings.mapping is not None:
        raise ConfigError(
            "RISKSTREAM_MAPPING: the topic's messages have other names than those that replay sends; unset "
            "it, and replay to another topic (RISKSTREAM_TOPICS__TRANSACTIONS)"
        )
    table = _chosen(read_table(data, dataset, mapping), from_fraction, from_time, limit)
    if labels and (table.is_fraud is None or table.label_time_ms is None):
        raise click.UsageError(
            "--labels: the file does not contain the time at which each label becomes known"
        )
    require_topics(settings)
    total = len(table) - len(table.invalid) + (count_labels(table) if labels else 0)
    with stop_on_signals() as stop, progress_bar("Sending", total) as advance:
        report = send(
            table_records(table, settings.topics, labels=labels),
            settings,
            pacing=Pacing(rate=rate, speed=speed),
            progress=advance,
            stop=stop,
        )
    counts = ", ".join(f"{count:,} to {topic}" for topic, count in report.records.items()) or "nothing"
    click.echo(
        f"{'Stopped: s' if report.stopped else 'S'}ent {counts}; {report.bytes / 1e6:,.1f} MB in "
        f"{report.seconds:,.1f} s, {report.rate:,.0f} records/s"
    )
    if report.late_seconds > 1:
        click.echo(
            f"The schedule was too fast: records were sent up to {report.late_seconds:,.1f} s late", err=True
        )
    if table.invalid:
        row, error = next(iter(table.invalid.items()))
        click.echo(
            (
                f"{len(table.invalid):,} rows are not valid transactions and were not sent; row "
                f"{row + 1}: {error}"
            ),
            err=True,
        )


def _chosen(
    table: TransactionTable, from_fraction: float | None, from_time: int | None, limit: int | None
) -> TransactionTable:
    """Return the rows that the options leave."""
    if from_fraction is not None:
        table = table.slice(int(len(table) * from_fraction), len(table))
    if from_time is not None:
        # Invalid rows have no time; they stay, to be reported.
        table = table.take((table.event_time_ms >= from_time) | ~table.valid)
    return table if limit is None else table.slice(0, limit)
