"""The app for Faust's own command: ``faust -A stream.app worker``. Settings come from the environment."""

from __future__ import annotations

from stream.runtime.wiring import build_app
from stream.settings import load_settings

app = build_app(load_settings())
