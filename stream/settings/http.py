"""Settings of the HTTP endpoints."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic reads the annotations
from typing import Final, Self

from pydantic import Field, SecretStr, model_validator

from stream.settings.section import Section

__all__ = ["GuardedSection", "MetricsSettings", "ScoringSettings"]


#: Characters of the shortest token: 16 random letters and digits have 95 bits.
_MIN_TOKEN: Final = 16


class GuardedSection(Section):
    """An HTTP endpoint with an optional bearer token."""

    token: SecretStr | None = Field(
        default=None,
        description="Bearer token of at least 16 characters, required by every route except /healthz and "
        "/readyz",
    )
    token_file: Path | None = Field(default=None, description="File that contains the bearer token")

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.wanted_token()
        return self

    def wanted_token(self) -> str | None:
        """Return the token from the setting or its file, None if no token is required.

        Raises
        ------
        ValueError
            There should be a token, and there is none or a short one; nobody may be let in then.
        """
        if self.token is not None:
            name, token = "token", self.token.get_secret_value().strip()
        elif self.token_file is not None:
            name = f"token_file: {self.token_file}"
            try:
                token = self.token_file.read_text(encoding="utf-8").strip()
            except OSError as error:
                msg = f"{name} is not a readable file: {error.strerror or error}"
                raise ValueError(msg) from error
        else:
            return None
        if len(token) < _MIN_TOKEN:
            msg = f"{name}: must have at least {_MIN_TOKEN} characters, not {len(token)}"
            raise ValueError(msg)
        return token


class MetricsSettings(GuardedSection):
    """The HTTP endpoint with ``/metrics``, ``/healthz`` and ``/readyz``."""

    enabled: bool = Field(default=True, description="Whether a worker serves metrics and health")
    host: str = Field(default="127.0.0.1", description="Address to listen on")
    port: int = Field(default=9108, ge=0, le=65_535, description="Port to listen on; 0 chooses a free port")


class ScoringSettings(GuardedSection):
    """The HTTP endpoint with ``/predict`` on live histories; workers forward requests to the owner."""

    enabled: bool = Field(default=False, description="Whether a worker serves scores on request")
    host: str = Field(default="127.0.0.1", description="Address to listen on")
    port: int = Field(default=9109, ge=0, le=65_535, description="Port to listen on; 0 chooses a free port")
    advertised_host: str | None = Field(
        default=None,
        description="Address at which other workers reach this worker; without it host, or the machine's "
        "name if the worker listens on every address",
    )
    max_batch: int = Field(
        default=100, ge=1, le=500, description="Maximum number of transactions in a request"
    )
    forward_timeout_seconds: float = Field(
        default=2.0, gt=0, le=60, description="How long a worker waits for another worker's response"
    )
