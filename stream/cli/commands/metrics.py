"""``riskstream metrics``: the table of a worker's metrics, for those who write queries."""

from __future__ import annotations

from pathlib import Path

import click

from stream.errors import ConfigError

__all__ = ["metrics", "table"]

_HEAD = """# Metrics

Generated from the code by `riskstream metrics`; do not edit. A worker serves these metrics at `/metrics`.
A histogram has `_bucket`, `_sum` and `_count`; durations have buckets from 1 ms to 10 s. No label contains
the id of a user or a transaction. The label `feature` is the name of a feature or `score`; `partition` is a
partition of the source topic.

| metric | type | labels | unit | meaning |
|---|---|---|---|---|
"""


def table() -> str:
    """Return the document."""
    from stream.monitoring.metrics import Metrics

    lines = [
        f"| `{found.name}` | {found.kind} | {', '.join(f'`{label}`' for label in found.labels)} "
        f"| {found.unit} | {found.text} |\n"
        for found in Metrics("", "").described
    ]
    return _HEAD + "".join(lines)


@click.command()
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("docs/reference/metrics.md"),
    show_default=True,
    help="The file to write.",
)
def metrics(output: Path) -> None:
    """Write the reference table of metrics."""
    try:
        output.write_text(table(), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output: cannot write to {output}: {error.strerror}") from error
    print(output)
