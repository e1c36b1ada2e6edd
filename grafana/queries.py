"""What the panels of the dashboards are made of: their type, and PromQL by the variables of a dashboard."""

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
