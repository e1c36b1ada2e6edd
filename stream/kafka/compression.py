"""Compression codecs: which of them this installation can decode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiokafka import codec as aiokafka_codec
from kafka import codec as kafka_python_codec

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType

__all__ = ["CODECS", "undecodable"]

#: Kafka's codecs, as ``compression.type`` names them.
CODECS: Final = ("gzip", "snappy", "lz4", "zstd")

#: Values of ``compression.type`` that name no codec: the producer chooses any, or there is none.
_ANY: Final = "producer"
_NONE: Final = ("uncompressed", "none")

_PROBE: Final = b"riskstream " * 32


def undecodable(compression_types: Iterable[str]) -> list[str]:
    """Return the codecs of topics' ``compression.type`` values that this installation cannot decode.

    Each codec compresses a text and decompresses it again, in both Kafka clients: aiokafka (workers) and
    kafka-python (the commands).
    """
    codecs: set[str] = set()
    for value in compression_types:
        codecs |= set(CODECS) if value == _ANY else {value} - set(_NONE)
    return [
        name
        for name in sorted(codecs)
        if not (_works(aiokafka_codec, name) and _works(kafka_python_codec, name))
    ]


def _works(module: ModuleType, name: str) -> bool:
    encode, decode = getattr(module, f"{name}_encode", None), getattr(module, f"{name}_decode", None)
    if encode is None or decode is None:
        return False
    try:
        return bytes(decode(encode(_PROBE))) == _PROBE
    except Exception:  # noqa: BLE001 - a missing library raises whatever the client chose
        return False
