"""A test week decided by a worker, compared with the same week offline.

    python -m benchmarks.stream_week --data FILE --dataset handbook
    python -m benchmarks.stream_week --seed 11

Trains the model of ``riskstream evaluate`` for its first week, starts a worker with it on Apache Kafka with
one partition, and sends the worker the file up to the end of that week, in the file's order, and each
transaction's label soon after its decision; an early label does not count before its time. The benchmark
compares every feature and every score of every decision with the values computed offline, then evaluates the
week by the stream's own scores. ``--seed`` simulates a world by the process of the Handbook, see
:mod:`benchmarks.card_worlds`.

Memory holds the file and its features, as in ``evaluate``, and a day or two of records; decisions are deleted
from the broker once read. The broker's other topics and the state take some gigabytes of the folder for
temporary files.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from benchmarks.card_worlds import World, draw
from benchmarks.cluster import running
from benchmarks.contest import worker
from benchmarks.environment import describe, environment
from benchmarks.report import Table, text
from offline.data.readers import read_transactions
from offline.evaluation.prequential import Protocol, first_week, fold_metrics, weekly_features
from offline.features.build import LATE, SCORED
from offline.replay import label_record
from offline.training.recipes import CARDS
from stream.cli.output import progress_bar
from stream.cli.signals import raise_on_sigterm
from stream.errors import RiskStreamError
from stream.events.fields import MS_PER_DAY
from stream.events.models import Outcome
from stream.features.profiles.spec import ENTITIES
from stream.kafka.admin import create_topics
from stream.scoring.bundle import Bundle
from stream.settings import DecisionSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from benchmarks.cluster import Cluster
    from benchmarks.contest import Child
    from offline.data.table import TransactionTable
    from offline.evaluation.prequential import Fold
    from offline.features.build import FeatureTable
    from offline.training.recipes import Recipe
    from stream.features.spec import FeatureSpec
    from stream.settings import Settings

__all__ = ["Differences", "Learnt", "Replayed", "learn", "replay", "up_to_week"]

_WEEK_MS: Final = 7 * MS_PER_DAY
_FIRST_WEEK: Final = "2018-08-08"
#: Parts of the label delay that are sent as one. A label is sent once its part is decided and has arrived
#: before the third part behind its own is sent: long before it can count.
_BLOCKS_A_DELAY: Final = 4
_READ: Final = 1_000
_PATIENCE_SECONDS: Final = 180.0
_OUTCOMES: Final = {SCORED: Outcome.SCORED.value, LATE: Outcome.LATE.value}


@dataclass(frozen=True, slots=True)
class Learnt:
    """A week's model, and what it is asked about.

    Attributes
    ----------
    features:
        Of every row, and ``scores`` too: float64[n], NaN where a row has no features.
    """

    table: TransactionTable
    protocol: Protocol
    fold: Fold
    spec: FeatureSpec
    features: FeatureTable
    scores: npt.NDArray[np.float64]
    model: str

    def bundle(self) -> Bundle:
        """Return the model as a worker takes it."""
        return Bundle(
            self.model,
            f"cards-{self.fold.week}",
            self.spec,
            allowed_lateness_ms=self.protocol.allowed_lateness_ms,
        )


@dataclass(slots=True)
class Differences:
    """How many transactions were compared, and how many decided otherwise than offline.

    Attributes
    ----------
    by_feature:
        Transactions by the feature that differs.
    """

    transactions: int = 0
    outcomes: int = 0
    features: int = 0
    scores: int = 0
    by_feature: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What the stream made of a file.

    Attributes
    ----------
    week, before:
        The test week, and all that was sent before it.
    scores:
        float64[n], with four decimals as decisions have them; NaN where there is none.
    """

    week: Differences
    before: Differences
    scores: npt.NDArray[np.float64]
    seconds: float


def up_to_week(table: TransactionTable, protocol: Protocol, days: int | None = None) -> TransactionTable:
    """Return a file up to the end of the test week, from so many days before the week on."""
    wanted = table.event_time_ms < protocol.first_week_ms + _WEEK_MS
    if days is not None:
        wanted &= table.event_time_ms >= protocol.first_week_ms - days * MS_PER_DAY
    return table.take(wanted & table.valid)


