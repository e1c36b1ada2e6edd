"""The workload: users with a past, their next transactions, and a model; the same in every run.

It is created once and kept in a cache folder, under a name that changes with its parameters and with the code
that creates it. Users' histories are clones of some thousands of real histories; at the start every user has
exactly ``events`` events within the horizon, and event time advances at the pace that keeps this number.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import lightgbm
import numpy as np
import orjson

from benchmarks.local_store import LocalStore
from stream.events.fields import MS_PER_DAY, format_event_time
from stream.events.records import ConsumerRecord
from stream.features.spec import CALENDAR_FEATURES, FeatureSpec
from stream.features.windows.arrays import OUT_SIZE
from stream.features.windows.events import HistoryConfig, HistoryEvents
from stream.features.windows.history import advance
from stream.pipeline.effects import Batch, PipelineConfig
from stream.pipeline.transactions import TransactionPipeline
from stream.scoring.bundle import Bundle, Thresholds
from stream.settings import RocksDBSettings
from stream.state.store import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

__all__ = [
    "CHANNELS", "HORIZON_MS", "MERCHANTS", "PARTITIONS", "START_MS", "TYPES", "Grown", "Workload",
    "WorkloadSpec", "cache_folder", "fitted", "grow", "merchant_name", "noise_bundle", "partition_of",
    "prepared", "transactions_of", "user_key",
]  # fmt: skip

PARTITIONS: Final = 4
#: Raised with every change of what is made.
_VERSION: Final = 2
#: Features that go one way as time goes on. Labels do not follow them, or the share of alerts would drift.
_DRIFTING: Final = frozenset(
    {*CALENDAR_FEATURES, "lifetime_count", "days_since_first", "lifetime_amount_max", "merchant_distinct_30d"}
)
HORIZON_MS: Final = HistoryConfig().horizon_ms
START_MS: Final = 1_750_000_000_000
MERCHANTS: Final = 5_000
#: Histories that are really grown; the other users' are copies of these under their own keys.
_GROWN_EVENTS: Final = 200_000
_ROUND: Final = 2_000
_TRAINING_ROWS: Final = 40_000
CHANNELS: Final = ("online", "pos", "atm")
TYPES: Final = ("purchase", "withdrawal", "transfer")


def cache_folder() -> Path:
    """Return where the benchmarks keep what is dear to make: data sets and the peers' environments."""
    cache = os.environ.get("RISKSTREAM_CACHE_DIR")
    root = Path(cache) if cache else Path.home() / ".cache" / "riskstream"
    return root.absolute() / "bench"


def user_key(user: int) -> bytes:
    """Return a user's name, which is the key of the user's transactions."""
    return b"U%07d" % user


def merchant_name(merchant: int) -> str:
    """Return a merchant's name."""
    return f"M{merchant:05d}"


def partition_of(user: int) -> int:
    """Return the partition of a user's records."""
    return user % PARTITIONS


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """A workload's parameters.

    Attributes
    ----------
    users, events:
        How many, and how many events of each lie within the horizon at the start.
    transactions:
        To process.
    trees, leaves:
        Of the model.
    alert_share:
        Of the transactions; 1.0 makes each an alert.
    """

    users: int = 100_000
    events: int = 30
    transactions: int = 250_000
    trees: int = 100
    leaves: int = 31
    alert_share: float = 0.02
    seed: int = 1

    def name(self) -> str:
        """Return a name that no other workload has."""
        root = Path(__file__).resolve().parent.parent
        digest = hashlib.sha256(orjson.dumps([_VERSION, asdict(self)], option=orjson.OPT_SORT_KEYS))
        for path in sorted((root / "stream" / "features").rglob("*.py")):
            digest.update(path.read_bytes())
        return f"{self.users}x{self.events}-{digest.hexdigest()[:10]}"


@dataclass(slots=True)
class Grown:
    """One user's records: what comes behind the user id in each key, and the value."""

    records: list[tuple[bytes, bytes]] = field(default_factory=list)


