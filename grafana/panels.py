"""The panels of the dashboards: title, meaning, unit and queries of each."""

from __future__ import annotations

from dataclasses import dataclass, field

from stream.monitoring.drift import RESTLESS

#: Selects the workers that the variables choose.
W = '{job=~"$job", instance=~"$instance"}'
R = "[$__rate_interval]"

SCORED = 'outcome="scored"'
CHOSEN = 'feature=~"$feature"'
CALM = f'feature!~"{"|".join(sorted(RESTLESS))}"'

Steps = list[tuple[str, float | None]]


@dataclass(frozen=True)
class Panel:
    """A panel; ``queries`` are pairs of PromQL and legend."""

    title: str
    text: str
    unit: str
    queries: list[tuple[str, str]]
    kind: str = "timeseries"
    steps: Steps = field(default_factory=list)
    width: int = 12
    height: int = 8
    stacked: bool = False
    logarithmic: bool = False
    runbook: str = ""
    most: float | None = None


def at_least(good: float) -> Steps:
    """Red below ``good``."""
    return [("red", None), ("green", good)]


def at_most(warning: float, bad: float) -> Steps:
    """Orange from ``warning`` on, red from ``bad`` on."""
    return [("green", None), ("orange", warning), ("red", bad)]


def w(metric: str, *labels: str) -> str:
    """Return a selector of a metric of the chosen workers."""
    return f"{metric}{W[:-1]}{''.join(f', {label}' for label in labels)}}}"


def rate(metric: str, *labels: str) -> str:
    """Return a counter's rate."""
    return f"rate({w(metric, *labels)}{R})"


def quantile(share: float, histogram: str, by: str = "le") -> str:
    """Return a quantile of a histogram."""
    return f"histogram_quantile({share}, sum by ({by}) ({rate(histogram + '_bucket')}))"


def mean(histogram: str, by: str) -> str:
    """Return a histogram's mean."""
    return f"sum by ({by}) ({rate(histogram + '_sum')}) / sum by ({by}) ({rate(histogram + '_count')})"


LAG = f"sum(max by (job, partition) ({w('riskstream_lag_records')}))"
MODEL_AGE = f"max(time() - {w('riskstream_model_trained_timestamp_seconds')})"
ALERT_SHARE = f"sum({rate('riskstream_alerts_total')}) / sum({rate('riskstream_transactions_total', SCORED)})"
RECORDS_A_BATCH = (
    f"sum({rate('riskstream_batch_records_sum')}) / sum({rate('riskstream_batch_records_count')})"
)
MOVED = f"count(sum by (feature) (increase({w('riskstream_drift_alarms_total')}[1h])) > 0) or vector(0)"
LEVEL_SHARES = (
    f"sum by (level) ({rate('riskstream_alerts_total')}) "
    f"/ on () group_left () sum({rate('riskstream_alerts_total')})"
)