def learn(
    table: TransactionTable,
    recipe: Recipe,
    protocol: Protocol,
    *,
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Learnt:
    """Return what ``riskstream evaluate`` learns for the first week."""
    spec, built = weekly_features(table, recipe, protocol, progress=progress)
    fold, booster = first_week(table, recipe, protocol, (spec, built), threads=threads)
    scores = np.full(len(table), np.nan)
    rows = built.outcome <= LATE
    scores[rows] = booster.predict(built.matrix[rows], num_threads=threads)
    return Learnt(table, protocol, fold, spec, built, scores, booster.model_to_string())


class _Comparison:
    """Reads decisions and compares each with what was computed offline."""

    def __init__(self, cluster: Cluster, topic: str, learnt: Learnt) -> None:
        self._learnt = learnt
        self._topic = topic
        self._names = learnt.spec.names
        self._start_ms = learnt.protocol.first_week_ms
        self._seen = np.zeros(len(learnt.table), np.bool_)
        self._kept = 0
        self.decided = 0
        self.week, self.before = Differences(), Differences()
        self.scores = np.full(len(learnt.table), np.nan)
        self._admin = AdminClient({"bootstrap.servers": cluster.address})
        self._consumer = Consumer(
            {
                "bootstrap.servers": cluster.address,
                "group.id": "stream-week",
                "enable.auto.commit": False,
                # Decisions with all their features are large; so much of them is fetched ahead.
                "queued.max.messages.kbytes": 65_536,
            }
        )
        self._consumer.assign([TopicPartition(topic, 0, 0)])

    def close(self) -> None:
        self._consumer.close()

    def read(self, seconds: float) -> int:
        """Take what has come, waiting so long for the first; returns up to which row all are decided."""
        for message in self._consumer.consume(_READ, seconds):
            if message.error() is not None:
                raise RiskStreamError(f"decisions cannot be read: {message.error()}")
            self._take(orjson.loads(message.value()))
        while self.decided < len(self._seen) and self._seen[self.decided]:
            self.decided += 1
        return self.decided

    def forget(self) -> None:
        """Delete from the broker what has been read."""
        (index,) = self._consumer.position([TopicPartition(self._topic, 0)])
        if index.offset > self._kept:
            self._kept = index.offset
            for done in self._admin.delete_records([index]).values():
                done.result(60)

    def _take(self, decision: dict[str, Any]) -> None:
        row, learnt = decision["source_offset"], self._learnt
        if decision["transaction_id"] != learnt.table.transaction_id[row]:
            raise RiskStreamError(f"the topic's record {row} is not the file's row {row}")
        if self._seen[row]:
            return  # delivered again, the same to the byte
        self._seen[row] = True
        found = self.week if learnt.table.event_time_ms[row] >= self._start_ms else self.before
        found.transactions += 1
        expected = _OUTCOMES.get(int(learnt.features.outcome[row]), Outcome.DUPLICATE.value)
        if decision["outcome"] != expected:
            found.outcomes += 1
            return
        if "features" not in decision:
            return
        self.scores[row] = decision["risk_score"]
        found.scores += decision["risk_score"] != round(float(learnt.scores[row]), 4)
        values = np.array(list(decision["features"].values()), np.float64)
        offline = learnt.features.matrix[row]
        other = ~((values == offline) | (np.isnan(values) & np.isnan(offline)))
        if other.any():
            found.features += 1
            found.by_feature.update(self._names[index] for index in np.flatnonzero(other).tolist())


def replay(
    cluster: Cluster,
    learnt: Learnt,
    folder: Path,
    *,
    progress: Callable[[int], None] | None = None,
) -> Replayed:
    """Send the file through a worker and compare its decisions.

    Parameters
    ----------
    progress
        Called with the number of transactions decided since its last call.

    Raises
    ------
    RiskStreamError
        The worker ended, or there was no progress for three minutes.
    """
    learnt.bundle().save(folder / "bundle")
    settings = cluster.settings(folder, folder / "bundle", f"transactions-{time.monotonic_ns()}")
    settings = settings.model_copy(
        update={
            "topics": settings.topics.model_copy(update={"partitions": 1}),
            "decisions": DecisionSettings(features=True),
        }
    )
    create_topics(settings)
    comparison = _Comparison(cluster, settings.topics.decisions, learnt)
    try:
        with worker(settings, folder / "worker.log") as child:
            child.wait_ready()
            begun = time.monotonic()
            _send(cluster, settings, learnt, child, comparison, progress)
            seconds = time.monotonic() - begun
    finally:
        comparison.close()
    return Replayed(comparison.week, comparison.before, comparison.scores, seconds)


def _send(
    cluster: Cluster,
    settings: Settings,
    learnt: Learnt,
    child: Child,
    comparison: _Comparison,
    progress: Callable[[int], None] | None,
) -> None:
    table = learnt.table
    producer = Producer(
        {
            "bootstrap.servers": cluster.address,
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": 5,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    labels = table.labels()
    labels = labels.only(np.argsort(labels.row, kind="stable"))
    notes = _notes(learnt)
    told = told_notes = begin = 0
    for end in _blocks(table.event_time_ms, learnt.protocol.label_delay_ms // _BLOCKS_A_DELAY):
        for key, value in table.to_records(np.arange(begin, end)):
            producer.produce(settings.topics.transactions, value, key, partition=0)
        _flush(producer)
        # While this block is decided, the labels of the one before it are sent, whose own predecessor's have
        # arrived by then.
        _settle(child, comparison, (begin, told, told_notes), progress)
        comparison.forget()
        until = int(np.searchsorted(labels.row, begin))
        for index in range(told, until):
            record = label_record(table, labels, index, settings.topics.labels)
            producer.produce(record.topic, record.value, record.key, partition=0)
        _flush(producer)
        told_notes += int(notes[labels.row[told:until]].sum())
        begin, told = end, until
    _settle(child, comparison, (len(table), told, told_notes), progress)


def _flush(producer: Producer) -> None:
    if producer.flush(_PATIENCE_SECONDS):
        raise RiskStreamError("the broker has not taken every record")


def _settle(
    child: Child,
    comparison: _Comparison,
    wanted: tuple[int, int, int],
    progress: Callable[[int], None] | None,
) -> None:
    """Return once so many rows are decided, so many labels have left and their notes have arrived."""
    rows, labels, notes = wanted
    before = comparison.decided
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        decided = comparison.read(0.05)
        if decided > before:
            deadline = time.monotonic() + _PATIENCE_SECONDS
            if progress is not None:
                progress(decided - before)
            before = decided
        if decided >= rows and _arrived(child, labels, notes):
            return
        child.check()
        if time.monotonic() > deadline:
            raise RiskStreamError(
                f"no progress for {_PATIENCE_SECONDS:.0f} s at row {decided:,}; {child.log}"
            )


def _arrived(child: Child, labels: int, notes: int) -> bool:
    events = child.metrics("riskstream_entity_join_events_total")

    def count(kind: str, *outcomes: str) -> float:
        return sum(events.get(f'kind="{kind}",outcome="{outcome}"', 0.0) for outcome in outcomes)

    told = count("label", "announced", "expired") >= labels
    return told and count("label_update", "applied", "already_applied", "unknown", "expired") >= notes


def _notes(learnt: Learnt) -> npt.NDArray[np.int64]:
    """Return how many entities each row's label is told to: int64[n]."""
    table = learnt.table
    notes = np.zeros(len(table), np.int64)
    for entity in {profile.entity for profile in learnt.spec.entities if profile.label_windows_days}:
        names = getattr(table, ENTITIES[entity])
        if names is not None:
            notes += np.array([name is not None for name in names.tolist()], np.int64)
    return notes


def _blocks(times_ms: npt.NDArray[np.int64], length_ms: int) -> list[int]:
    """Return the ends of runs of rows within which the clock, the latest time so far, stays in one block."""
    clock = np.maximum.accumulate(times_ms) // length_ms
    return [*(np.flatnonzero(np.diff(clock)) + 1).tolist(), len(times_ms)]


def figures(learnt: Learnt, scores: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Return the week's figures by scores of every row."""
    return fold_metrics(learnt.table, learnt.fold, scores[learnt.fold.test])


def _shown(replayed: Replayed, judged: dict[str, dict[str, Any]]) -> list[Table]:
    compared = [
        (
            name,
            f"{item.transactions:,}",
            *(f"{count:,}" for count in (item.outcomes, item.features, item.scores)),
        )
        for name, item in (("the test week", replayed.week), ("the weeks before it", replayed.before))
    ]
    head = ("", "AUC", "average precision", "card precision@100")
    names = ("auc", "average_precision", "card_precision_100")
    rows = [(name, *(f"{item[key]:.4f}" for key in names)) for name, item in judged.items()]
    whole, alone = judged["offline, as in evaluate"], judged["offline, user-only"]
    rows.append(("gain from entities", *(f"{whole[key] - alone[key]:+.4f}" for key in names)))
    return [
        Table(
            "Differences between the worker and offline",
            ("", "transactions", "outcomes", "features", "scores"),
            compared,
        ),
        Table("Metrics of the test week", head, rows),
    ]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _run(options: argparse.Namespace, folder: Path) -> None:
    around = environment()
    day = datetime.fromisoformat(options.first_test_week).replace(tzinfo=UTC)
    protocol = Protocol(round(day.timestamp() * 1000), 1)
    if options.data is not None:
        table = read_transactions(options.data, dataset=options.dataset)
    else:
        table, _ = draw(World(options.seed, options.customers, 2 * options.customers))
    table = up_to_week(table, protocol, options.days)
    alone_recipe = replace(CARDS, name="user-only", entities=())
    with progress_bar("User-only features", len(table)) as advance:
        alone = learn(table, alone_recipe, protocol, threads=options.threads, progress=advance)
    judged_alone = figures(alone, alone.scores)
    del alone
    with progress_bar("Features", len(table)) as advance:
        learnt = learn(table, CARDS, protocol, threads=options.threads, progress=advance)
    _say(f"trained for {learnt.fold.week}; {len(table):,} transactions to replay")
    with running("kafka", folder / "broker") as cluster, progress_bar("Decided", len(table)) as advance:
        replayed = replay(cluster, learnt, folder, progress=advance)
    judged = {
        "by the stream's own scores": figures(learnt, replayed.scores),
        "offline, as in evaluate": figures(learnt, learnt.scores),
        "offline, user-only": judged_alone,
    }
    print("\n".join(describe(around)))
    print(
        f"week      {learnt.fold.week}, {int(learnt.fold.test.sum()):,} transactions evaluated; "
        f"{len(table):,} replayed in {replayed.seconds:,.0f} s ({len(table) / replayed.seconds:,.0f}/s)"
    )
    for table_shown in _shown(replayed, judged):
        print(text(table_shown))
    for name, item in (("week", replayed.week), ("before", replayed.before)):
        if item.by_feature:
            print(f"\nfeatures that differ, {name}: {dict(item.by_feature.most_common())}")
    if options.json is not None:
        found = {
            "environment": around,
            "differences": {
                name: {
                    "transactions": item.transactions,
                    "outcomes": item.outcomes,
                    "features": item.features,
                    "scores": item.scores,
                    "by_feature": dict(item.by_feature),
                }
                for name, item in (("week", replayed.week), ("before", replayed.before))
            },
            "figures": judged,
            "seconds": replayed.seconds,
        }
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Train, replay, compare, and print tables; ends with status 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="labelled transactions")
    source.add_argument("--seed", type=int, help="simulate a world from this seed instead")
    parser.add_argument("--dataset", help="shipped mapping for --data: handbook")
    parser.add_argument("--customers", type=int, default=5_000, help="customers of a simulated world (5000)")
    parser.add_argument(
        "--first-test-week", default=_FIRST_WEEK, help=f"first day of the test week ({_FIRST_WEEK})"
    )
    parser.add_argument("--days", type=int, help="days of history before the week; all by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write all results to this JSON file")
    options = parser.parse_args()
    raise_on_sigterm()
    try:
        with tempfile.TemporaryDirectory(prefix="riskstream-week-") as folder:
            _run(options, Path(folder))
    except RiskStreamError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
