"""``POST /predict``: scores over HTTP, of a transaction or of a batch, without any effect on state."""

from __future__ import annotations

import asyncio
import logging
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import jiter
import orjson
from aiohttp import web

from stream._version import __version__
from stream.errors import InvalidRecordError
from stream.events.currencies import MINOR_UNIT_DECIMALS
from stream.events.decode import MAX_RECORD_BYTES, TransactionRow, parse_object
from stream.events.models import Transaction

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from stream.pipeline.preview import Preview

__all__ = ["MAX_BATCH", "PredictRequest", "ScoringService", "Unavailable", "openapi", "problem", "refuse"]


logger = logging.getLogger(__name__)

#: Most transactions of one request, so that no request blocks the others for long.
MAX_BATCH: Final = 500

_MAX_BODY_BYTES: Final = 1 << 20

#: Most JSON values and names of a body with a transaction, and of each transaction in a list. The parser
#: holds the interpreter until it returns, so what it is given must be small.
_MAX_VALUES: Final = 5_000
_MAX_VALUES_OF_MANY: Final = 200

#: A larger body is parsed and validated beside the event loop.
_INLINE_BYTES: Final = 16 << 10

#: Requests in progress at once; a further one is told to try again.
_MAX_CONCURRENT: Final = 16

#: Refused bodies may take a tenth of the time, and a tenth of this many seconds at once: the stream goes on.
_REFUSED_SHARE: Final = 10
_REFUSED_AHEAD_SECONDS: Final = 2.0

#: JSON's whitespace.
_BLANKS: Final = b" \t\r\n"

_ENDS: Final[Mapping[int, str]] = {200: "answered", 413: "refused", 422: "refused", 503: "unavailable"}


class PredictRequest(NamedTuple):
    """A request that is valid.

    Attributes
    ----------
    rows
        Its transactions, in its order.
    keys
        The keys that producers would give the transactions' records: the user ids as they came.
    body, headers
        As they came.
    """

    rows: list[TransactionRow]
    keys: list[bytes]
    body: bytes
    headers: Mapping[str, str]


_Rows = tuple[list[TransactionRow], list[bytes], list[dict[str, Any]], float]


class Unavailable(Exception):  # noqa: N818 - said to a client, not an error of this program
    """Some of the transactions cannot be scored now."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.place = index
        self.reason = reason


class ScoringService:
    """Routes for an aiohttp application.

    Parameters
    ----------
    score
        Returns the results of a valid request, in its order.
    max_batch
        Most transactions of one request.
    on_request
        Called with the outcome of each request and its duration in seconds.
    """

    def __init__(
        self,
        preview: Preview,
        score: Callable[[PredictRequest], Awaitable[list[dict[str, Any]]]],
        *,
        max_batch: int = MAX_BATCH,
        on_request: Callable[[str, float], None] | None = None,
    ) -> None:
        self._preview = preview
        self._score = score
        self._max_batch = max_batch
        self._on_request = on_request
        self._document = orjson.dumps(openapi(max_batch))
        self._in_progress = 0
        #: Until when the time that refused bodies took is paid off.
        self._paid_off_at = 0.0

    def application(self, *middlewares: Any) -> web.Application:
        """Return the application that serves the routes."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=middlewares)
        app.router.add_post("/predict", self._predict)
        app.router.add_get("/openapi.json", self._describe)
        return app

    async def _describe(self, _: web.Request) -> web.Response:
        return web.Response(body=self._document, content_type="application/json")

    async def _predict(self, request: web.Request) -> web.Response:
        begun = time.perf_counter()
        self._in_progress += 1
        try:
            if self._in_progress > _MAX_CONCURRENT:
                reason = f"more than {_MAX_CONCURRENT} requests are in progress"
                response = refuse([{"loc": [], "msg": reason}], 503)
            elif self._paid_off_at - begun > _REFUSED_AHEAD_SECONDS:
                reason = "too many invalid bodies take the time of the stream"
                response = refuse([{"loc": [], "msg": reason}], 503)
            else:
                response = await self._answer(request)
        except Exception:
            logger.exception("a request to /predict failed")
            response = refuse([{"loc": [], "msg": "failed; the worker's log contains the reason"}], 500)
        finally:
            self._in_progress -= 1
        if self._on_request is not None:
            self._on_request(_ENDS.get(response.status, "failed"), time.perf_counter() - begun)
        return response

    def _rows(self, body: bytes, *, single: bool) -> _Rows:
        """Return a body's transactions, their keys, a description of each invalid one, and the seconds."""
        begun = time.thread_time()
        rows: list[TransactionRow] = []
        keys: list[bytes] = []
        problems: list[dict[str, Any]] = []
        try:
            if single:
                _require_few_values(body, _MAX_VALUES)
                parsed: list[Any] = [parse_object(body, MAX_RECORD_BYTES)]
            else:
                _require_few_values(body, _MAX_VALUES_OF_MANY * self._max_batch)
                parsed = _parse_batch(body, self._max_batch)
        except InvalidRecordError as error:
            return rows, keys, [problem(error)], time.thread_time() - begun
        now_ms = time.time_ns() // 1_000_000
        for index, item in enumerate(parsed):
            try:
                if not isinstance(item, dict):
                    raise InvalidRecordError("$", "must be a JSON object")
                rows.append(self._preview.row(item, now_ms))
                keys.append(item["user_id"].encode())
            except InvalidRecordError as error:
                problems.append(problem(error, *(() if single else (index,))))
        return rows, keys, problems, time.thread_time() - begun

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            reason = f"must not be larger than {_MAX_BODY_BYTES} bytes"
            return refuse([problem(InvalidRecordError("$", reason))], 413)
        single = body.lstrip(_BLANKS)[:1] != b"["
        if len(body) <= _INLINE_BYTES:
            rows, keys, problems, seconds = self._rows(body, single=single)
        else:
            rows, keys, problems, seconds = await asyncio.to_thread(self._rows, body, single=single)
        if problems:
            now = time.perf_counter()
            self._paid_off_at = max(self._paid_off_at, now) + _REFUSED_SHARE * seconds
            return refuse(problems, 422)
        try:
            profile_responses = await self._score(PredictRequest(rows, keys, body, request.headers))
        except InvalidRecordError as error:
            return refuse([problem(error)], 422)
        except Unavailable as error:
            where = ["body", *(() if single else (error.place,))]
            return refuse([{"loc": where, "msg": error.reason}], 503)
        return web.Response(
            body=orjson.dumps(profile_responses[0] if single else profile_responses),
            content_type="application/json",
        )


def _require_few_values(body: bytes, most: int) -> None:
    """Return if a body holds no more JSON values and names than ``most``, as its punctuation counts them.

    Raises
    ------
    InvalidRecordError
        It holds more.
    """
    if sum(map(body.count, (b",", b":", b"[", b"{"))) > most:
        raise InvalidRecordError("$", f"must not have more than {most} JSON values and names")


def _parse_batch(body: bytes, most: int) -> list[Any]:
    """Return the values of a JSON list, numbers as exact as their text.

    Raises
    ------
    InvalidRecordError
        It is not a list of 1 to ``most`` values.
    """
    try:
        items: list[Any] = jiter.from_json(
            body, allow_inf_nan=False, float_mode="lossless-float", catch_duplicate_keys=True
        )
    except (ValueError, UnicodeError, RecursionError) as error:
        raise InvalidRecordError("$", f"is not valid JSON: {error}") from error
    if not 0 < len(items) <= most:
        raise InvalidRecordError("$", f"must hold 1 to {most} transactions, not {len(items)}")
    return items


def problem(error: InvalidRecordError, *index: int) -> dict[str, Any]:
    """Return the description of an invalid value: its position in the body, and the reason."""
    return {"loc": ["body", *index, error.field], "msg": error.reason}


def refuse(problems: list[dict[str, Any]], status: int) -> web.Response:
    """Return an error response, with ``Retry-After`` if trying again helps."""
    headers = {"Retry-After": "1"} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
    return web.Response(
        body=orjson.dumps({"detail": problems}),
        status=status,
        content_type="application/json",
        headers=headers,
    )


def openapi(max_batch: int = MAX_BATCH) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of the routes."""
    transaction = Transaction.model_json_schema(
        mode="validation", ref_template="#/components/schemas/{model}"
    )
    transaction["properties"]["currency"]["enum"] = sorted(MINOR_UNIT_DECIMALS)
    schemas = {**transaction.pop("$defs", {}), "Transaction": transaction, **_SCHEMAS}

    def content(schema: dict[str, Any]) -> dict[str, Any]:
        return {"content": {"application/json": {"schema": schema}}}

    def one_or_many(name: str) -> dict[str, Any]:
        item = {"$ref": f"#/components/schemas/{name}"}
        return {"oneOf": [item, {"type": "array", "items": item, "minItems": 1, "maxItems": max_batch}]}

    return {
        "openapi": "3.1.0",
        "info": {"title": "RiskStream", "version": __version__},
        "paths": {
            "/predict": {
                "post": {
                    "summary": "Score transactions as if each arrived now; the state does not change",
                    "requestBody": {"required": True, **content(one_or_many("Transaction"))},
                    "responses": {
                        "200": {
                            "description": "In the order of the request",
                            **content(one_or_many("Prediction")),
                        },
                        "422": {
                            "description": "Which field is invalid, and why",
                            **content({"$ref": "#/components/schemas/Problems"}),
                        },
                        "413": {
                            "description": "The body is too large",
                            **content({"$ref": "#/components/schemas/Problems"}),
                        },
                        "503": {
                            "description": "A history or profile is unavailable, with the reason; try again",
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
