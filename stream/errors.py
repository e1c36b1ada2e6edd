"""The errors of RiskStream, one small tree.

Every error's text is one readable line: what is wrong, where, and what to do next. The command line prints it
without a stack trace and exits with the error's ``exit_code``.
"""

from __future__ import annotations

__all__ = [
    "BrokerError",
    "BundleError",
    "ClockError",
    "ConfigError",
    "DataError",
    "FencedError",
    "InternalError",
    "InvalidRecordError",
    "NewerFormatError",
    "RiskStreamError",
    "StalledError",
    "StateError",
    "TopicMismatchError",
    "UnreadableBatchError",
]


class RiskStreamError(Exception):
    """Base of every error that RiskStream raises on purpose."""

    #: Exit status of a command that ends with this error.
    exit_code = 1


class ConfigError(RiskStreamError):
    """A setting is missing or wrong; the text names the setting and the reason."""

    exit_code = 2


class ClockError(ConfigError):
    """The clock of this machine is wrong."""


class BundleError(RiskStreamError):
    """A model bundle cannot be read, is damaged, or does not fit this program's features."""

    exit_code = 3


class BrokerError(RiskStreamError):
    """The broker cannot be reached, started or used."""

    exit_code = 4


class FencedError(BrokerError):
    """Another worker owns a partition that this worker still tried to write to."""


class TopicMismatchError(BrokerError):
    """A topic has other partitions or another policy than the settings require."""


class UnreadableBatchError(BrokerError):
    """A record batch of a consumed topic cannot be decoded; the text names it and how to skip it."""

    def __init__(self, topic: str, partition: int, first: int, last: int, reason: str) -> None:
        super().__init__(
            f"{topic} [{partition}] cannot be read from offset {first} to {last}: {reason}; nothing "
            "behind it is consumed: skip these records with "
            f"'riskstream skip {topic}:{partition}:{first} --why REASON'"
        )


class DataError(RiskStreamError):
    """A file of transactions cannot be read or mapped; the text names the file, column and row."""

    exit_code = 5


class StateError(RiskStreamError):
    """A user's stored state cannot be used: it is corrupt.

    The record that met it goes to the dead-letter topic and the state is left as it is.
    """

    exit_code = 6


class NewerFormatError(RiskStreamError):
    """State or a message between stages was written by a newer version: this worker must be upgraded.

    No :class:`StateError`: neither the record nor its user is at fault, so nothing is rejected.
    """

    exit_code = 6


class InternalError(RiskStreamError):
    """An exception that nobody has foreseen: a defect of RiskStream; the text has its cause."""

    exit_code = 8


class StalledError(RiskStreamError):
    """Work waits and makes no progress; the worker ends to be restarted."""

    exit_code = 7


class InvalidRecordError(RiskStreamError):
    """A record is not a valid event.

    Attributes
    ----------
    field:
        The offending field's JSON name, or ``"$"`` for the record as a whole.
    reason:
        Why, in words that a producer's developer can act on.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason
