"""``POST /predict``: scores over HTTP, of one transaction or of a batch, leaving no trace of them."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

import jiter
import orjson
from aiohttp import web

from stream import __version__
from stream.errors import ConfigError, InvalidRecordError
from stream.events import MAX_RECORD_BYTES, Transaction, parse_object

if TYPE_CHECKING:
    from collections.abc import Callable

    from stream.features.history import RecordReader
    from stream.intake import Row
    from stream.preview import Preview

__all__ = ["MAX_BATCH", "ScoringService", "listen", "openapi"]

logger = logging.getLogger(__name__)

#: Most transactions of one request, so that one cannot keep the others waiting for long.
MAX_BATCH: Final = 500
_MAX_BODY_BYTES: Final = 4 << 20


class ScoringService:
    """Routes for an aiohttp application.

    Parameters
    ----------
    reader
        Returns what reads the histories now.
    """

    def __init__(self, preview: Preview, reader: Callable[[], RecordReader]) -> None:
        self._preview = preview
        self._reader = reader
        self._document = orjson.dumps(openapi())

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        app.router.add_post("/predict", self._predict)
        app.router.add_get("/openapi.json", self._describe)

    async def _describe(self, _: web.Request) -> web.Response:
        return web.Response(body=self._document, content_type="application/json")

    async def _predict(self, request: web.Request) -> web.Response:
        body = await request.read()
        now_ms = time.time_ns() // 1_000_000
        single = body.lstrip()[:1] != b"["
        try:
            parsed = [parse_object(body, MAX_RECORD_BYTES)] if single else _parse_batch(body)
        except InvalidRecordError as error:
            return _refuse([_problem(error)])
        rows: list[Row] = []
        problems = []
        for place, item in enumerate(parsed):
            try:
                if not isinstance(item, dict):
                    raise InvalidRecordError("$", "must be a JSON object")
                rows.append(self._preview.row(item, now_ms))
            except InvalidRecordError as error:
                problems.append(_problem(error, *(() if single else (place,))))
        if problems:
            return _refuse(problems)
        answers = self._preview.score(rows, self._reader())
        return web.Response(
            body=orjson.dumps(answers[0] if single else answers), content_type="application/json"
        )


async def listen(service: ScoringService, host: str, port: int) -> tuple[web.AppRunner, int]:
    """Serve on an address, and return the runner to clean up and the port in use.

    Raises
    ------
    ConfigError
        The address cannot be bound.
    """
    app = web.Application(client_max_size=_MAX_BODY_BYTES)
    service.add_to(app)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise ConfigError(
            f"--port: cannot listen on {host}:{port}: {error.strerror or error}; choose another one, or 0"
        ) from error
    return runner, int(runner.addresses[0][1])


def _parse_batch(body: bytes) -> list[Any]:
    """Return the values of a JSON list, numbers as exact as their text.

    Raises
    ------
    InvalidRecordError
        It is not a list of 1 to ``MAX_BATCH`` values.
    """
    try:
        items: list[Any] = jiter.from_json(
            body, allow_inf_nan=False, float_mode="lossless-float", catch_duplicate_keys=True
        )
    except (ValueError, UnicodeError, RecursionError) as error:
        raise InvalidRecordError("$", f"is not valid JSON: {error}") from error
    if not 0 < len(items) <= MAX_BATCH:
        raise InvalidRecordError("$", f"must hold 1 to {MAX_BATCH} transactions, not {len(items)}")
    return items


def _problem(error: InvalidRecordError, *place: int) -> dict[str, Any]:
    return {"loc": ["body", *place, error.field], "msg": error.reason}


def _refuse(problems: list[dict[str, Any]]) -> web.Response:
    return web.Response(body=orjson.dumps({"detail": problems}), status=422, content_type="application/json")


def openapi() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of the routes."""
    transaction = Transaction.model_json_schema(
        mode="validation", ref_template="#/components/schemas/{model}"
    )
    schemas = {**transaction.pop("$defs", {}), "Transaction": transaction, **_SCHEMAS}

    def content(schema: dict[str, Any]) -> dict[str, Any]:
        return {"content": {"application/json": {"schema": schema}}}

    def one_or_many(name: str) -> dict[str, Any]:
        item = {"$ref": f"#/components/schemas/{name}"}
        return {"oneOf": [item, {"type": "array", "items": item, "minItems": 1, "maxItems": MAX_BATCH}]}

    return {
        "openapi": "3.1.0",
        "info": {"title": "RiskStream", "version": __version__},
        "paths": {
            "/predict": {
                "post": {
                    "summary": "Score a transaction, or several, as if each came now; nothing is learnt",
                    "requestBody": {"required": True, **content(one_or_many("Transaction"))},
                    "responses": {
                        "200": {
                            "description": "In the request's order",
                            **content(one_or_many("Prediction")),
                        },
                        "422": {
                            "description": "What is wrong with which field",
                            **content({"$ref": "#/components/schemas/Problems"}),
                        },
                    },
                }
            }
        },
        "components": {"schemas": schemas},
    }


_SCHEMAS: Final[dict[str, Any]] = {
    "Prediction": {
        "type": "object",
        "required": ["transaction_id", "user_id", "outcome", "model_version"],
        "properties": {
            "transaction_id": {"type": "string"},
            "user_id": {"type": "string"},
            "outcome": {"enum": ["scored", "late", "duplicate", "failed"]},
            "risk_score": {"type": "number", "minimum": 0, "maximum": 1},
            "risk_level": {"enum": ["HIGH", "MEDIUM", "LOW"]},
            "prediction": {"enum": [0, 1]},
            "reasons": {"type": "array", "items": {"type": "object"}},
            "model_version": {"type": "string"},
            "error": {"type": "string"},
        },
    },
    "Problems": {
        "type": "object",
        "required": ["detail"],
        "properties": {
            "detail": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["loc", "msg"],
                    "properties": {
                        "loc": {"type": "array", "items": {"type": ["string", "integer"]}},
                        "msg": {"type": "string"},
                    },
                },
            }
        },
    },
}
