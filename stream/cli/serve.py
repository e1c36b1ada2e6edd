"""``riskstream serve``."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stream.cli.data_options import data_options, read_table

if TYPE_CHECKING:
    from stream.runtime.scoring_service import Asked, ScoringService
    from stream.scoring.sentences import Language

__all__ = ["serve"]

#: As the worker's settings have them.
_MAX_FUTURE_MS = 300_000
_MAX_REASONS = 5
_LATENESS_MS = 3 * 86_400_000


@click.command()
@click.option(
    "--bundle", required=True, type=click.Path(path_type=Path, file_okay=False), help="The model's folder."
)
@click.option(
    "--data", type=click.Path(path_type=Path, dir_okay=False), help="Transactions that make up the histories."
)
@data_options
@click.option(
    "--language", type=click.Choice(["en", "zh"]), default="en", show_default=True, help="Of the reasons."
)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=8080, show_default=True, help="0 picks a free one."
)
def serve(
    *,
    bundle: Path,
    data: Path | None,
    dataset: str | None,
    mapping: Path | None,
    language: Language,
    host: str,
    port: int,
) -> None:
    """Answer POST /predict with scores and reasons, against the histories of a file.

    The body is a transaction as on the topic, or a list of them; each is scored as if it came now, and
    nothing is learnt from it. GET /openapi.json describes it. Users that the file does not have
    are new users. The histories are those of the file and stay so: a worker's live ones are not asked.
    """
    from stream.preview import Preview
    from stream.runtime.scoring_service import ScoringService
    from stream.scoring.bundle import Bundle

    loaded = Bundle.load(bundle)
    lateness_ms = _LATENESS_MS if loaded.allowed_lateness_ms is None else loaded.allowed_lateness_ms
    preview = Preview(
        loaded,
        lateness_ms=lateness_ms,
        max_future_ms=_MAX_FUTURE_MS,
        max_reasons=_MAX_REASONS,
        language=language,
    )
    from offline.histories import load_histories
    from stream.cli.progress import progress_bar
    from stream.features.history import MemoryRecords

    store = MemoryRecords()
    if data is not None:
        table = read_table(data, dataset, mapping)
        with progress_bar("Histories", len(table)) as advance:
            store = load_histories(table, lateness_ms=lateness_ms, progress=advance)

    async def score(asked: Asked) -> list[dict[str, Any]]:
        return preview.score(asked.rows, store)

    asyncio.run(_serve(ScoringService(preview, score), host, port))


async def _serve(service: ScoringService, host: str, port: int) -> None:
    from stream.runtime.endpoint import listen

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner, port = await listen(service.application(), host, port, option="--port")
    click.echo(f"Listening on http://{host}:{port}/predict")
    try:
        await stop.wait()
    finally:
        await runner.cleanup()
