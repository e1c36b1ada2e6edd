"""The events on the topics: the contract with producers and consumers.

JSON outside, exact inside: money is a decimal in JSON and an integer in the currency's minor unit in
memory; times are event times, RFC 3339 with an offset in JSON and integer milliseconds UTC in memory.
Validation is strict: no coercion between types, no NaN or infinity, no naive time, bounded lengths.
Unknown fields are dropped and counted, so that a producer may add fields first.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from stream.events.currencies import MINOR_UNIT_DECIMALS
from stream.events.fields import (
    _MAX_ATTRIBUTES,
    MAX_AMOUNT_MINOR,
    Amount,
    EventTime,
    EventTimeOut,
    Identifier,
    Name,
    _parse_attributes,
    _parse_currency,
    _parse_ip,
    _to_minor,
)

if TYPE_CHECKING:
    from decimal import Decimal

__all__ = ["Alert", "DeadLetterHeader", "Decision", "Label", "Outcome", "Reason", "RiskLevel", "Transaction"]


class Outcome(StrEnum):
    """The outcome of a record of ``transactions``."""

    SCORED = "scored"
    LATE = "late"
    DUPLICATE = "duplicate"
    REJECTED = "rejected"


class RiskLevel(StrEnum):
    """How an alert should be treated, from the score and the bundle's two thresholds."""

    HIGH = "HIGH"
    MEDIUM = "MEDIUM"
    LOW = "LOW"


class DeadLetterHeader(StrEnum):
    """Headers of a dead letter; Kafka Streams' names (KIP-1034) where they exist."""

    EXCEPTION = "__streams.errors.exception"
    MESSAGE = "__streams.errors.message"
    TOPIC = "__streams.errors.topic"
    PARTITION = "__streams.errors.partition"
    OFFSET = "__streams.errors.offset"
    FIELD = "riskstream.errors.field"
    REASON = "riskstream.errors.reason"
    TIMESTAMP = "riskstream.errors.timestamp"


class _Event(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="ignore", frozen=True, allow_inf_nan=False, ser_json_inf_nan="null"
    )


class Transaction(_Event):
    """A card or account transaction, as producers send it to the topic ``transactions``."""

    transaction_id: Identifier = Field(
        description="Unique; a second transaction with this id within the horizon is a duplicate"
    )
    user_id: Identifier = Field(description="User to whose history the transaction belongs; the record's key")
    event_time: EventTime
    amount: Amount = Field(
        description="At most the currency's decimals, at most 1e15 minor units; negative for money that "
        "comes back, such as a refund or a reversal"
    )
    currency: Annotated[
        str, BeforeValidator(_parse_currency), WithJsonSchema({"type": "string", "pattern": "^[A-Z]{3}$"})
    ] = Field(description="ISO 4217")
    channel: Name
    transaction_type: Name
    pre_balance: Amount | None = None
    post_balance: Amount | None = None
    merchant_id: Identifier | None = None
    card_id: Identifier | None = None
    device_id: Identifier | None = None
    ip: Annotated[str, BeforeValidator(_parse_ip), StringConstraints(max_length=45)] | None = None
    country: Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")] | None = Field(
        default=None, description="ISO 3166-1 alpha-2"
    )
    memo: Annotated[str, StringConstraints(max_length=1024)] | None = None
    attributes: (
        Annotated[
            dict[str, float | str],
            BeforeValidator(_parse_attributes),
            WithJsonSchema(
                {
                    "type": "object",
                    "maxProperties": _MAX_ATTRIBUTES,
                    "additionalProperties": {"type": ["number", "string"]},
                }
            ),
        ]
        | None
    ) = Field(default=None, description="Additional columns of your own that a model may use as features")

    _amount_minor: int = PrivateAttr(default=0)
    _pre_balance_minor: int | None = PrivateAttr(default=None)
    _post_balance_minor: int | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _to_minor_units(self) -> Transaction:
        amount = _to_minor(self.amount, self.currency)
        if amount is None:
            raise _error("amount", f"has more decimals than {self.currency} allows")
        if abs(amount) > MAX_AMOUNT_MINOR:
            raise _error("amount", "is beyond 1e15 minor units")
        self._amount_minor = amount
        for name in ("pre_balance", "post_balance"):
            balance: Decimal | None = getattr(self, name)
            if balance is None:
                continue
            minor = _to_minor(balance, self.currency)
            if minor is None:
                raise _error(name, f"has more decimals than {self.currency} allows")
            if abs(minor) > MAX_AMOUNT_MINOR:
                raise _error(name, "is beyond 1e15 minor units")
            setattr(self, f"_{name}_minor", minor)
        return self

    @property
    def event_time_ms(self) -> int:
        """Event time, milliseconds since the epoch, UTC."""
        return self.event_time

    @property
    def amount_minor(self) -> int:
        """Amount in the currency's minor unit, exact."""
        return self._amount_minor

    @property
    def pre_balance_minor(self) -> int | None:
        """Balance before, in the currency's minor unit, exact."""
        return self._pre_balance_minor

    @property
    def post_balance_minor(self) -> int | None:
        """Balance after, in the currency's minor unit, exact."""
        return self._post_balance_minor

    @property
    def minor_units(self) -> int:
        """Minor units per major unit of the currency: 100 for EUR, 1 for JPY."""
        return int(10 ** MINOR_UNIT_DECIMALS[self.currency])


