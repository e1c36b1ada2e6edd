"""Listening on an address, and the bearer token: shared by all endpoints."""

from __future__ import annotations

import hmac
import logging
import secrets
from typing import TYPE_CHECKING, Any

from aiohttp import web

from stream.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

__all__ = ["guard", "listen"]

logger = logging.getLogger(__name__)


async def listen(app: web.Application, host: str, port: int, *, option: str) -> tuple[web.AppRunner, int]:
    """Serve on an address; returns the runner to clean up and the port in use.

    Parameters
    ----------
    option
        The setting that chooses the port, for the error's text.

    Raises
    ------
    ConfigError
        The address cannot be bound.
    """
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise ConfigError(
            f"{option}: cannot listen on {host}:{port}: {error.strerror or error}; "
            "choose another one, or 0 for any free one"
        ) from error
    return runner, int(runner.addresses[0][1])


def guard(wanted: Callable[[], str | None], unguarded: Collection[str] = ()) -> Any:
    """Return a middleware that requires a bearer token.

    Parameters
    ----------
    wanted
        Returns the token, called for each request; None lets every request in. A ``ValueError`` lets none in.
    unguarded
        Paths without a token: probes, whose response is only yes or no.
    """

    @web.middleware
    async def admit(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            token = wanted()
        except ValueError as error:
            # The file was emptied or removed meanwhile. A secret of nobody lets nobody in.
            logger.error("no request is let in: %s", error)  # noqa: TRY400 - no stack trace for a setting
            token = secrets.token_hex()
        if token is not None and request.path not in unguarded:
            given = request.headers.get("Authorization", "")
            if not hmac.compare_digest(given.encode(errors="surrogateescape"), f"Bearer {token}".encode()):
                return web.json_response(
                    {"error": "a bearer token is required"},
                    status=401,
                    headers={"WWW-Authenticate": "Bearer"},
                )
        return await handler(request)

    return admit
