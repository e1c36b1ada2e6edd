"""Settings of what a worker computes, remembers and reports."""

from __future__ import annotations

from datetime import date
from typing import Final, Self

from pydantic import Field, model_validator

from stream.settings.section import Section

__all__ = [
    "DecisionSettings",
    "DriftSettings",
    "HistorySettings",
    "RocksDBSettings",
    "TracingSettings",
    "WatchdogSettings",
]


class DecisionSettings(Section):
    """Content of the topic ``risk-decisions``."""

    enabled: bool = Field(default=True, description="Whether to write a decision for every transaction")
    features: bool = Field(
        default=False, description="Whether each decision contains the values of all features"
    )


class TracingSettings(Section):
    """Spans of transactions sampled by their producer; needs the extra ``tracing``."""

    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s/]+",
        description="OTLP collector, such as http://127.0.0.1:4318; without it a worker creates no spans",
    )


class DriftSettings(Section):
    """Comparison of the scored transactions with the training data."""

    enabled: bool = Field(default=True, description="Whether a worker detects drift")
    window_transactions: int = Field(
        default=10_000, ge=100, description="Transactions of a worker in each comparison with training"
    )


#: Days of the longest window.
WINDOW_DAYS: Final = 30

_ENTITY_TTL: Final = (
    "After this long without a transaction a {}'s state is deleted, at the earliest when no feature reaches "
    "it any more; by default {}"
)


class HistorySettings(Section):
    """Event times that a worker accepts, how long it keeps state, and memory for long histories."""

    allowed_lateness_days: float = Field(
        default=3, ge=0, le=365, description="Features are exact for events up to this late"
    )
    max_future_seconds: float = Field(
        default=300, ge=0, description="Events further ahead of the clock than this become dead letters"
    )
    min_event_time: date = Field(
        default=date(2000, 1, 1),
        description="Events before this day become dead letters, such as epoch seconds read as milliseconds",
    )
    user_ttl_days: float | None = Field(
        default=None,
        gt=0,
        le=36_500,
        description="After this long without a transaction a user's state is deleted, and its lifetime "
        "features begin anew; more than 30 days and the allowed lateness; by default never. Set it as in "
        "training (riskstream train --user-ttl)",
    )
    merchant_ttl_days: float | None = Field(
        default=None, gt=0, le=36_500, description=_ENTITY_TTL.format("merchant", "never")
    )
    card_ttl_days: float | None = Field(
        default=None, gt=0, le=36_500, description=_ENTITY_TTL.format("card", "never")
    )
    device_ttl_days: float | None = Field(
        default=90, gt=0, le=36_500, description=_ENTITY_TTL.format("device", "90 days")
    )
    ip_ttl_days: float | None = Field(
        default=90, gt=0, le=36_500, description=_ENTITY_TTL.format("IP address", "90 days")
    )
    cache_mib: int = Field(default=512, ge=1, description="Memory of a worker for unpacked long histories")

    @model_validator(mode="after")
    def _check(self) -> Self:
        kept_days = WINDOW_DAYS + self.allowed_lateness_days
        if self.user_ttl_days is not None and self.user_ttl_days < kept_days:
            msg = f"user_ttl_days: must be at least the {kept_days:.3g} days that are kept"
            raise ValueError(msg)
        return self


class WatchdogSettings(Section):
    """When a worker considers itself stalled."""

    stall_seconds: float = Field(
        default=60,
        ge=1,
        description="A worker with lag but no progress is unhealthy after this time; exits after twice it",
    )
    broker_gone_seconds: float = Field(
        default=60, ge=1, description="A worker exits if no broker responds for this long"
    )


class RocksDBSettings(Section):
    """Memory of RocksDB, shared by all partitions of a worker."""

    block_cache_mib: int = Field(default=256, ge=1, description="Memory for blocks read from files")
    write_buffer_mib: int = Field(default=128, ge=4, description="Memory for writes before a flush")
