"""The simulator's users, their habits and their ordinary life."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

__all__ = [
    "CHANNELS",
    "COUNTRIES",
    "DAY_MS",
    "HOUR_MS",
    "TYPES",
    "Channel",
    "Events",
    "Kind",
    "Users",
    "active_times",
    "make_users",
    "ordinary_events",
    "purchase_channels",
]


HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
CHANNELS: Final = ("pos", "online", "mobile", "atm")
COUNTRIES: Final = ("BE", "NL", "DE", "FR", "LU", "ES", "IT", "GB", "US", "TR")
TYPES: Final = ("purchase", "withdrawal", "transfer_out", "transfer_in", "salary", "refund")
_MERCHANTS_PER_USER: Final = 0.5

#: Shares of a user's ordinary events besides salary and rent.
_KIND_SHARES: Final = {"purchase": 0.80, "withdrawal": 0.07, "transfer_out": 0.08, "transfer_in": 0.05}


class Channel(IntEnum):
    """Index in ``CHANNELS``."""

    POS = 0
    ONLINE = 1
    MOBILE = 2
    ATM = 3


class Kind(IntEnum):
    """Index in ``TYPES``."""

    PURCHASE = 0
    WITHDRAWAL = 1
    TRANSFER_OUT = 2
    TRANSFER_IN = 3
    SALARY = 4
    REFUND = 5


@dataclass(frozen=True, slots=True)
class Events:
    """Events before their balances are known; every array has the shape ``(n,)``.

    Attributes
    ----------
    time_ms:
        Milliseconds since the start of the simulation.
    balance_share:
        Above 0: the amount is this share of the current balance, and ``amount_minor`` is not used.
    merchant, device:
        Numbers; -1 for none.
    """

    user: npt.NDArray[np.int64]
    time_ms: npt.NDArray[np.int64]
    kind: npt.NDArray[np.int64]
    channel: npt.NDArray[np.int64]
    amount_minor: npt.NDArray[np.int64]
    balance_share: npt.NDArray[np.float64]
    merchant: npt.NDArray[np.int64]
    device: npt.NDArray[np.int64]
    country: npt.NDArray[np.int64]
    is_fraud: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: npt.NDArray[Any]) -> Events:
        """Return the rows that a mask or indices select."""
        return Events(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})

    @staticmethod
    def concatenate(parts: Sequence[Events]) -> Events:
        """Return all parts' rows, part after part."""
        return Events(
            **{
                item.name: np.concatenate([getattr(part, item.name) for part in parts])
                for item in fields(Events)
            }
        )


@dataclass(frozen=True, slots=True)
class Users:
    """Users' habits; arrays have the shape ``(users,)`` unless stated otherwise.

    Attributes
    ----------
    level, spread:
        Mean and standard deviation of the log of a purchase's amount, in major units of the currency.
    activity:
        Share of all events; sums to 1.
    hour_mean, hour_spread:
        Active hours of the day.
    home_merchants:
        Shape ``(users, 8)``: numbers of the merchants that a user visits most.
    channel_shares:
        Shape ``(users, 3)``: cumulative shares of pos, online and mobile among purchases.
    salaried:
        Whether the user has a salary and a rent on this account.
    monthly_minor, opening_minor, rent_minor:
        Expected spending in 30 days, first balance and rent, in minor units.
    """

    ids: npt.NDArray[np.object_]
    card_ids: npt.NDArray[np.object_]
    level: npt.NDArray[np.float64]
    spread: npt.NDArray[np.float64]
    activity: npt.NDArray[np.float64]
    hour_mean: npt.NDArray[np.float64]
    hour_spread: npt.NDArray[np.float64]
    home_merchants: npt.NDArray[np.int64]
    channel_shares: npt.NDArray[np.float64]
    home_country: npt.NDArray[np.int64]
    pay_day: npt.NDArray[np.int64]
    salaried: npt.NDArray[np.bool_]
    monthly_minor: npt.NDArray[np.int64]
    opening_minor: npt.NDArray[np.int64]
    rent_minor: npt.NDArray[np.int64]
    merchants: int

    def __len__(self) -> int:
        return len(self.ids)


