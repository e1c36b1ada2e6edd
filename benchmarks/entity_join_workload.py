"""The workload of the entity-join benchmark, and models with profiles of no entity, one, or three.

The users, their histories and their transactions are those of :mod:`benchmarks.workload`, but fewer, so that
every worker restores its state in a second or two. Each user has a separate card, and two users share a
device. Entities have a past as long as the users' histories: a transaction for each event, with a label for
each transaction older than a week. Every model receives byte-identical transactions; no labels are sent
during the measurement.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.local_store import LocalStore
from benchmarks.workload import (
    CHANNELS,
    HORIZON_MS,
    MERCHANTS,
    PARTITIONS,
    START_MS,
    TYPES,
    Workload,
    WorkloadSpec,
    fitted,
    grow,
    merchant_name,
    noise_bundle,
    partition_of,
    prepared,
    transactions_of,
    user_key,
)
from offline.training.recipes import CARDS
from stream.events.fields import MS_PER_DAY
from stream.events.records import ProducerRecord
from stream.features.profiles.log import EntityLog, Horizon
from stream.features.profiles.spec import EntityProfile
from stream.features.spec import FeatureSpec
from stream.pipeline.effects import PipelineConfig
from stream.pipeline.entity_join.messages import CODES
from stream.pipeline.entity_join.messages import partition_of as entity_partition
from stream.pipeline.entity_join.topology import EntityJoinPipeline, EntityJoinTopics
from stream.pipeline.in_memory import InMemoryTopology
from stream.pipeline.transactions import TransactionPipeline
from stream.settings import RocksDBSettings
from stream.state.format import entity_prefix
from stream.state.hashing import hash_ids
from stream.state.store import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

    from stream.pipeline.effects import BatchEffects
    from stream.scoring.bundle import Bundle

__all__ = ["SPEC", "VARIANTS", "Variant", "decide", "device_name", "entity_join_workloads"]

#: Raised with every change of what is made.
_VERSION: Final = 1
_ROUND: Final = 2_000
#: Of the transactions, to learn from and to choose the thresholds by.
_LEARNT_FROM: Final = 20_000
_FRAUD_SHARE: Final = 0.01
#: Words of a transaction in a user's log: those of an entity's but the last two, and four entities' names.
_USER_WORDS: Final = 8
#: Nothing of the past is old enough to be forgotten.
_KEEP: Final = Horizon(2**50, 2**50)
_NAN_BITS: Final = int(np.float64(np.nan).view(np.int64))
_TOPICS: Final = EntityJoinTopics("transactions", "labels", "questions", "answers", 1)

#: The card recipe's terminals, without what it wants of the users' logs.
_MERCHANT: Final = replace(
    next(one for one in CARDS.entities if one.entity == "merchant"),
    label_aggregates=("fraud_count", "fraud_share"),
)
_CARD: Final = EntityProfile("card", (1.0, 7.0, 30.0), ("count", "amount_mean", "amount_to_median"))
_DEVICE: Final = EntityProfile("device", (1.0, 7.0, 30.0), ("count", "amount_sum", "user_distinct"))

SPEC: Final = WorkloadSpec(users=20_000, transactions=70_000)


@dataclass(frozen=True, slots=True)
class Variant:
    """A model to measure.

    Attributes
    ----------
    preloaded:
        Transactions in the topic before the worker starts: some seconds' work.
    """

    name: str
    profiles: tuple[EntityProfile, ...]
    preloaded: int


VARIANTS: Final = (
    Variant("user features only", (), 40_000),
    Variant("with merchants", (_MERCHANT,), 12_000),
    Variant("with merchants, cards, devices", (_MERCHANT, _CARD, _DEVICE), 8_000),
)


def device_name(user: int) -> str:
    """Return the name of a user's device, which two users share."""
    return f"D{user // 2:07d}"


def _card_name(user: int) -> str:
    return f"C{user:07d}"


def entity_join_workloads(spec: WorkloadSpec = SPEC) -> dict[str, Workload]:
    """Return the workload of each of ``VARIANTS``, made where the cache has it not."""
    folder = prepared(f"entity-join-{_VERSION}-{spec.name()}", lambda making: _make(spec, making))
    return {case.name: Workload(spec, folder / str(number)) for number, case in enumerate(VARIANTS)}


def _make(spec: WorkloadSpec, folder: Path) -> None:
    grown = grow(spec)
    transactions = [
        (user, b'%b,"card_id":"%b","device_id":"%b"}' % (value[:-1], *_names(user)))
        for user, value in transactions_of(spec)
    ]
    past = _Past(spec)
    histories = [
        (partition_of(user), user_key(user) + suffix, value)
        for user in range(spec.users)
        for suffix, value in grown[user % len(grown)].records
    ]
    for number, case in enumerate(VARIANTS):
        own = folder / str(number)
        own.mkdir()
        with (own / "transactions.bin").open("wb") as file:
            file.writelines(b"%d %s\n" % item for item in transactions)
        records = [*histories, *past.records(case)]
        _store(own / "state", records)
        _bundle(spec, case, records, transactions).save(own / "bundle")


def _names(user: int) -> tuple[bytes, bytes]:
    return _card_name(user).encode(), device_name(user).encode()


