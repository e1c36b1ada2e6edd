"""Which records are traced, and what is said where OpenTelemetry is not there."""

from __future__ import annotations

import sys

import pytest

from stream.errors import ConfigError
from stream.monitoring.tracing import build_tracer, remote_parent
from stream.settings import Settings

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    "value",
    [f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-03", f"01-{TRACE}-{SPAN}-01-what-comes-later"],
    ids=["sampled", "other flags too", "a later version"],
)
def test_a_sampled_record_has_a_parent(value: str) -> None:
    assert remote_parent((("x", b"y"), ("traceparent", value.encode()))) == (int(TRACE, 16), int(SPAN, 16))


@pytest.mark.parametrize(
    "value",
    [
        f"00-{TRACE}-{SPAN}-00",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        "",
        "\x00",
        "0" * 1_000_000,
    ],
    ids=["not sampled", "no trace", "no span", "version ff", "upper case", "short", "empty", "zero", "long"],
)
def test_any_other_has_none(value: str) -> None:
    assert remote_parent((("traceparent", value.encode()),)) is None


def test_a_null_header_is_no_parent() -> None:
    assert remote_parent((("traceparent", None),)) is None  # type: ignore[arg-type]


def test_without_opentelemetry_the_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(
        ConfigError, match=r"^RISKSTREAM_TRACING__ENDPOINT: .*pip install 'riskstream\[tracing\]'$"
    ):
        build_tracer(Settings(tracing={"endpoint": "http://127.0.0.1:4318"}))  # type: ignore[arg-type]