OVERVIEW = [
    Panel(
        "Workers ready",
        "Workers that process transactions now. A worker that restores its state, or waits for a "
        "rebalance, is not ready.",
        "none",
        [(f"sum({w('riskstream_ready')})", "")],
        "stat",
        at_least(1),
        4,
        4,
        runbook="riskstreamworkerdown",
    ),
    Panel(
        "Alerts firing",
        "RiskStream alert rules firing now; each has a chapter in the runbook.",
        "none",
        [('count(ALERTS{alertstate="firing", alertname=~"RiskStream.*"}) or vector(0)', "")],
        "stat",
        at_most(1, 3),
        4,
        4,
        runbook="runbook",
    ),
    Panel(
        "Throughput",
        "Source records processed per second, all outcomes.",
        "reqps",
        [(f"sum({rate('riskstream_transactions_total')})", "")],
        "stat",
        [],
        4,
        4,
    ),
    Panel(
        "Lag",
        "Source records that no worker has processed yet.",
        "none",
        [(LAG, "")],
        "stat",
        at_most(10_000, 100_000),
        4,
        4,
        runbook="riskstreamlaggrowing",
    ),
    Panel(
        "Produce to alert, p99",
        "The broker acknowledged 99 of 100 alerts within this time of their transaction's "
        "Kafka timestamp. The target is 1 s; the histogram ends at 10 s.",
        "s",
        [(quantile(0.99, "riskstream_alert_latency_seconds"), "")],
        "stat",
        at_most(1, 5),
        4,
        4,
        runbook="riskstreamlatencyhigh",
    ),
    Panel(
        "Alerts in 1 h",
        "Alerts sent in the last hour, all levels.",
        "none",
        [(f"sum(increase({w('riskstream_alerts_total')}[1h]))", "")],
        "stat",
        [],
        4,
        4,
    ),
    Panel(
        "Transactions by outcome",
        "Scored; late: scored outside the allowed lateness; duplicate: id already in the "
        "user's history; rejected: sent to the dead-letter topic.",
        "reqps",
        [(f"sum by (outcome) ({rate('riskstream_transactions_total')})", "{{outcome}}")],
        stacked=True,
    ),
    Panel(
        "Alerts by level",
        "Alerts sent per second.",
        "cps",
        [(f"sum by (level) ({rate('riskstream_alerts_total')})", "{{level}}")],
        stacked=True,
        runbook="riskstreamalertflood",
    ),
    Panel(
        "Time to alert",
        "From the Kafka timestamp, and from the producer's event time, to the acknowledged alert.",
        "s",
        [
            (quantile(0.5, "riskstream_alert_latency_seconds"), "produce to alert, p50"),
            (quantile(0.99, "riskstream_alert_latency_seconds"), "produce to alert, p99"),
            (quantile(0.99, "riskstream_event_to_alert_seconds"), "event to alert, p99"),
        ],
        steps=at_most(1, 5),
        # Hours for the event time of a delayed producer, milliseconds for the Kafka timestamp.
        logarithmic=True,
        runbook="riskstreamlatencyhigh",
    ),
    Panel(
        "Share of alerts",
        "Alerts per scored transaction.",
        "percentunit",
        [(ALERT_SHARE, "alerts")],
        runbook="riskstreamnoalerts",
    ),
    Panel(
        "Dead letters by field",
        "Rejected records, by the invalid field.",
        "cps",
        [(f"sum by (field) ({rate('riskstream_dead_letters_total')})", "{{field}}")],
        stacked=True,
        runbook="riskstreamdeadletters",
    ),
    Panel(
        "Versions in use",
        "More than one version of the model or the program: an upgrade is under way or incomplete.",
        "none",
        [(w("riskstream_model_info"), ""), (w("riskstream_build_info"), "")],
        "table",
    ),
]

