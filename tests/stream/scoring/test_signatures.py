"""Signed bundles: only what the bank's key has signed is loaded, whoever could write the folder."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from stream.cli.commands.bundle import bundle as command
from stream.errors import BundleError, ConfigError
from stream.scoring.bundle import Bundle
from stream.scoring.manifest import make_manifest
from support.bundles import made_bundle
from support.required import without

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PASSPHRASE = "open sesame"


class Keys:
    """A key pair in files."""

    def __init__(self, folder: Path, name: str, passphrase: bytes | None = None) -> None:
        key = Ed25519PrivateKey.generate()
        encryption = (
            serialization.NoEncryption()
            if passphrase is None
            else serialization.BestAvailableEncryption(passphrase)
        )
        self.private = folder / f"{name}.pem"
        self.private.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        )
        self.public = folder / f"{name}.pub"
        self.public.write_bytes(
            key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path, "bank")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made_bundle().save(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def call(*arguments: object, **variables: str) -> Any:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return CliRunner().invoke(command, list(map(str, arguments)))

    return call


def test_a_signed_bundle_is_loaded_and_says_by_whom(
    folder: Path, keys: Keys, run: Callable[..., Any]
) -> None:
    signed = run("sign", folder, "--key", keys.private)
    assert signed.exit_code == 0, signed.output
    loaded = Bundle.load(folder, keys.public)
    assert loaded == made_bundle()
    assert loaded.seal is not None
    assert f"signed by key {loaded.seal.signed_by}" in signed.output
    verified = run("verify", folder, "--public-key", keys.public)
    assert f"sha256:{loaded.seal.digest}  signed by key {loaded.seal.signed_by}" in verified.output
    by_setting = run("verify", folder, RISKSTREAM_BUNDLE_PUBLIC_KEY=str(keys.public))
    assert by_setting.output == verified.output


def test_without_the_setting_no_signature_is_required(folder: Path, run: Callable[..., Any]) -> None:
    assert "signature not verified" in run("verify", folder).output


def test_an_unsigned_bundle_is_refused(folder: Path, keys: Keys) -> None:
    with pytest.raises(BundleError, match="is not signed"):
        Bundle.load(folder, keys.public)


def edit_threshold(folder: Path) -> None:
    """Let nothing alert, as somebody with access to the folder might."""
    path = folder / "bundle.json"
    meta = json.loads(path.read_bytes())
    meta["thresholds"] = {"high": 1.0, "medium": 1.0, "prediction": 1.0}
    path.write_text(json.dumps(meta))


def test_edited_thresholds_are_seen_with_the_manifest_made_fit_too(
    folder: Path, keys: Keys, run: Callable[..., Any]
) -> None:
    assert run("sign", folder, "--key", keys.private).exit_code == 0
    edit_threshold(folder)
    with pytest.raises(BundleError, match=r"bundle\.json does not match its SHA-256"):
        Bundle.load(folder, keys.public)
    members = {name: (folder / name).read_bytes() for name in ("bundle.json", "model.txt")}
    (folder / "manifest.json").write_bytes(make_manifest(members))
    with pytest.raises(BundleError, match=r"signature does not belong to manifest\.json"):
        Bundle.load(folder, keys.public)


def test_a_sealed_bundle_must_be_signed_again(folder: Path, keys: Keys, run: Callable[..., Any]) -> None:
    assert run("sign", folder, "--key", keys.private).exit_code == 0
    edit_threshold(folder)
    assert run("seal", folder).exit_code == 0
    assert Bundle.load(folder).thresholds.high == 1.0
    with pytest.raises(BundleError, match="is not signed"):
        Bundle.load(folder, keys.public)
    assert run("sign", folder, "--key", keys.private).exit_code == 0
    assert Bundle.load(folder, keys.public).thresholds.high == 1.0


def test_a_damaged_bundle_is_not_sealed(folder: Path, run: Callable[..., Any]) -> None:
    before = (folder / "manifest.json").read_bytes()
    (folder / "bundle.json").write_text("{}")
    assert isinstance(run("seal", folder).exception, BundleError)
    assert (folder / "manifest.json").read_bytes() == before


def test_another_key_is_refused_and_several_may_sign(
    folder: Path, keys: Keys, tmp_path: Path, run: Callable[..., Any]
) -> None:
    other = Keys(tmp_path, "other")
    assert run("sign", folder, "--key", other.private).exit_code == 0
    with pytest.raises(BundleError, match="is signed with key"):
        Bundle.load(folder, keys.public)
    both = tmp_path / "both.pub"
    both.write_bytes(keys.public.read_bytes() + b"\n" + other.public.read_bytes())
    assert Bundle.load(folder, both).seal is not None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"key": "x"}', b'{"key": 1, "signature": "%"}', b"[" * 9999]
)
def test_a_damaged_signature_is_refused(folder: Path, keys: Keys, content: bytes) -> None:
    (folder / "manifest.sig").write_bytes(content)
    with pytest.raises(BundleError):
        Bundle.load(folder, keys.public)


def test_an_encrypted_key_takes_its_passphrase_from_the_environment(
    folder: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    locked = Keys(tmp_path, "locked", PASSPHRASE.encode())
    refused = run("sign", folder, "--key", locked.private)
    assert isinstance(refused.exception, ConfigError)
    wrong = run("sign", folder, "--key", locked.private, RISKSTREAM_BUNDLE_PASSPHRASE="wrong")
    assert isinstance(wrong.exception, ConfigError)
    right = run("sign", folder, "--key", locked.private, RISKSTREAM_BUNDLE_PASSPHRASE=PASSPHRASE)
    assert right.exit_code == 0, right.output
    assert PASSPHRASE not in right.output
    assert Bundle.load(folder, locked.public).seal is not None


def test_keys_of_another_kind_are_one_readable_line(folder: Path, tmp_path: Path, keys: Keys) -> None:
    curve = ec.generate_private_key(ec.SECP256R1()).public_key()
    file = tmp_path / "curve.pub"
    file.write_bytes(
        curve.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    empty = tmp_path / "empty.pub"
    empty.write_bytes(b"")
    for public, says in (
        (file, "not an Ed25519 key"),
        (empty, "no PEM public key"),
        (tmp_path / "none", "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=says):
            Bundle.load(folder, public)


def test_keys_of_openssl_are_those_of_the_docs(folder: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    if shutil.which("openssl") is None:
        without("openssl is not installed")
    private, public = tmp_path / "openssl.pem", tmp_path / "openssl.pub"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    assert run("sign", folder, "--key", private).exit_code == 0
    assert Bundle.load(folder, public).seal is not None