class Reason(_Event):
    """A feature, and how much it moved the score."""

    feature: str
    value: float | str | None = Field(description="The feature's value; null where it is not defined")
    usual: float | None = Field(default=None, description="This user's own usual value, if there is one")
    contribution: float = Field(description="SHAP contribution to the log-odds of fraud")
    sentence: str


#: The record's Kafka timestamp, not the worker's clock: an alert that is delivered again must be equal to the
#: byte. The alert's own Kafka timestamp is the time at which it was written.
_SCORED_AT: Final = "Time for which it was scored: when the transaction's record reached Kafka"


class Alert(_Event):
    """A transaction that deserves attention, on the topic ``risk-alerts``."""

    alert_id: str = Field(description="The same for every delivery of the same alert")
    transaction_id: str
    user_id: str
    event_time: EventTimeOut
    scored_at: EventTimeOut = Field(description=_SCORED_AT)
    risk_score: float = Field(ge=0, le=1, description="Four decimals")
    risk_level: RiskLevel
    prediction: int = Field(ge=0, le=1, description="1 if the score reaches the alert threshold")
    reasons: list[Reason]
    model_version: str
    feature_spec: str = Field(
        description="Hash of the ordered feature list from which the score was computed"
    )
    source_topic: str
    source_partition: int
    source_offset: int


class Decision(_Event):
    """The decision on a transaction, on the topic ``risk-decisions``."""

    transaction_id: str
    user_id: str
    event_time: EventTimeOut
    scored_at: EventTimeOut = Field(description=_SCORED_AT)
    outcome: Outcome
    truncated: bool = Field(
        default=False,
        description="Whether the windows lack older transactions, for which the user's history has no room",
    )
    risk_score: float | None = Field(default=None, ge=0, le=1)
    risk_level: RiskLevel | None = None
    prediction: int | None = Field(default=None, ge=0, le=1)
    alert_id: str | None = None
    model_version: str
    feature_spec: str
    source_topic: str
    source_partition: int
    source_offset: int
    features: dict[str, float | None] | None = Field(
        default=None, description="Feature values by name, if enabled; null means not a number"
    )


class Label(_Event):
    """The confirmed outcome of a transaction, known days later, on the topic ``labels``."""

    transaction_id: Identifier
    user_id: Identifier
    is_fraud: bool
    event_time: EventTime = Field(description="Event time of the transaction")
    label_time: EventTime = Field(description="When the label became known")


def _error(field: str, reason: str) -> PydanticCustomError:
    """Return an error of a check over several fields; it names the field at fault."""
    return PydanticCustomError("invalid_field", "{reason}", {"field": field, "reason": reason})
