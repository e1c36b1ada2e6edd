"""The feature spec: which features a model gets, in which order, and a hash that pins both.

A spec travels in the model bundle. A worker builds its feature vectors from the bundle's spec, so the
order of the columns and the codes of the categories can never differ between training and serving.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from stream.features.profiles.spec import EntityProfile

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "BALANCE_FEATURES",
    "CALENDAR_FEATURES",
    "CATEGORY_COLUMNS",
    "HISTORY_FEATURES",
    "MISSING",
    "SPEC_VERSION",
    "UNSEEN_CODE",
    "WINDOWS",
    "WINDOW_MS",
    "FeatureSpec",
]


#: Raised when the meaning of a feature changes, so that an old model is refused by new code.
SPEC_VERSION: Final = 1

#: The windows, shortest first; window ``W`` of an event at ``t`` holds the events in ``(t - W, t]``.
WINDOWS: Final = ("1h", "24h", "7d", "30d")

WINDOW_MS: Final = (3_600_000, 86_400_000, 7 * 86_400_000, 30 * 86_400_000)

#: Stands for an unknown balance; far beyond the largest balance.
MISSING: Final = -(2**63)

#: Code of a category value that training never saw.
UNSEEN_CODE: Final = -1

#: From the event time, in UTC. ``day_of_week`` is 0 on Monday; ``is_month_end`` is the month's last day.
CALENDAR_FEATURES: Final = ("hour", "day_of_week", "is_weekend", "is_month_end")

#: From the balances: ``amount / pre_balance`` and ``post_balance / pre_balance``.
BALANCE_FEATURES: Final = ("balance_change_ratio", "balance_after_ratio")

#: From the user's history; the order in which the kernel writes them.
HISTORY_FEATURES: Final = (
    *(
        f"{name}_{window}"
        for window in WINDOWS
        for name in (
            "transaction_count",
            "amount_sum",
            "amount_mean",
            "amount_max",
            "amount_std",
            "merchant_distinct",
        )
    ),
    "seconds_since_previous",
    "amount_to_mean_7d",
    "amount_to_mean_30d",
    "amount_zscore_30d",
    "lifetime_count",
    "lifetime_amount_mean",
    "lifetime_amount_std",
    "lifetime_amount_max",
    "lifetime_amount_cv",
    "days_since_first",
    "days_since_last",
)

#: Transaction fields that become category codes in every spec.
CATEGORY_COLUMNS: Final = ("channel", "transaction_type")


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """An ordered list of features.

    Attributes
    ----------
    categories:
        For each category column, the values seen in training; a value's code is its index.
    numeric_attributes:
        Numeric members of a transaction's ``attributes`` that become features.
    categorical_attributes:
        Text members of ``attributes`` that become features; each has its values in ``categories``.
    entities:
        Entity profiles, whose features come last.
    refund_types:
        Transaction types that are refunds, see :mod:`stream.features.refunds`; negative amounts always are.

    Examples
    --------
    >>> spec = FeatureSpec({"channel": ("online", "pos"), "transaction_type": ("purchase",)})
    >>> len(spec.names), spec.names[:3]
    (44, ('amount', 'hour', 'day_of_week'))
    >>> FeatureSpec.from_json(spec.to_json()).hash == spec.hash
    True
    """

    categories: Mapping[str, tuple[str, ...]]
    numeric_attributes: tuple[str, ...] = ()
    categorical_attributes: tuple[str, ...] = ()
    entities: tuple[EntityProfile, ...] = ()
    refund_types: tuple[str, ...] = ()
    version: int = SPEC_VERSION
    _names: tuple[str, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        names = (
            "amount",
            *CALENDAR_FEATURES,
            *BALANCE_FEATURES,
            *(f"{column}_code" for column in CATEGORY_COLUMNS),
            *HISTORY_FEATURES,
            *(f"attributes.{name}" for name in self.numeric_attributes),
            *(f"attributes.{name}_code" for name in self.categorical_attributes),
            *(name for profile in self.entities for name in profile.names),
        )
        object.__setattr__(self, "_names", names)
        wanted = {*CATEGORY_COLUMNS, *self.categorical_attributes}
        if set(self.categories) != wanted:
            msg = f"categories must be given for exactly {sorted(wanted)}, not {sorted(self.categories)}"
            raise ValueError(msg)
        self._check_entities()
        twice = {name for name in names if names.count(name) > 1}
        twice |= {*CATEGORY_COLUMNS} & {*self.categorical_attributes}
        if twice:
            msg = f"two features would be called {min(twice)}; rename the attribute"
            raise ValueError(msg)

    def _check_entities(self) -> None:
        usual = False
        horizons: dict[str, float] = {}
        for profile in self.entities:
            days = profile.label_horizon_days
            if profile.label_windows_days and horizons.setdefault(profile.entity, days) != days:
                msg = f"all profiles of {profile.entity} must have the same label_horizon_days"
                raise ValueError(msg)
            if "fraud_to_usual_min" in profile.label_aggregates and not usual:
                msg = "fraud_to_usual_min requires an earlier profile of the user with usual_days"
                raise ValueError(msg)
            usual |= profile.entity == "user" and profile.usual_days is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Every feature's name, in the order of the model's columns."""
        return self._names

    def entity_columns(self, index: int) -> slice:
        """Return the columns of the profile number ``index`` of ``entities``, which come last."""
        behind = sum(len(profile.names) for profile in self.entities[index:])
        first = len(self._names) - behind
        return slice(first, first + len(self.entities[index].names))

    @property
    def categorical(self) -> tuple[str, ...]:
        """Names of the features that are category codes."""
        attributes = (f"attributes.{name}" for name in self.categorical_attributes)
        return tuple(f"{name}_code" for name in (*CATEGORY_COLUMNS, *attributes))

    @property
    def hash(self) -> str:
        """Sixteen hex digits that change with any feature, order, category or version."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON values."""
        value = {
            "version": self.version,
            "features": list(self._names),
            "categories": {name: list(values) for name, values in self.categories.items()},
            "numeric_attributes": list(self.numeric_attributes),
            "categorical_attributes": list(self.categorical_attributes),
        }
        if self.entities:
            value["entities"] = [profile.to_json() for profile in self.entities]
        if self.refund_types:  # specs of before had none, and keep their hash
            value["refund_types"] = list(self.refund_types)
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the spec that :meth:`to_json` wrote.

        Raises
        ------
        ValueError
            The spec has features that this program does not compute, or computes differently.
        """
        if value.get("version") != SPEC_VERSION:
            msg = (
                f"feature spec version {value.get('version')} is not {SPEC_VERSION}, the version that "
                "this program computes"
            )
            raise ValueError(msg)
        spec = cls(
            categories={name: tuple(values) for name, values in value["categories"].items()},
            numeric_attributes=tuple(value["numeric_attributes"]),
            categorical_attributes=tuple(value["categorical_attributes"]),
            entities=tuple(EntityProfile.from_json(profile) for profile in value.get("entities", ())),
            refund_types=tuple(value.get("refund_types", ())),
        )
        if list(spec.names) != list(value["features"]):
            msg = "the spec's features differ from the features that this program computes"
            raise ValueError(msg)
        return spec
