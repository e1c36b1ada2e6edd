"""The manifest of a bundle: one digest over all of its members, and the bank's signature of it.

``manifest.json`` lists every member with its size and SHA-256. The digest of a bundle is the SHA-256 of the
manifest's bytes. ``manifest.sig`` holds an Ed25519 signature of these bytes (RFC 8032) and the fingerprint of
its key.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stream.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = ["MANIFEST_FILE", "SIGNATURE_FILE", "Seal", "make_manifest", "read_members", "sign_manifest"]

MANIFEST_FILE: Final = "manifest.json"
SIGNATURE_FILE: Final = "manifest.sig"

_FORMAT: Final = 1
_MAX_MEMBER_BYTES: Final = 512 << 20
_FINGERPRINT_DIGITS: Final = 16


class Seal(NamedTuple):
    """What vouches for a bundle.

    Attributes
    ----------
    digest
        SHA-256 of the manifest, in hexadecimal.
    signed_by
        Fingerprint of the key of a valid signature; empty if no key was given to verify with.
    """

    digest: str
    signed_by: str = ""


def make_manifest(members: Mapping[str, bytes]) -> bytes:
    """Return the manifest of a bundle's members, given by file name."""
    listed = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in sorted(members.items())
    }
    return json.dumps({"format": _FORMAT, "members": listed}, indent=1, sort_keys=True).encode() + b"\n"


def read_members(
    folder: Path, names: tuple[str, ...], public_key_file: Path | None = None
) -> tuple[dict[str, bytes], Seal]:
    """Return the members of a bundle, each checked against the manifest, and the seal.

    Parameters
    ----------
    names
        The members that the bundle must have, and no others.
    public_key_file
        PEM file of the keys that may sign; with it an unsigned bundle is refused.

    Raises
    ------
    BundleError
        A member is missing, changed or not listed, or the signature is missing or wrong.
    OSError
        A file cannot be read.
    """
    manifest = (folder / MANIFEST_FILE).read_bytes()
    signed_by = "" if public_key_file is None else _verify(folder, manifest, public_key_file)
    listed = _listed(folder, manifest)
    if listed.keys() != set(names):
        raise BundleError(f"model bundle {folder} is damaged: {MANIFEST_FILE} lists {', '.join(listed)}")
    members: dict[str, bytes] = {}
    for name, expected in listed.items():
        content = (folder / name).read_bytes()
        if len(content) > _MAX_MEMBER_BYTES or hashlib.sha256(content).hexdigest() != expected:
            raise BundleError(
                f"model bundle {folder} is damaged: {name} does not match its SHA-256 in {MANIFEST_FILE}; if "
                "you have changed it on purpose, run 'riskstream bundle seal', and sign it again"
            )
        members[name] = content
    return members, Seal(hashlib.sha256(manifest).hexdigest(), signed_by)


def _listed(folder: Path, manifest: bytes) -> dict[str, str]:
    """Return the SHA-256 of each member that a manifest lists."""
    try:
        found: dict[str, Any] = json.loads(manifest)
        if found["format"] != _FORMAT:
            raise BundleError(
                f"model bundle {folder} has a manifest of format {found['format']}: upgrade RiskStream"
            )
        return {str(name): str(member["sha256"]) for name, member in found["members"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BundleError(f"model bundle {folder} is damaged: {MANIFEST_FILE}: {error!r}") from error


def _verify(folder: Path, manifest: bytes, public_key_file: Path) -> str:
    """Return the fingerprint of the key that has signed a manifest; the signature is valid."""
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - most workers need none of it

    keys = _public_keys(public_key_file)
    try:
        signature = json.loads((folder / SIGNATURE_FILE).read_bytes())
        value, name = base64.b64decode(signature["signature"], validate=True), str(signature["key"])
    except FileNotFoundError as error:
        raise BundleError(
            f"model bundle {folder} is not signed, and RISKSTREAM_BUNDLE_PUBLIC_KEY requires it: sign it "
            "with 'riskstream bundle sign'"
        ) from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"model bundle {folder}: {SIGNATURE_FILE} is damaged: {error!r}") from error
    key = keys.get(name)
    if key is None:
        raise BundleError(
            f"model bundle {folder} is signed with key {name[:_FINGERPRINT_DIGITS]}, and {public_key_file} "
            f"has only {', '.join(keys)}"
        )
    try:
        key.verify(value, manifest)
    except InvalidSignature as error:
        raise BundleError(
            f"model bundle {folder}: the signature does not belong to {MANIFEST_FILE}"
        ) from error
    return name


def _public_keys(file: Path) -> dict[str, Ed25519PublicKey]:
    """Return the Ed25519 keys of a PEM file by fingerprint."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

    end = b"-----END PUBLIC KEY-----"
    found: dict[str, Ed25519PublicKey] = {}
    try:
        for part in file.read_bytes().split(end)[:-1]:
            key = serialization.load_pem_public_key(part + end + b"\n")
            if not isinstance(key, Ed25519PublicKey):
                raise ConfigError(f"{file} has a key that is not an Ed25519 key")
            found[_fingerprint(key)] = key
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as PEM: {error}") from error
    if not found:
        raise ConfigError(f"{file} has no PEM public key")
    return found


def _fingerprint(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:_FINGERPRINT_DIGITS]


def sign_manifest(
    manifest: bytes, private_key_file: Path, passphrase: bytes | None = None
) -> tuple[bytes, str]:
    """Return the content of ``manifest.sig`` and the key's fingerprint.

    Parameters
    ----------
    private_key_file
        PEM file of an Ed25519 key, as ``openssl genpkey -algorithm ed25519`` makes it.
    passphrase
        Of an encrypted key.

    Raises
    ------
    ConfigError
        The key cannot be used.
    """
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

    try:
        key = serialization.load_pem_private_key(private_key_file.read_bytes(), passphrase)
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(f"{private_key_file} cannot be used as a private key: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{private_key_file} is not an Ed25519 key")
    name = _fingerprint(key.public_key())
    signature = {"key": name, "signature": base64.b64encode(key.sign(manifest)).decode()}
    return json.dumps(signature, indent=1).encode() + b"\n", name
