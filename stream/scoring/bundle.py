"""The model bundle: a folder with everything that scoring needs, and nothing that can execute.

``model.txt`` is LightGBM's text format; ``bundle.json`` holds the feature spec with its hash, the
thresholds, the training data's reference statistics, the metrics, seeds and versions. ``manifest.json`` lists
both with their SHA-256, and may be signed, see :mod:`.manifest`. Loading checks all of it. Nothing is
unpickled.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from stream.errors import BundleError
from stream.events.fields import MS_PER_DAY
from stream.features.spec import FeatureSpec
from stream.scoring.manifest import MANIFEST_FILE, SIGNATURE_FILE, Seal, make_manifest, read_members

__all__ = ["BUNDLE_FORMAT", "Bundle", "Thresholds", "describe_ttl", "write_atomically"]

BUNDLE_FORMAT: Final = 2
_MODEL_FILE: Final = "model.txt"
_META_FILE: Final = "bundle.json"
_MEMBERS: Final = (_MODEL_FILE, _META_FILE)


def describe_ttl(ttl_ms: int) -> str:
    """Return a time to live for a person."""
    return f"{ttl_ms / MS_PER_DAY:.3g} days" if ttl_ms else "no limit"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Scores above which a transaction is HIGH or MEDIUM, and from which it is predicted fraud."""

    high: float = 0.7
    medium: float = 0.3
    prediction: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.medium <= self.high <= 1:
            msg = f"thresholds must satisfy 0 <= medium <= high <= 1, not {self.medium} and {self.high}"
            raise ValueError(msg)
        if not 0 <= self.prediction <= 1:
            msg = f"the prediction threshold must lie in 0 to 1, not {self.prediction}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A model and all that belongs to it.

    Attributes
    ----------
    model_text:
        The booster in LightGBM's text format.
    model_version:
        A readable, sortable name: training time and the start of the model's SHA-256.
    user_ttl_ms:
        The time to live of users in training: how long without a transaction before a history began anew; 0
        for none.
    reference:
        Statistics of the training data per feature and of the score, for drift: see
        :func:`offline.training.drift_reference.reference_statistics`.
    metrics, training:
        Figures of the evaluation, and the seeds, versions, rows and times of the training.
    seal:
        Digest and signature of a bundle that was loaded.
    """

    model_text: str
    model_version: str
    spec: FeatureSpec
    thresholds: Thresholds = field(default_factory=Thresholds)
    allowed_lateness_ms: int | None = None
    user_ttl_ms: int = 0
    reference: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    seal: Seal | None = field(default=None, compare=False)

    @property
    def trained_at_seconds(self) -> float | None:
        """When the model was trained, in seconds since 1970; None if the bundle does not have it."""
        try:
            return datetime.fromisoformat(self.training["trained_at"]).timestamp()
        except (KeyError, TypeError, ValueError):
            return None

    def save(self, folder: Path) -> None:
        """Write the bundle to ``folder``; each file appears whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        model = self.model_text.encode()
        meta = {
            "format": BUNDLE_FORMAT,
            "model_version": self.model_version,
            "feature_spec": self.spec.to_json(),
            "feature_spec_hash": self.spec.hash,
            "thresholds": {
                "high": self.thresholds.high,
                "medium": self.thresholds.medium,
                "prediction": self.thresholds.prediction,
            },
            "allowed_lateness_ms": self.allowed_lateness_ms,
            "user_ttl_ms": self.user_ttl_ms,
            "reference": self.reference,
            "metrics": self.metrics,
            "training": self.training,
        }
        _write_members(
            folder,
            {
                _MODEL_FILE: model,
                _META_FILE: json.dumps(meta, indent=1, allow_nan=False).encode() + b"\n",
            },
        )

    @classmethod
    def seal_folder(cls, folder: Path) -> Bundle:
        """Write the manifest of a folder whose members were changed on purpose, and return the bundle.

        Raises
        ------
        BundleError
            The members are no bundle; nothing was written.
        """
        try:
            members = {name: (folder / name).read_bytes() for name in _MEMBERS}
        except OSError as error:
            raise BundleError(f"model bundle {folder} cannot be read: {error}") from error
        cls._from_members(folder, members, None)
        _write_members(folder, members)
        return cls.load(folder)

    @classmethod
    def load(cls, folder: Path, public_key_file: Path | None = None) -> Bundle:
        """Return the bundle in ``folder``, checked.

        Parameters
        ----------
        public_key_file
            PEM file of the keys that may sign a bundle; with it, an unsigned bundle is refused.

        Raises
        ------
        BundleError
            A file is missing, damaged, of another format, made for other features, or not signed.
        ConfigError
            The public keys cannot be read.

        Examples
        --------
        >>> Bundle.load(Path("nowhere"))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        stream.errors.BundleError: no model bundle in nowhere: ... is missing; ...
        """
        try:
            members, seal = read_members(folder, _MEMBERS, public_key_file)
        except FileNotFoundError as error:
            raise BundleError(
                f"no model bundle in {folder}: {Path(error.filename).name} is missing; create a "
                "bundle with 'riskstream train', or set RISKSTREAM_BUNDLE"
            ) from error
        except OSError as error:
            raise BundleError(f"model bundle {folder} cannot be read: {error}") from error
        return cls._from_members(folder, members, seal)

    @classmethod
    def _from_members(cls, folder: Path, members: dict[str, bytes], seal: Seal | None) -> Bundle:
        try:
            meta = json.loads(members[_META_FILE])
            if meta["format"] != BUNDLE_FORMAT:
                raise BundleError(f"model bundle {folder} has format {meta['format']}, not {BUNDLE_FORMAT}")
            spec = FeatureSpec.from_json(meta["feature_spec"])
            if spec.hash != meta["feature_spec_hash"]:
                raise BundleError(
                    f"model bundle {folder} is damaged: its feature spec does not match its hash"
                )
            lateness_ms = meta["allowed_lateness_ms"]
            user_ttl_ms = meta.get("user_ttl_ms", 0)  # bundles of before had none
            for name, value in (("allowed_lateness_ms", lateness_ms), ("user_ttl_ms", user_ttl_ms)):
                if value is not None and (type(value) is not int or value < 0):
                    msg = f"{name} must be a whole number of milliseconds, not {value!r}"
                    raise ValueError(msg)
            return cls(
                model_text=members[_MODEL_FILE].decode(),
                model_version=str(meta["model_version"]),
                spec=spec,
                thresholds=Thresholds(**meta["thresholds"]),
                allowed_lateness_ms=lateness_ms,
                user_ttl_ms=user_ttl_ms or 0,
                reference=meta["reference"],
                metrics=meta["metrics"],
                training=meta["training"],
                seal=seal,
            )
        except BundleError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, UnicodeError, RecursionError) as error:
            raise BundleError(f"model bundle {folder} cannot be used: {error!r}") from error


def _write_members(folder: Path, members: dict[str, bytes]) -> None:
    """Write the members and their manifest; a former signature does not belong to them."""
    (folder / SIGNATURE_FILE).unlink(missing_ok=True)
    for name, content in {**members, MANIFEST_FILE: make_manifest(members)}.items():
        write_atomically(folder / name, content)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
