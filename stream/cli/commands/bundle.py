"""``riskstream bundle``: verify, sign and seal model bundles."""

from __future__ import annotations

import os
from pathlib import Path

import click

from stream.errors import ConfigError

__all__ = ["bundle"]

_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)

#: Environment variable of the passphrase of an encrypted private key.
_PASSPHRASE = "RISKSTREAM_BUNDLE_PASSPHRASE"  # noqa: S105 - its name


@click.group()
def bundle() -> None:
    """Verify, sign and seal model bundles."""


@bundle.command()
@click.argument("folder", type=_FOLDER)
@click.option(
    "--public-key", type=_FILE, help="PEM file of the keys that may sign; the bundle must be signed."
)
def verify(folder: Path, public_key: Path | None) -> None:
    """Check every member of a bundle against its manifest, the model, and the signature.

    Without --public-key the setting RISKSTREAM_BUNDLE_PUBLIC_KEY counts; without both no signature is
    required. Exits with 3 if the bundle cannot be used.
    """
    from stream.scoring.bundle import Bundle
    from stream.scoring.predictor import Predictor
    from stream.settings import load_settings

    loaded = Bundle.load(folder, public_key or load_settings().bundle_public_key)
    Predictor(loaded)
    assert loaded.seal is not None
    by = f"signed by key {loaded.seal.signed_by}" if loaded.seal.signed_by else "signature not verified"
    print(f"{loaded.model_version}  sha256:{loaded.seal.digest}  {by}")


@bundle.command()
@click.argument("folder", type=_FOLDER)
@click.option("--key", type=_FILE, required=True, help="PEM file of your Ed25519 private key.")
def sign(folder: Path, key: Path) -> None:
    """Sign a bundle's manifest with an Ed25519 key.

    'openssl genpkey -algorithm ed25519 -aes256 -out bank.pem' makes a key, and 'openssl pkey -in bank.pem
    -pubout' prints its public half for RISKSTREAM_BUNDLE_PUBLIC_KEY. The passphrase of an encrypted key comes
    from RISKSTREAM_BUNDLE_PASSPHRASE.
    """
    from stream.scoring.bundle import Bundle, write_atomically
    from stream.scoring.manifest import MANIFEST_FILE, SIGNATURE_FILE, sign_manifest

    loaded = Bundle.load(folder)  # nobody should sign a damaged bundle
    passphrase = os.environ.get(_PASSPHRASE)
    content, name = sign_manifest(
        (folder / MANIFEST_FILE).read_bytes(), key, None if passphrase is None else passphrase.encode()
    )
    try:
        write_atomically(folder / SIGNATURE_FILE, content)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written to: {error.strerror or error}") from error
    assert loaded.seal is not None
    print(f"{loaded.model_version}  sha256:{loaded.seal.digest}  signed by key {name}")


@bundle.command()
@click.argument("folder", type=_FOLDER)
def seal(folder: Path) -> None:
    """Write the manifest of a bundle anew, after you have changed a threshold on purpose.

    The signature is removed: whoever answers for the change signs the bundle again.
    """
    from stream.scoring.bundle import Bundle

    sealed = Bundle.seal_folder(folder)
    print(f"{sealed.model_version}  sealed; sign it with 'riskstream bundle sign' if your workers require it")
