"""The worker's HTTP endpoint, on loopback unless told otherwise: metrics, health, readiness."""

from __future__ import annotations

import hmac
import logging
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from stream.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from stream.settings import MetricsSettings

__all__ = ["Endpoint", "guard", "listen"]

logger = logging.getLogger(__name__)

#: Paths that want no token.
_OPEN: Final = frozenset({"/healthz", "/readyz"})


class Endpoint:
    """Serves what monitoring asks for.

    Raises
    ------
    ConfigError
        The address cannot be bound.
    """

    def __init__(
        self,
        settings: MetricsSettings,
        render: Callable[[], bytes],
        healthy: Callable[[], bool],
        ready: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._render = render
        self._healthy = healthy
        self._ready = ready
        self._runner: web.AppRunner | None = None
        #: The port in use, 0 until started.
        self.port = 0

    async def start(self) -> None:
        """Bind and serve."""
        app = web.Application(middlewares=[guard(self._settings.wanted_token, _OPEN)])
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/readyz", self._readiness)
        host = self._settings.host
        self._runner, self.port = await listen(
            app, host, self._settings.port, option="RISKSTREAM_METRICS__PORT"
        )
        logger.info("metrics, health and readiness on http://%s:%d", host, self.port)

    async def stop(self) -> None:
        """Stop serving."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self._render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def _health(self, _: web.Request) -> web.Response:
        return self._answer(self._healthy())

    async def _readiness(self, _: web.Request) -> web.Response:
        return self._answer(self._ready())

    @staticmethod
    def _answer(good: bool) -> web.Response:  # noqa: FBT001
        return web.json_response({"ok": good}, status=200 if good else 503)


async def listen(app: web.Application, host: str, port: int, *, option: str) -> tuple[web.AppRunner, int]:
    """Serve on an address, and return the runner to clean up and the port in use.

    Parameters
    ----------
    option
        What chooses the port, for the error's text.

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
    """Return a middleware that asks for a bearer token.

    Parameters
    ----------
    wanted
        Asked at each request; None lets everybody in.
    unguarded
        Paths that want no token: probes, which only learn yes or no.
    """

    @web.middleware
    async def admit(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        token = wanted()
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
