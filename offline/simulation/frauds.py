"""The simulator's frauds, in episodes of some transactions each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from offline.simulation.users import COUNTRIES, DAY_MS, HOUR_MS, Channel, Events, Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from offline.simulation.users import Users

__all__ = ["fraud_events"]


_MINUTE_MS: Final = 60_000


class _Episode:
    """An episode, collected event by event."""

    def __init__(self, rng: np.random.Generator, users: Users, user: int, start_ms: int) -> None:
        self.rng = rng
        self.users = users
        self.user = user
        self.time_ms = start_ms
        self.device = 20_000_000 + int(rng.integers(0, 10_000_000))
        self.country = int(users.home_country[user])
        self.rows: list[tuple[int, int, int, int, int, float, int, int, int]] = []

    def typical(self) -> float:
        """Return an amount like the user's own, in units."""
        return float(np.exp(self.rng.normal(self.users.level[self.user], self.users.spread[self.user])))

    def wait(self, low_ms: int, high_ms: int) -> None:
        self.time_ms += int(self.rng.integers(low_ms, high_ms))

    def add(
        self, kind: Kind, channel: Channel, amount: float, *, share: float = 0.0, merchant: int | None = None
    ) -> None:
        if merchant is None:
            merchant = int(self.rng.integers(0, self.users.merchants)) if kind == Kind.PURCHASE else -1
        minor = max(50, round(amount * 100))
        self.rows.append(
            (self.user, self.time_ms, kind, channel, minor, share, merchant, self.device, self.country)
        )


def _account_takeover(episode: _Episode) -> None:
    """Drain the account in a few transfers from another device, often at night."""
    rng = episode.rng
    if rng.random() < 0.5:
        episode.time_ms = episode.time_ms // DAY_MS * DAY_MS + int(rng.integers(0, 6 * HOUR_MS))
    channel = Channel.ONLINE if rng.random() < 0.6 else Channel.MOBILE
    for _ in range(int(rng.integers(2, 5))):
        episode.add(Kind.TRANSFER_OUT, channel, 0.0, share=float(rng.uniform(0.1, 0.45)))
        episode.wait(2 * _MINUTE_MS, 25 * _MINUTE_MS)


def _card_testing(episode: _Episode) -> None:
    """Try a stolen card with amounts like any other, in minutes, then buy once for real."""
    rng = episode.rng
    scale = episode.typical()
    for _ in range(int(rng.integers(4, 9))):
        episode.add(Kind.PURCHASE, Channel.ONLINE, scale * float(rng.uniform(0.05, 0.5)))
        episode.wait(20_000, 4 * _MINUTE_MS)
    episode.add(Kind.PURCHASE, Channel.ONLINE, scale * float(rng.uniform(4, 8)))


def _compromised_merchant(episode: _Episode) -> None:
    """Charge a card that a merchant leaked: some purchases well above the user's own."""
    rng = episode.rng
    channel = Channel.POS if rng.random() < 0.5 else Channel.ONLINE
    # Leaks happen at few merchants: the same merchants turn up again and again.
    merchant = int(rng.integers(0, max(1, episode.users.merchants // 100)))
    for _ in range(int(rng.integers(2, 5))):
        episode.add(Kind.PURCHASE, channel, episode.typical() * float(rng.uniform(3.5, 9)), merchant=merchant)
        episode.wait(10 * _MINUTE_MS, 8 * HOUR_MS)


def _escalation(episode: _Episode) -> None:
    """Begin like the user and go up by half each time, within hours."""
    rng = episode.rng
    amount = episode.typical() * 2
    channel = Channel.POS if rng.random() < 0.5 else Channel.MOBILE
    for _ in range(int(rng.integers(4, 7))):
        episode.add(Kind.PURCHASE, channel, amount)
        amount *= float(rng.uniform(1.4, 2.0))
        episode.wait(5 * _MINUTE_MS, 50 * _MINUTE_MS)


def _mule(episode: _Episode) -> None:
    """Take money in and pass it on at once, some times over."""
    rng = episode.rng
    channel = Channel.MOBILE if rng.random() < 0.6 else Channel.ONLINE
    for _ in range(int(rng.integers(2, 5))):
        amount = episode.typical() * float(rng.uniform(3, 7))
        episode.add(Kind.TRANSFER_IN, channel, amount)
        episode.wait(2 * _MINUTE_MS, 40 * _MINUTE_MS)
        episode.add(Kind.TRANSFER_OUT, channel, amount * float(rng.uniform(0.85, 0.98)))
        episode.wait(5 * _MINUTE_MS, 3 * HOUR_MS)


#: Behaviour and its share of the fraudulent transactions.
BEHAVIOURS: Final[dict[str, tuple[Callable[[_Episode], None], float]]] = {
    "account takeover": (_account_takeover, 0.2),
    "card testing": (_card_testing, 0.25),
    "compromised merchant": (_compromised_merchant, 0.2),
    "amount escalation": (_escalation, 0.2),
    "mule": (_mule, 0.15),
}


def fraud_events(rng: np.random.Generator, users: Users, count: int, days: int) -> Events:
    """Return exactly ``count`` fraudulent events; the last episode of a behaviour may be cut short."""
    rows: list[tuple[int, int, int, int, int, float, int, int, int]] = []
    for number, (make, share) in enumerate(BEHAVIOURS.values()):
        wanted = count - len(rows) if number == len(BEHAVIOURS) - 1 else round(count * share)
        made: list[tuple[int, int, int, int, int, float, int, int, int]] = []
        while len(made) < wanted:
            user = int(rng.integers(0, len(users)))
            # Never on the last day, so that an episode is over before the file is.
            day = int(rng.integers(0, days - 1))
            hour = float(rng.normal(users.hour_mean[user], users.hour_spread[user]) % 24.0)
            episode = _Episode(rng, users, user, day * DAY_MS + int(hour * HOUR_MS))
            if rng.random() < 0.15:
                episode.country = int(rng.integers(0, len(COUNTRIES)))
            make(episode)
            made += episode.rows
        rows += made[:wanted]
    columns = [np.array(column) for column in zip(*rows, strict=True)] if rows else [np.zeros(0)] * 9
    integers: list[npt.NDArray[np.int64]] = [column.astype(np.int64) for column in columns]
    who, time_ms, kind, channel, amount, _, merchant, device, country = integers
    return Events(
        user=who,
        time_ms=np.minimum(time_ms, days * DAY_MS - 1),
        kind=kind,
        channel=channel,
        amount_minor=amount,
        balance_share=columns[5].astype(np.float64),
        merchant=merchant,
        device=device,
        country=country,
        is_fraud=np.ones(len(rows), dtype=np.bool_),
    )
