"""``riskstream features``."""

from __future__ import annotations

from pathlib import Path

import click

from stream.cli.options import (
    DURATION,
    chosen_profiles,
    data_options,
    profiles_option,
    read_table,
    tell_absent,
)
from stream.errors import DataError

__all__ = ["features"]


@click.command()
@click.option(
    "--input",
    "source",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of transactions.",
)
@data_options
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The .parquet file to write.",
)
@click.option(
    "--allowed-lateness",
    type=DURATION,
    default="3d",
    show_default=True,
    help="Events later than this are not scored, as in a worker.",
)
@profiles_option
@click.option(
    "--label-delay",
    type=DURATION,
    default="7d",
    show_default=True,
    help="A label enters the profiles no sooner than this after its transaction.",
)
@click.option(
    "--labels",
    "labels_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Label events for the profiles, JSON lines in order of arrival; a later label corrects.",
)
def features(
    *,
    source: Path,
    dataset: str | None,
    mapping: Path | None,
    output: Path,
    allowed_lateness: int,
    profiles: str | None,
    label_delay: int,
    labels_path: Path | None,
) -> None:
    """Compute every feature of a file of transactions, as a worker would on arrival.

    The output has one row for each row of the input, in its order: transaction_id, outcome (scored, late,
    duplicate or rejected) and each feature by its name. Codes of categories are fitted on ALL rows of this
    file: do not train on features that you evaluate on the same file; 'riskstream train' fits the codes on
    its training part. With --profiles the profiles' features come last, from the file's labels and those of
    --labels.
    """
    if output.suffix.lower() != ".parquet":
        raise click.UsageError(f"--output: name a .parquet file, not {output}")
    if labels_path is not None and profiles is None:
        raise click.UsageError("--labels requires --profiles: only entity profiles use labels")
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pa_parquet

    from offline.data.labels import read_labels
    from offline.features.build import build_features, fit_spec
    from offline.training.profiles import present
    from stream.cli.output import progress_bar

    wanted = chosen_profiles(profiles, label_delay)
    table = read_table(source, dataset, mapping)
    unknown = 0
    if labels_path is not None:
        labels, unknown = read_labels(labels_path, table)
        table = table.with_labels(labels)
    tell_absent(table, wanted)
    spec = fit_spec(table, np.ones(len(table), dtype=np.bool_), present(table, wanted))
    with progress_bar("Features", len(table)) as advance:
        built = build_features(table, spec, allowed_lateness_ms=allowed_lateness, progress=advance)
    outcomes = np.array(["scored", "late", "duplicate", "rejected"], dtype=np.object_)
    columns = {
        "transaction_id": pa.array(table.transaction_id, pa.string()),
        "outcome": pa.array(outcomes[built.outcome], pa.string()),
        **{name: pa.array(built.matrix[:, index]) for index, name in enumerate(spec.names)},
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
    ignored = f"; {unknown:,} labels refer to unknown transactions" if unknown else ""
    click.echo(f"{output}: {len(table):,} rows ({shown}) and {len(spec.names)} features{ignored}")