def make_users(rng: np.random.Generator, count: int, *, monthly_events: float) -> Users:
    """Return ``count`` users who make ``monthly_events`` transactions in 30 days on average."""
    level = rng.normal(3.2, 1.15, count)
    spread = rng.uniform(0.3, 0.7, count)
    activity = rng.gamma(2.5, 1.0, count) + 0.3
    activity /= activity.sum()
    merchants = max(20, int(count * _MERCHANTS_PER_USER))
    # A few merchants have many customers, most have a few.
    popularity = 1.0 / np.arange(1, merchants + 1) ** 0.7
    popularity /= popularity.sum()
    shares = rng.dirichlet((5.0, 2.5, 2.5), count)
    mean_amount = np.exp(level + spread**2 / 2)
    monthly = mean_amount * activity * count * monthly_events * 1.6 + 50
    # Most pay and rent runs over another account, as people with a card for daily life have it.
    salaried = rng.random(count) < 0.3
    rent = monthly * rng.uniform(0.25, 0.6, count)
    width = max(5, len(str(count)))
    return Users(
        ids=np.array([f"U{number:0{width}d}" for number in range(count)], dtype=np.object_),
        card_ids=np.array([f"C{number:0{width}d}" for number in range(count)], dtype=np.object_),
        level=level,
        spread=spread,
        activity=activity,
        hour_mean=rng.normal(14.5, 2.5, count),
        hour_spread=rng.uniform(2.5, 5.0, count),
        home_merchants=rng.choice(merchants, (count, 8), p=popularity),
        channel_shares=np.cumsum(shares, axis=1),
        home_country=rng.choice(5, count, p=(0.6, 0.15, 0.1, 0.1, 0.05)),
        pay_day=rng.integers(0, 30, count),
        salaried=salaried,
        monthly_minor=(monthly * 100).astype(np.int64),
        opening_minor=(monthly * rng.lognormal(np.where(salaried, 0.6, 1.7), 0.7) * 100).astype(np.int64),
        rent_minor=(rent * 100).astype(np.int64),
        merchants=merchants,
    )