STREAM = [
    Panel(
        "Ready",
        "1 while a worker is ready to process transactions.",
        "none",
        [(w("riskstream_ready"), "{{instance}}")],
        steps=at_least(1),
        width=8,
        most=1,
        runbook="riskstreamrecoveryslow",
    ),
    Panel(
        "Partitions",
        "Source partitions assigned to each worker; the sum is the topic's number of partitions.",
        "none",
        [(w("riskstream_assigned_partitions"), "{{instance}}")],
        width=8,
        stacked=True,
    ),
    Panel(
        "Time without progress",
        "How long records have been waiting while the worker processed none. A worker exits "
        "after twice its watchdog's limit.",
        "s",
        [(w("riskstream_stalled_seconds"), "{{instance}}")],
        steps=at_most(10, 60),
        width=8,
        runbook="riskstreamnoprogress",
    ),
    Panel(
        "Lag by partition",
        "Records not yet processed. If a single partition lags, one key has very many transactions.",
        "none",
        [(f"max by (partition) ({w('riskstream_lag_records')})", "{{partition}}")],
        steps=at_most(10_000, 100_000),
        runbook="riskstreamlaggrowing",
    ),
    Panel(
        "Throughput by worker",
        "Records processed per second.",
        "reqps",
        [(f"sum by (instance) ({rate('riskstream_transactions_total')})", "{{instance}}")],
        stacked=True,
    ),
    Panel(
        "Stages, mean",
        "Time of a micro-batch in each stage: decide depends on the CPU, store on the disk, "
        "produce and changelog on the broker.",
        "s",
        [(mean("riskstream_stage_seconds", "stage"), "{{stage}}")],
        stacked=True,
        runbook="riskstreamlatencyhigh",
    ),
    Panel(
        "Stages, p99",
        "The slowest micro-batches by stage.",
        "s",
        [(quantile(0.99, "riskstream_stage_seconds", "stage, le"), "{{stage}}")],
        steps=at_most(1, 5),
        runbook="riskstreamlatencyhigh",
    ),
    Panel(
        "Micro-batch size",
        "Records per micro-batch. The size grows with the load; no timer delays a micro-batch.",
        "none",
        [
            (
                RECORDS_A_BATCH,
                "mean",
            ),
            (quantile(0.99, "riskstream_batch_records"), "p99"),
        ],
        width=8,
    ),
    Panel(
        "Replays and unusual records",
        "Replayed: skipped because the state already includes them. Another source: state of "
        "another incarnation of the topic.",
        "cps",
        [
            (f"sum({rate('riskstream_replayed_records_total')})", "replayed"),
            (f"sum({rate('riskstream_unknown_fields_total')})", "unknown fields"),
            (f"sum({rate('riskstream_other_source_users_total')})", "users of another source"),
        ],
        width=8,
    ),
    Panel(
        "Misplaced records",
        "Transactions on another partition than topics.partitioner chooses for their key: producers with "
        "different partitioners split a user's history.",
        "cps",
        [(f"sum by (instance) ({rate('riskstream_misplaced_records_total')})", "{{instance}}")],
        width=8,
        stacked=True,
        runbook="riskstreamusersplit",
    ),
    Panel(
        "Records skipped, expired or failed",
        "Internal error: an unforeseen exception, the record is in the dead letters. Skipped: on request of "
        "an operator. Expired: deleted by retention before a worker read them.",
        "none",
        [
            (f"sum(increase({w('riskstream_internal_errors_total')}[10m]))", "internal errors"),
            (f"sum(increase({w('riskstream_skipped_records_total')}[10m]))", "skipped"),
            (f"sum(increase({w('riskstream_expired_records_total')}[10m]))", "expired"),
        ],
        runbook="riskstreaminternalerrors",
    ),
    Panel(
        "Records behind open transactions",
        "Records that producers have written and not yet committed, and everything behind them. A number "
        "that stays belongs to a producer that has stopped in the middle of a transaction.",
        "none",
        [(f"max by (partition) ({w('riskstream_open_transaction_records')})", "{{partition}}")],
        runbook="riskstreamopentransaction",
    ),
    Panel(
        "Pending transactions",
        "Transactions waiting for an entity's response (models with entity profiles). The number follows "
        "the load and is 0 when idle.",
        "none",
        [(w("riskstream_pending_transactions"), "{{instance}}")],
        stacked=True,
        runbook="riskstreamentitiessilent",
    ),
    Panel(
        "Entity join",
        "Transactions, entity requests, labels and label updates by outcome (models with entity profiles). "
        "Late: the transaction is too far behind the entity's newest to have a profile.",
        "cps",
        [(f"sum by (kind, outcome) ({rate('riskstream_entity_join_events_total')})", "{{kind}} {{outcome}}")],
        runbook="riskstreamentitiessilent",
    ),
    Panel(
        "Recovery: remaining",
        "Changelog records to restore before a worker is ready.",
        "none",
        [(w("riskstream_recovery_remaining_records"), "{{instance}}")],
        width=8,
        runbook="riskstreamrecoveryslow",
    ),
    Panel(
        "Recovery: restored",
        "Changelog records restored per second.",
        "cps",
        [(f"sum by (instance) ({rate('riskstream_recovered_records_total')})", "{{instance}}")],
        width=8,
        runbook="riskstreamrecoveryslow",
    ),
    Panel(
        "Rebalances in 10 m",
        "Each rebalance pauses the group for some hundred milliseconds.",
        "none",
        [(f"sum by (instance) (increase({w('riskstream_rebalances_total')}[10m]))", "{{instance}}")],
        width=8,
        steps=at_most(3, 10),
        runbook="riskstreamworkerrestarting",
    ),
    Panel(
        "State on disk",
        "Size of the table files, and of the live data in them.",
        "bytes",
        [
            (f"sum by (instance) ({w('riskstream_state_disk_bytes')})", "{{instance}} files"),
            (f"sum by (instance) ({w('riskstream_state_live_bytes')})", "{{instance}} live"),
        ],
        width=8,
    ),
    Panel(
        "Records in the state",
        "Users, and chunks of long histories, as RocksDB estimates them.",
        "short",
        [(w("riskstream_state_records"), "{{instance}}")],
        width=8,
        stacked=True,
    ),
    Panel(
        "RocksDB's memory",
        "The settings bound cache and memtables; indexes lie in the cache.",
        "bytes",
        [(f"sum by (part) ({w('riskstream_rocksdb_memory_bytes')})", "{{part}}")],
        width=8,
        stacked=True,
    ),
    Panel(
        "Memory",
        "Resident memory of each worker.",
        "bytes",
        [(w("riskstream_process_resident_memory_bytes"), "{{instance}}")],
        width=8,
    ),
    Panel(
        "CPU",
        "Cores in use. A worker decides in one thread and uses at most about 1.5 cores.",
        "none",
        [(rate("riskstream_process_cpu_seconds_total"), "{{instance}}")],
        width=8,
        steps=at_most(1, 1.5),
    ),
    Panel(
        "Open files",
        "RocksDB's files and network connections.",
        "none",
        [(w("riskstream_process_open_fds"), "{{instance}}")],
        width=8,
    ),
]

