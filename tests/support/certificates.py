"""Certificates for tests, made by the openssl command: an authority, and what it signs."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Authority"]

_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


class Authority:
    """A certificate authority in a folder of its own; everything is PEM, keys are PKCS#8."""

    def __init__(self, folder: Path, name: str = "test authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.certificate = folder / "authority.pem"
        self._key = folder / "authority.key"
        _openssl(
            "req", "-x509", *_KEY, "-keyout", self._key, "-out", self.certificate, "-subj", f"/CN={name}"
        )

    def issue(self, name: str, alternative: str = "") -> tuple[Path, Path]:
        """Return the files of a certificate and its key, for a subject alternative such as ``IP:127.0.0.1``."""
        request, extensions, certificate, key = (
            self._folder / f"{name}.{kind}" for kind in ("csr", "ext", "pem", "key")
        )
        extensions.write_text(f"subjectAltName={alternative}\n" if alternative else "", encoding="ascii")
        _openssl("req", *_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        _openssl(
            "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial",
            "-days", "2", "-extfile", extensions, "-out", certificate,
        )  # fmt: skip
        return certificate, key

    def encrypt(self, key: Path, password: str) -> Path:
        """Return the file of a copy of a key that is encrypted."""
        encrypted = key.with_suffix(".encrypted.key")
        _openssl("pkcs8", "-topk8", "-in", key, "-out", encrypted, "-passout", f"pass:{password}")
        return encrypted

    def keystore(self, name: str, alternative: str = "") -> Path:
        """Return a file with key and certificate, as Kafka's keystores of type PEM have them."""
        certificate, key = self.issue(name, alternative)
        store = self._folder / f"{name}.store.pem"
        store.write_text(key.read_text("ascii") + certificate.read_text("ascii"), "ascii")
        return store


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