class Workload:
    """A prepared workload in its folder.

    Attributes
    ----------
    folder:
        Holds ``bundle``, ``state`` (a closed database per partition) and ``transactions.bin``.
    """

    def __init__(self, spec: WorkloadSpec, folder: Path) -> None:
        self.spec = spec
        self.folder = folder

    @property
    def bundle(self) -> Path:
        """Return the model bundle's folder."""
        return self.folder / "bundle"

    @property
    def state(self) -> Path:
        """Return the folder of the prior state's databases, ``<partition>.db``."""
        return self.folder / "state"

    @cached_property
    def transactions(self) -> list[tuple[int, bytes, bytes]]:
        """Partition, key and value of each transaction, in order."""
        raw = (self.folder / "transactions.bin").read_bytes()
        found = []
        for line in raw.splitlines():
            user, _, value = line.partition(b" ")
            found.append((partition_of(int(user)), user_key(int(user)), value))
        return found

    def records(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Yield partition, key and value of each state record."""
        store = LocalStore(self.state, RocksDBSettings())
        try:
            for partition in range(PARTITIONS):
                for key, value in store.database(partition).items():
                    yield partition, key, value
        finally:
            store.close()

    @classmethod
    def prepare(cls, spec: WorkloadSpec, bundle: Path | None = None) -> Workload:
        """Return the workload, made where the cache has it not; with the model of ``bundle`` if given."""
        return cls(spec, prepared(spec.name(), lambda folder: _make(spec, folder, bundle)))


def prepared(name: str, make: Callable[[Path], None]) -> Path:
    """Return the cache's folder of a name, made where it is not there: whole or not at all."""
    folder = cache_folder() / "data" / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
        try:
            make(making)
            making.rename(folder)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return folder


def _make(spec: WorkloadSpec, folder: Path, bundle: Path | None) -> None:
    grown = grow(spec)
    store = LocalStore(folder / "state", RocksDBSettings())
    for partition in range(PARTITIONS):
        writes: list[tuple[bytes, bytes | None]] = []
        for user in range(partition, spec.users, PARTITIONS):
            name = user_key(user)
            writes += [(name + suffix, value) for suffix, value in grown[user % len(grown)].records]
            if len(writes) >= _ROUND:
                store.write(partition, writes, -1)
                writes = []
        store.write(partition, writes, -1)
        store.database(partition).flush()
        store.database(partition).compact_range(None, None)
    store.close()
    transactions = list(transactions_of(spec))
    with (folder / "transactions.bin").open("wb") as file:
        file.writelines(b"%d %s\n" % item for item in transactions)
    if bundle is None:
        _bundle(spec, grown, transactions).save(folder / "bundle")
    else:
        shutil.copytree(bundle, folder / "bundle")


def grow(spec: WorkloadSpec) -> list[Grown]:
    """Return histories of ``events`` events each, spread evenly at random over the horizon."""
    random = np.random.default_rng(spec.seed)
    # A number that no partition count divides evenly, so that each partition has all of them.
    users = min(spec.users, max(33, _GROWN_EVENTS // spec.events | 1))
    names = [b"grown-%06d" % number for number in range(users)]
    times = np.sort(random.integers(START_MS - HORIZON_MS + 1, START_MS, (spec.events, users)), axis=0)
    memory = MemoryStore()
    config = HistoryConfig()
    count = users
    for number in range(spec.events):
        events = HistoryEvents(
            users=names,
            user=np.arange(users),
            time_ms=times[number],
            amount_minor=np.maximum(random.lognormal(8.0, 1.2, count), 1.0).astype(np.int64),
            merchant=random.integers(1, MERCHANTS + 1, count) * np.int64(0x1E3779B97F4A7),
            id_hash=random.integers(1, 2**63 - 1, count),
            minor_units=np.full(count, 100, np.int64),
            offset=np.full(count, number),
            source=np.full(users, 7),
        )
        result = advance(events, config, memory, np.empty((count, OUT_SIZE)))
        memory.write(result.writes)
    found: dict[bytes, Grown] = {name: Grown() for name in names}
    size = len(names[0])
    for key, value in memory.items():
        found[key[:size]].records.append((key[size:], value))
    return list(found.values())


def transactions_of(spec: WorkloadSpec) -> Iterator[tuple[int, bytes]]:
    """Yield each transaction's user and JSON."""
    random = np.random.default_rng(spec.seed + 1)
    count = spec.transactions
    users = random.integers(spec.users, size=count).tolist()
    step_ms = HORIZON_MS / (spec.events * spec.users)
    amounts = np.maximum(random.lognormal(8.0, 1.2, count), 1.0).astype(np.int64).tolist()
    merchants = random.integers(MERCHANTS, size=count).tolist()
    channels = random.integers(len(CHANNELS), size=count).tolist()
    types = random.integers(len(TYPES), size=count).tolist()
    balances = random.lognormal(12.0, 1.0, count).astype(np.int64).tolist()
    for number in range(count):
        before, amount = balances[number], amounts[number]
        value = {
            "transaction_id": f"T{number:08d}",
            "user_id": f"U{users[number]:07d}",
            "event_time": format_event_time(START_MS + int(number * step_ms)),
            "amount": f"{amount // 100}.{amount % 100:02d}",
            "currency": "EUR",
            "channel": CHANNELS[channels[number]],
            "transaction_type": TYPES[types[number]],
            "merchant_id": merchant_name(merchants[number]),
            "pre_balance": f"{before // 100}.{before % 100:02d}",
            "post_balance": f"{(before - amount) / 100:.2f}",
        }
        yield users[number], orjson.dumps(value)


def _bundle(spec: WorkloadSpec, grown: list[Grown], transactions: list[tuple[int, bytes]]) -> Bundle:
    """Return a model of these very features, and thresholds that the wanted share of them passes."""
    features = FeatureSpec({"channel": CHANNELS, "transaction_type": TYPES})
    random = np.random.default_rng(spec.seed + 2)
    pipeline = TransactionPipeline(noise_bundle(features, random), PipelineConfig(decisions=False))
    memory = MemoryStore()
    for user in {user for user, _ in transactions}:
        memory.write([(user_key(user) + suffix, value) for suffix, value in grown[user % len(grown)].records])
    matrices = []
    for begin in range(0, len(transactions), _ROUND):
        records = [
            ConsumerRecord(begin + index, 0, user_key(user), value)
            for index, (user, value) in enumerate(transactions[begin : begin + _ROUND])
        ]
        effects = pipeline.process(Batch("t", 0, 1, records), memory, START_MS + 400 * MS_PER_DAY)
        memory.write(effects.writes)
        matrices.append(effects.features.copy())
    return fitted(spec, features, np.concatenate(matrices), random)


def noise_bundle(features: FeatureSpec, random: np.random.Generator) -> Bundle:
    """Return a small model that has learnt nothing, to get features with."""
    width = len(features.names)
    return Bundle(_fit(random.normal(size=(500, width)), random.integers(0, 2, 500), 2, 4), "none", features)


def fitted(
    spec: WorkloadSpec, features: FeatureSpec, matrix: npt.NDArray[np.float64], random: np.random.Generator
) -> Bundle:
    """Return a model of the features in ``matrix`` (shape ``(n, features)``), as ``_bundle`` has it."""
    chosen = matrix[random.permutation(len(matrix))[:_TRAINING_ROWS]]
    steady = [index for index, name in enumerate(features.names) if name not in _DRIFTING]
    model = _fit(chosen, _labels(chosen[:, steady], random), spec.trees, spec.leaves)
    scores = lightgbm.Booster(model_str=model).predict(matrix, num_threads=1)
    if spec.alert_share >= 1:
        thresholds = Thresholds(high=1.0, medium=0.0, prediction=0.0)
    else:
        medium, high = np.quantile(scores, [1 - spec.alert_share, 1 - spec.alert_share / 4]).tolist()
        thresholds = Thresholds(high=high, medium=medium, prediction=high)
    return Bundle(model, f"bench-{spec.trees}x{spec.leaves}", features, thresholds)


def _labels(matrix: npt.NDArray[np.float64], random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return labels that depend on each of the features a little, with noise."""
    ranks = np.argsort(np.argsort(np.nan_to_num(matrix, nan=0.0), axis=0), axis=0) / len(matrix)
    drive = (ranks - 0.5) @ random.normal(size=matrix.shape[1])
    drive += 2 * (ranks[:, 0] - 0.5) * (ranks[:, 9] - 0.5)
    chance = 1 / (1 + np.exp(-2 * (drive - np.quantile(drive, 0.9))))
    return (random.random(len(matrix)) < chance).astype(np.int64)


def _fit(matrix: npt.NDArray[np.float64], labels: npt.NDArray[Any], trees: int, leaves: int) -> str:
    parameters = {
        "objective": "binary",
        "num_leaves": leaves,
        "learning_rate": 0.05,
        "min_data_in_leaf": 20,
        "feature_fraction": 0.5,
        "seed": 1,
        "deterministic": True,
        "num_threads": 1,
        "verbose": -1,
    }
    text: str = lightgbm.train(parameters, lightgbm.Dataset(matrix, labels), trees).model_to_string()
    return text
