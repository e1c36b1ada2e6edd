"""``riskstream serve``."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stream.cli.options import data_options, read_table
from stream.events.fields import MS_PER_DAY

if TYPE_CHECKING:
    from collections.abc import Callable

    from offline.data.table import TransactionTable
    from stream.decisions.sentences import Language
    from stream.scoring.bundle import Bundle
    from stream.serving.predict import PredictRequest, ScoringService
    from stream.state.store import MemoryStore

__all__ = ["serve"]


#: As the worker's settings have them.
_MAX_REASONS = 5
_LATENESS_MS = 3 * MS_PER_DAY


@click.command()
@click.option(
    "--bundle",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the model bundle.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Transactions from which to build the histories.",
)
@data_options
@click.option(
    "--labels",
    "labels_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Label events for the profiles, JSON lines in order of arrival; a later label corrects.",
)
@click.option(
    "--language",
    type=click.Choice(["en", "zh"]),
    default="en",
    show_default=True,
    help="Language of alert reasons.",
)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=8080,
    show_default=True,
    help="Port; 0 picks a free port.",
)
def serve(
    *,
    bundle: Path,
    data: Path | None,
    dataset: str | None,
    mapping: Path | None,
    labels_path: Path | None,
    language: Language,
    host: str,
    port: int,
) -> None:
    """Answer POST /predict with scores and reasons, against the histories and profiles of a file.

    The body is a transaction as on the topic, or a list of them; each is scored as if it came now, and
    changes nothing. GET /openapi.json describes the endpoint. A user that the file does not have is a new
    user. The histories stay those of the file; workers have the live ones. Profiles come from the file and
    its labels, with the delays that the model was trained with.

    RISKSTREAM_SCORING__TOKEN_FILE names a file with the bearer token that requests must have.
    """
    if labels_path is not None and data is None:
        raise click.UsageError("--labels requires --data: labels refer to its transactions")
    from stream.events.card_numbers import CardNumbers
    from stream.pipeline.preview import Preview
    from stream.scoring.bundle import Bundle
    from stream.serving.predict import ScoringService
    from stream.settings import load_settings

    settings = load_settings()
    loaded = Bundle.load(bundle, settings.bundle_public_key)
    if labels_path is not None and not loaded.spec.entities:
        raise click.UsageError("--labels requires a model with entity profiles: only these use labels")
    lateness_ms = _LATENESS_MS if loaded.allowed_lateness_ms is None else loaded.allowed_lateness_ms
    preview = Preview(
        loaded,
        lateness_ms=lateness_ms,
        max_reasons=_MAX_REASONS,
        language=language,
        user_ttl_ms=loaded.user_ttl_ms,
        card_numbers=CardNumbers(settings.card_numbers.policy, settings.card_numbers.hmac_key()),
    )
    from stream.state.store import MemoryStore

    store = MemoryStore()
    if data is not None:
        table = read_table(data, dataset, mapping)
        store = _state(table, labels_path, loaded, lateness_ms)

    async def score(predict_request: PredictRequest) -> list[dict[str, Any]]:
        profiles = preview.profiles
        profile_responses = (
            () if profiles is None else profiles.profile_responses(predict_request.rows, store)
        )
        return preview.score(predict_request.rows, store, profile_responses)

    asyncio.run(_serve(ScoringService(preview, score), host, port, settings.scoring.wanted_token))


def _state(
    table: TransactionTable, labels_path: Path | None, bundle: Bundle, lateness_ms: int
) -> MemoryStore:
    """Return the state that a worker would have after a file and its labels."""
    import numpy as np

    from offline.data.labels import read_labels
    from offline.features.build import REJECTED, SCORED
    from offline.features.entity_logs import load_logs
    from offline.features.histories import load_histories
    from stream.cli.output import progress_bar

    unknown = 0
    if labels_path is not None:
        labels, unknown = read_labels(labels_path, table)
        table = table.with_labels(labels)
    outcome = np.full(len(table), REJECTED, np.uint8)
    with progress_bar("Histories", len(table)) as advance:
        store = load_histories(
            table,
            lateness_ms=lateness_ms,
            user_ttl_ms=bundle.user_ttl_ms,
            refund_types=bundle.spec.refund_types,
            outcome=outcome,
            progress=advance,
        )
    if bundle.spec.entities:
        store |= load_logs(table, bundle.spec, outcome == SCORED, lateness_ms=lateness_ms)
    if unknown:
        click.echo(f"{unknown:,} labels refer to unknown transactions.", err=True)
    return store


async def _serve(
    service: ScoringService, host: str, port: int, wanted_token: Callable[[], str | None]
) -> None:
    from stream.serving.http import guard, listen

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner, port = await listen(service.application(guard(wanted_token)), host, port, option="--port")
    click.echo(f"Listening on http://{host}:{port}/predict")
    try:
        await stop.wait()
    finally:
        await runner.cleanup()
