"""The worker's HTTP endpoint, on loopback by default: metrics, health, readiness."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from aiohttp import web

from stream.serving.http import guard, listen

if TYPE_CHECKING:
    from collections.abc import Callable

    from stream.settings import MetricsSettings

__all__ = ["HEALTH_PATH", "READY_PATH", "Endpoint"]


logger = logging.getLogger(__name__)

METRICS_PATH: Final = "/metrics"
HEALTH_PATH: Final = "/healthz"
READY_PATH: Final = "/readyz"

#: Paths that need no token.
_OPEN: Final = frozenset({HEALTH_PATH, READY_PATH})


class Endpoint:
    """Serves ``/metrics``, ``/healthz`` and ``/readyz``.

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
        app.router.add_get(METRICS_PATH, self._metrics)
        app.router.add_get(HEALTH_PATH, self._health)
        app.router.add_get(READY_PATH, self._readiness)
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
