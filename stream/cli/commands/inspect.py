"""``riskstream inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stream.cli.options import DURATION, data_options, read_table
from stream.cli.output import table_console, write_json

__all__ = ["inspect"]


@click.command()
@click.option(
    "--data", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Transactions to validate."
)
@data_options
@click.option("--allowed-lateness", type=DURATION, default="3d", show_default=True)
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the report to this JSON file.",
)
@click.option("--strict", is_flag=True, help="Exit with status 5 if some rows are unusable.")
def inspect(
    *,
    data: Path,
    dataset: str | None,
    mapping: Path | None,
    allowed_lateness: int,
    json_path: Path | None,
    strict: bool,
) -> None:
    """Validate a file of transactions, and describe its columns.

    Errors are rows that training and the stream leave out: invalid transactions, duplicates, and rows that
    are too late. Warnings are rows that both use but that deserve a look.
    """
    from offline.data.quality import check_quality
    from stream.errors import DataError

    report = check_quality(read_table(data, dataset, mapping), allowed_lateness_ms=allowed_lateness)
    if json_path is not None:
        write_json(json_path, report)
    _print(report)
    unusable = sum(item["rows"] for item in report["findings"] if item["severity"] == "error")
    if strict and unusable:
        raise DataError(f"{data}: {unusable:,} errors in unusable rows, see above")


def _print(report: dict[str, Any]) -> None:
    from rich.table import Table

    console = table_console()
    console.print(f"{report['rows']:,} rows, {report['valid_rows']:,} of them valid transactions")
    columns = Table(title="Columns", title_justify="left")
    for name in ("field", "missing", "least", "median", "most", "distinct"):
        columns.add_column(name, justify="left" if name == "field" else "right")
    for name, found in report["columns"].items():
        if found["kind"] == "label":
            console.print(
                f"{found['frauds']:,} frauds, {found['legitimate']:,} legitimate, "
                f"{found['missing']:,} unknown"
            )
            continue
        cells = (found.get(key) for key in ("missing", "least", "median", "most", "distinct"))
        columns.add_row(name, *("" if cell is None else _cell(cell) for cell in cells))
    console.print(columns)
    if not report["findings"]:
        console.print("No problems found.")
        return
    findings = Table(title="Problems", title_justify="left")
    for name in ("", "field", "column", "what", "rows", "share", "first rows"):
        findings.add_column(name, justify="right" if name in ("rows", "share") else "left")
    for item in report["findings"]:
        findings.add_row(
            item["severity"],
            item["field"],
            item["column"] or "",
            item["what"],
            f"{item['rows']:,}",
            f"{item['share']:.2%}",
            ", ".join(map(str, item["first_rows"])),
        )
    console.print(findings)


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"
