"""``riskstream features``."""

from __future__ import annotations

from pathlib import Path

import click

from stream.cli.data_options import data_options, read_table
from stream.cli.durations import DURATION
from stream.errors import DataError

__all__ = ["features"]


@click.command()
@click.option(
    "--input", "source", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Transactions."
)
@data_options
@click.option(
    "--output", required=True, type=click.Path(path_type=Path, dir_okay=False), help="A .parquet file."
)
@click.option(
    "--allowed-lateness",
    type=DURATION,
    default="3d",
    show_default=True,
    help="Later events are not scored, as the worker's setting has it.",
)
def features(
    *, source: Path, dataset: str | None, mapping: Path | None, output: Path, allowed_lateness: int
) -> None:
    """Compute every feature of a file of transactions, as a worker would on arrival.

    One row for each row of the input, in its order: transaction_id, outcome (scored, late, duplicate or
    rejected) and each feature by its name. Codes of categories are fitted on ALL rows of this file: do not
    train on them what you will judge on the same file; 'riskstream train' fits them on its training part.
    """
    if output.suffix.lower() != ".parquet":
        raise click.UsageError(f"--output: name a .parquet file, not {output}")
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pa_parquet

    from offline.features import build_features, fit_spec
    from stream.cli.progress import progress_bar

    table = read_table(source, dataset, mapping)
    spec = fit_spec(table, np.ones(len(table), dtype=np.bool_))
    with progress_bar("Features", len(table)) as advance:
        built = build_features(table, spec, allowed_lateness_ms=allowed_lateness, progress=advance)
    outcomes = np.array(["scored", "late", "duplicate", "rejected"], dtype=np.object_)
    columns = {
        "transaction_id": pa.array(table.transaction_id, pa.string()),
        "outcome": pa.array(outcomes[built.outcome], pa.string()),
        **{name: pa.array(built.matrix[:, place]) for place, name in enumerate(spec.names)},
    }
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        pa_parquet.write_table(pa.table(columns), output, compression="zstd")
    except OSError as error:
        raise DataError(f"{output} cannot be written: {error}") from error
    counts = np.bincount(built.outcome, minlength=4).tolist()
    shown = ", ".join(
        f"{count:,} {name}" for name, count in zip(outcomes.tolist(), counts, strict=True) if count
    )
    click.echo(f"{output}: {len(table):,} rows ({shown}) and {len(spec.names)} features")