MODEL = [
    Panel(
        "Model age",
        "Time since the training.",
        "s",
        [(MODEL_AGE, "")],
        "stat",
        at_most(60 * 86_400, 90 * 86_400),
        6,
        4,
        runbook="riskstreammodelold",
    ),
    Panel(
        "Share of alerts",
        "Alerts per scored transaction.",
        "percentunit",
        [(ALERT_SHARE, "")],
        "stat",
        [],
        6,
        4,
        runbook="riskstreamnoalerts",
    ),
    Panel(
        "PSI of the score",
        "Population stability index of the last full window against training. Below 0.1: no change; above "
        "0.25: a large change.",
        "none",
        [('max(riskstream_drift_psi{job=~"$job", instance=~"$instance", feature="score"})', "")],
        "stat",
        at_most(0.1, 0.25),
        6,
        4,
        runbook="riskstreamdrift",
    ),
    Panel(
        "Drifted features in 1 h",
        "Features with an alarm from PSI, ADWIN or Page-Hinkley.",
        "none",
        [
            (
                MOVED,
                "",
            )
        ],
        "stat",
        at_most(1, 5),
        6,
        4,
        runbook="riskstreamdrift",
    ),
    Panel(
        "Score distribution",
        "Scored transactions by score.",
        "none",
        [(f"sum by (le) (increase({w('riskstream_score_bucket')}{R}))", "{{le}}")],
        "heatmap",
    ),
    Panel(
        "Scores",
        "Quantiles of the score.",
        "none",
        [(quantile(share, "riskstream_score"), f"p{100 * share:g}") for share in (0.5, 0.95, 0.99)],
        most=1,
    ),
    Panel(
        "PSI by feature",
        "Index of the last full window, for the ten features with the highest index. Hours, days and "
        "ages, which always drift, are excluded.",
        "none",
        [(f"topk(10, max by (feature) ({w('riskstream_drift_psi', CHOSEN, CALM)}))", "{{feature}}")],
        steps=at_most(0.1, 0.25),
        runbook="riskstreamdrift",
    ),
    Panel(
        "Drift alarms",
        "Alarms by feature and method.",
        "none",
        [
            (
                f"sum by (feature, method) (increase({w('riskstream_drift_alarms_total', CHOSEN)}[1h]))",
                "{{feature}} {{method}}",
            )
        ],
        stacked=True,
        runbook="riskstreamdrift",
    ),
    Panel(
        "Windows compared",
        "PSI windows compared in the last hour. At 0, the PSI values are outdated.",
        "none",
        [(f"sum(increase({w('riskstream_drift_windows_total')}[1h]))", "windows")],
    ),
    Panel(
        "Alerts by level",
        "Share of each level.",
        "percentunit",
        [
            (
                LEVEL_SHARES,
                "{{level}}",
            )
        ],
        stacked=True,
        most=1,
    ),
    Panel(
        "Models in use",
        "Models by worker. Two versions: a roll-out or roll-back is under way.",
        "none",
        [(w("riskstream_model_info"), "")],
        "table",
        width=24,
        height=4,
    ),
]
