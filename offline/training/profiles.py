"""Entity profiles of a training run: the shipped ones, and those of a file.

A file of profiles is TOML; each table has the fields of
:class:`stream.features.profiles.spec.EntityProfile`::

    [[entities]]
    entity = "merchant"
    windows_days = [1, 7, 30]
    aggregates = ["count", "user_distinct"]
    label_windows_days = [7, 30]
    label_aggregates = ["fraud_count", "fraud_share"]
    label_recency = ["days_since_last_fraud"]
    # label_delay_days = 7.0            # by default that of the training
    # label_horizon_days = 90.0         # later labels do not count
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from offline.training.recipes import ACCOUNTS, CARDS
from stream.errors import ConfigError
from stream.features.profiles.spec import ENTITIES, EntityProfile

if TYPE_CHECKING:
    from offline.data.table import TransactionTable

__all__ = ["SHIPPED", "load_profiles", "present"]


#: By name; :func:`present` selects those that a file can have.
SHIPPED: Final[dict[str, tuple[EntityProfile, ...]]] = {"accounts": ACCOUNTS, "cards": CARDS.entities}

_LENGTHS: Final = ("windows_days", "label_windows_days")
_NUMBERS: Final = ("usual_days", "large_factor", "label_delay_days", "label_horizon_days")


def load_profiles(name: str, *, label_delay_days: float) -> tuple[EntityProfile, ...]:
    """Return the profiles of a name in ``SHIPPED``, or those of a TOML file.

    ``label_delay_days`` is the training's; a profile of a file may declare a longer delay.

    Raises
    ------
    ConfigError
        No such name or file exists, or a profile is wrong; the text has the profile and the reason.
    """
    if name in SHIPPED:
        return tuple(profile.delayed(label_delay_days) for profile in SHIPPED[name])
    try:
        found = tomllib.loads(Path(name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"profiles {name}: there is no such file; the shipped profiles are {', '.join(SHIPPED)}"
        ) from error
    except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"profiles {name} cannot be read: {error}") from error
    tables = found.get("entities")
    if set(found) != {"entities"} or not isinstance(tables, list) or not tables:
        raise ConfigError(f"profiles {name}: must contain [[entities]] tables and nothing else")
    profiles = []
    for number, table in enumerate(tables, 1):
        try:
            profile = EntityProfile.from_json({"label_delay_days": label_delay_days} | _floats(table))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"profiles {name}, number {number}: {error}") from error
        if profile.label_windows_days and profile.label_delay_days < label_delay_days:
            raise ConfigError(
                f"profiles {name}, number {number}: label_delay_days {profile.label_delay_days:g} is shorter "
                f"than the training's label delay of {label_delay_days:g} days"
            )
        profiles.append(profile)
    return tuple(profiles)


def present(table: TransactionTable, profiles: tuple[EntityProfile, ...]) -> tuple[EntityProfile, ...]:
    """Return the profiles whose entity has a column in the table."""
    return tuple(profile for profile in profiles if getattr(table, ENTITIES[profile.entity]) is not None)


def _floats(table: dict[str, Any]) -> dict[str, Any]:
    """Return a profile's numbers as floats: 7 and 7.0 are the same profile, with the same hash."""
    result = dict(table)
    for key in _LENGTHS:
        if key in result:
            result[key] = [float(days) for days in result[key]]
    for key in _NUMBERS:
        if result.get(key) is not None:
            result[key] = float(result[key])
    return result
