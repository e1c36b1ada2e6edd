"""The app for Faust's own command: ``faust -A stream.app worker``. Settings come from the environment."""

from stream.runtime.app import build_app
from stream.settings import load_settings

__all__ = ["app"]

app = build_app(load_settings())