def _store(folder: Path, records: list[tuple[int, bytes, bytes]]) -> None:
    store = LocalStore(folder, RocksDBSettings())
    for partition in range(PARTITIONS):
        store.write(partition, [(key, value) for at, key, value in records if at == partition], -1)
        store.database(partition).flush()
        store.database(partition).compact_range(None, None)
    store.close()


class _Past:
    """Random transactions of all users, in the order of time, and what logs hold of them."""

    def __init__(self, spec: WorkloadSpec) -> None:
        random = np.random.default_rng(spec.seed + 3)
        count = spec.users * spec.events
        self._user = random.integers(spec.users, size=count)
        merchant = random.integers(MERCHANTS, size=count)
        times = np.sort(random.integers(START_MS - HORIZON_MS + 1, START_MS, count))
        amounts = np.maximum(random.lognormal(8.0, 1.2, count), 1.0).astype(np.int64)
        id_hash, case = random.integers(1, 2**63 - 1, (2, count))
        users = range(spec.users)
        user = hash_ids([user_key(item).decode() for item in users])[self._user]
        self._name = {
            "merchant": hash_ids([merchant_name(item) for item in range(MERCHANTS)])[merchant],
            "card": hash_ids([_card_name(item) for item in users])[self._user],
            "device": hash_ids([device_name(item) for item in users])[self._user],
        }
        to_usual = np.full(count, _NAN_BITS)
        self._events = np.stack([times, amounts, user, id_hash, to_usual, case])
        routes = [*self._name.values(), np.zeros(count, np.int64)]
        self._of_users = np.stack([times, amounts, user, id_hash, *routes])
        known = times + 7 * MS_PER_DAY
        fraud = (random.random(count) < _FRAUD_SHARE).astype(np.int64)
        labels = np.stack([known, fraud, np.arange(count), times, amounts, to_usual, id_hash])
        self._labels = labels
        self._labelled = known < START_MS

        self._made: dict[EntityProfile | None, list[tuple[int, bytes, bytes]]] = {}

    def records(self, case: Variant) -> Iterator[tuple[int, bytes, bytes]]:
        """Yield partition, key and value of each record of the case's logs; users have some for labels."""
        labelled = any(profile.label_windows_days for profile in case.profiles)
        for profile in (*case.profiles, *([None] if labelled else [])):
            if profile not in self._made:
                logs = self._users_logs() if profile is None else self._logs(profile)
                self._made[profile] = list(logs)
            yield from self._made[profile]

    def _logs(self, profile: EntityProfile) -> Iterator[tuple[int, bytes, bytes]]:
        for name, rows in _groups(self._name[profile.entity]):
            log = EntityLog(entity_prefix(CODES[profile.entity], name), len(self._events))
            _fill(log, self._events[:, rows])
            if profile.label_windows_days:
                numbers = np.flatnonzero(self._labelled[rows])
                labels = self._labels[:, rows[numbers]].T.tolist()
                for number, label in zip(numbers.tolist(), labels, strict=True):
                    log.label((*label, number))
            yield from _written(log, entity_partition(name, PARTITIONS))

    def _users_logs(self) -> Iterator[tuple[int, bytes, bytes]]:
        for user, rows in _groups(self._user):
            log = EntityLog(user_key(user), _USER_WORDS)
            _fill(log, self._of_users[:, rows])
            yield from _written(log, partition_of(user))


def _groups(names: npt.NDArray[np.int64]) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Yield each name and its rows, in their order."""
    order = np.argsort(names, kind="stable")
    distinct, starts = np.unique(names[order], return_index=True)
    yield from zip(distinct.tolist(), np.split(order, starts[1:]), strict=True)


def _fill(log: EntityLog, events: npt.NDArray[np.int64]) -> None:
    for event in events.T.tolist():
        log.add(event)


def _written(log: EntityLog, partition: int) -> Iterator[tuple[int, bytes, bytes]]:
    for key, value in log.writes(_KEEP):
        assert value is not None  # nothing is forgotten
        yield partition, key, value


def _bundle(
    spec: WorkloadSpec,
    case: Variant,
    records: list[tuple[int, bytes, bytes]],
    transactions: list[tuple[int, bytes]],
) -> Bundle:
    features = FeatureSpec({"channel": CHANNELS, "transaction_type": TYPES}, entities=case.profiles)
    random = np.random.default_rng(spec.seed + 2)
    memory = MemoryStore()
    memory.write([(key, value) for _, key, value in records])
    all_effects = decide(noise_bundle(features, random), memory, transactions[:_LEARNT_FROM])
    matrix = np.concatenate([effects.features.copy() for effects in all_effects if len(effects.features)])
    return fitted(spec, features, matrix, random)


def decide(
    bundle: Bundle, memory: MemoryStore, transactions: list[tuple[int, bytes]]
) -> Iterator[BatchEffects]:
    """Decide users' transactions in this process, every stage in turn; yields all stages' plans."""
    config = PipelineConfig()
    asking = bool(bundle.spec.entities)
    pipeline = EntityJoinPipeline(bundle, config, _TOPICS) if asking else TransactionPipeline(bundle, config)
    loop = InMemoryTopology(pipeline, memory, START_MS + 400 * MS_PER_DAY)
    for begin in range(0, len(transactions), _ROUND):
        messages = [
            ProducerRecord(user_key(user), value) for user, value in transactions[begin : begin + _ROUND]
        ]
        yield from loop.send({(_TOPICS.transactions, 0): messages})