def active_times(
    rng: np.random.Generator, users: Users, who: npt.NDArray[np.int64], days: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return a time on each of the given days in the user's active hours; one in twelve at any hour."""
    hours = rng.normal(users.hour_mean[who], users.hour_spread[who]) % 24.0
    hours = np.where(rng.random(len(who)) < 0.08, rng.uniform(0, 24, len(who)), hours)
    return days * DAY_MS + np.minimum((hours * HOUR_MS).astype(np.int64), DAY_MS - 1)


def purchase_channels(
    rng: np.random.Generator, users: Users, who: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return pos, online or mobile for each event by the user's own shares."""
    draw = rng.random(len(who))[:, None]
    indexes: npt.NDArray[np.int64] = np.minimum((draw > users.channel_shares[who]).sum(axis=1), 2)
    return indexes.astype(np.int64)


def ordinary_events(rng: np.random.Generator, users: Users, count: int, days: int) -> Events:
    """Return ``count`` legitimate events: regular payments first, the rest drawn by the users' habits."""
    regular = _regular_payments(rng, users, days)
    if len(regular) > count // 3:
        kept = np.sort(rng.choice(len(regular), count // 3, replace=False))
        regular = regular.take(kept)
    travel = _part(rng, users, days, int(count * 0.02), _travel)
    bursts = _part(rng, users, days, int(count * 0.03), _shopping_day)
    daily = _daily_life(rng, users, count - len(regular) - len(travel) - len(bursts), days)
    return Events.concatenate([regular, travel, bursts, daily])


def _amounts(rng: np.random.Generator, users: Users, who: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return np.exp(rng.normal(users.level[who], users.spread[who]))


def _minor(amounts: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    return np.maximum(np.rint(amounts * 100), 50).astype(np.int64)


def _merchants(
    rng: np.random.Generator, users: Users, who: npt.NDArray[np.int64], new: float
) -> npt.NDArray[np.int64]:
    home = users.home_merchants[who, rng.integers(0, 8, len(who))]
    return np.where(rng.random(len(who)) < new, rng.integers(0, users.merchants, len(who)), home)


def _devices(rng: np.random.Generator, who: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return one of the user's two devices, and now and then a new device."""
    own = who * 2 + (rng.random(len(who)) < 0.2)
    return np.where(rng.random(len(who)) < 0.01, 10_000_000 - 1 - rng.integers(0, 1_000_000, len(who)), own)


def _daily_life(rng: np.random.Generator, users: Users, count: int, days: int) -> Events:
    who = rng.choice(len(users), count, p=users.activity)
    weights = np.where(np.arange(days) % 7 >= 5, 1.25, 1.0)
    day = rng.choice(days, count, p=weights / weights.sum())
    kind = rng.choice(4, count, p=tuple(_KIND_SHARES.values()))
    channel = purchase_channels(rng, users, who)
    transfer = kind >= Kind.TRANSFER_OUT
    channel = np.where(transfer, rng.integers(Channel.ONLINE, Channel.MOBILE + 1, count), channel)
    channel = np.where(kind == Kind.WITHDRAWAL, Channel.ATM, channel)
    amounts = _amounts(rng, users, who)
    amounts = np.where(transfer, amounts * rng.lognormal(0.3, 0.5, count), amounts)
    # A new fridge: far above this user's usual spending, and legitimate.
    big = rng.random(count) < 0.01
    amounts = np.where(big, amounts * rng.uniform(3, 9, count), amounts)
    amounts = np.where(kind == Kind.WITHDRAWAL, np.ceil(amounts / 10) * 10, amounts)
    time_ms = active_times(rng, users, who, day)
    # Now and then the next errand follows at once.
    follows = np.flatnonzero(rng.random(count) < 0.04)
    follows = follows[follows > 0]
    who[follows] = who[follows - 1]
    time_ms[follows] = np.minimum(
        time_ms[follows - 1] + rng.integers(60_000, HOUR_MS, len(follows)), days * DAY_MS - 1
    )
    purchase = kind == Kind.PURCHASE
    return Events(
        user=who,
        time_ms=time_ms,
        kind=kind,
        channel=channel,
        amount_minor=_minor(amounts),
        balance_share=np.zeros(count),
        merchant=np.where(purchase, _merchants(rng, users, who, 0.15), -1),
        device=_devices(rng, who),
        country=np.where(
            rng.random(count) < 0.02, rng.integers(0, len(COUNTRIES), count), users.home_country[who]
        ),
        is_fraud=np.zeros(count, dtype=np.bool_),
    )


def _regular_payments(rng: np.random.Generator, users: Users, days: int) -> Events:
    """Return a salary and a day or so later a rent, every 30 days, of the users who have them here."""
    months = np.arange((days + 29) // 30)
    salaried = np.flatnonzero(users.salaried)
    who = np.repeat(salaried, len(months))
    day = users.pay_day[who] + 30 * np.tile(months, len(salaried))
    salary_ms = day * DAY_MS + rng.integers(5 * HOUR_MS, 9 * HOUR_MS, len(who))
    rent_ms = salary_ms + rng.integers(1 * HOUR_MS, 50 * HOUR_MS, len(who))
    pay = users.monthly_minor[who] * rng.normal(1.15, 0.03, len(who)) + users.rent_minor[who]
    user = np.concatenate([who, who])
    count = len(user)
    kind = np.repeat([Kind.SALARY, Kind.TRANSFER_OUT], len(who)).astype(np.int64)
    events = Events(
        user=user,
        time_ms=np.concatenate([salary_ms, rent_ms]),
        kind=kind,
        channel=np.full(count, Channel.ONLINE, dtype=np.int64),
        amount_minor=np.concatenate([pay.astype(np.int64), users.rent_minor[who]]),
        balance_share=np.zeros(count),
        merchant=np.full(count, -1, dtype=np.int64),
        device=user * 2,
        country=users.home_country[user],
        is_fraud=np.zeros(count, dtype=np.bool_),
    )
    return events.take(events.time_ms < days * DAY_MS)


def _part(rng: np.random.Generator, users: Users, days: int, count: int, make: Any) -> Events:
    """Return ``count`` events of spells of six; ``make`` gives their times, amount factors and countries."""
    spells = -(-count // 6)
    who = np.repeat(rng.choice(len(users), spells, p=users.activity), 6)[:count]
    first_day = np.repeat(rng.integers(0, max(1, days - 8), spells), 6)[:count]
    time_ms, factor, country = make(rng, users, who, first_day)
    channel = np.where(rng.random(count) < 0.7, Channel.POS, Channel.ONLINE).astype(np.int64)
    return Events(
        user=who,
        time_ms=np.minimum(time_ms, days * DAY_MS - 1),
        kind=np.zeros(count, dtype=np.int64),
        channel=channel,
        amount_minor=_minor(_amounts(rng, users, who) * factor),
        balance_share=np.zeros(count),
        merchant=rng.integers(0, users.merchants, count),
        device=who * 2,
        country=country,
        is_fraud=np.zeros(count, dtype=np.bool_),
    )


def _travel(
    rng: np.random.Generator, users: Users, who: npt.NDArray[np.int64], first_day: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Return a week abroad: another country, new merchants, dearer."""
    day = first_day + rng.integers(0, 7, len(who))
    abroad = (users.home_country[who] + 1 + first_day % (len(COUNTRIES) - 1)) % len(COUNTRIES)
    return active_times(rng, users, who, day), rng.lognormal(0.5, 0.4, len(who)), abroad


def _shopping_day(
    rng: np.random.Generator, users: Users, who: npt.NDArray[np.int64], first_day: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Return a day of presents: six purchases within some hours."""
    start = first_day * DAY_MS + 11 * HOUR_MS
    return (
        start + rng.integers(0, 6 * HOUR_MS, len(who)),
        rng.lognormal(0.3, 0.4, len(who)),
        users.home_country[who],
    )
