"""Settings of what happens to card numbers in ids."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic reads the annotations
from typing import Final, Literal, Self

from pydantic import Field, SecretStr, model_validator

from stream.settings.section import Section

__all__ = ["CardNumberSettings"]

#: Characters of the shortest key: as many as SHA-256 has bytes.
_MIN_KEY: Final = 32


class CardNumberSettings(Section):
    """Card numbers (PANs) as ids of users, cards, devices, merchants and transactions."""

    policy: Literal["refuse", "hmac", "allow"] = Field(
        default="refuse",
        description="What a worker does with an id that is a card number: refuse the record, replace the "
        "id by an HMAC, or allow it",
    )
    key: SecretStr | None = Field(
        default=None,
        description="Key of the HMACs, at least 32 characters; takes precedence over key_file. With another "
        "key every user is a new one",
    )
    key_file: Path | None = Field(default=None, description="File that contains the key of the HMACs")

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.hmac_key()
        return self

    def hmac_key(self) -> bytes:
        """Return the key, empty if the policy needs none.

        Raises
        ------
        ValueError
            The policy needs a key, and there is none, or a short one.
        """
        if self.policy != "hmac":
            return b""
        if self.key is not None:
            name, key = "key", self.key.get_secret_value().strip()
        elif self.key_file is not None:
            name = f"key_file: {self.key_file}"
            try:
                key = self.key_file.read_text(encoding="utf-8").strip()
            except OSError as error:
                msg = f"{name} is not a readable file: {error.strerror or error}"
                raise ValueError(msg) from error
        else:
            msg = "key (or key_file): is required with policy=hmac"
            raise ValueError(msg)
        if len(key) < _MIN_KEY:
            msg = f"{name}: must have at least {_MIN_KEY} characters, not {len(key)}"
            raise ValueError(msg)
        return key.encode()
