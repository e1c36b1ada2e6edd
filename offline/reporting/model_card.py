"""The model card: purpose, data, quality and limits of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from offline.training.train import TrainingResult

__all__ = ["LIMITS", "figure_text", "model_card"]


LIMITS: Final = (
    "the figures are of one stretch of one file; labels that came late or never are not in them; the score "
    "is not calibrated beyond what the trees give; a fraud of a new kind is not known to the model until "
    "labels of it have come and it is trained anew."
)


def model_card(result: TrainingResult) -> str:
    """Return the model's card in Markdown, to lie beside it in the bundle's folder."""
    bundle = result.bundle
    training, metrics = bundle.training, bundle.metrics["test"]
    lines = [
        f"# Model {bundle.model_version}",
        "",
        "**For**: giving each transaction a probability of fraud in RiskStream, and the reasons of an alert.",
        "**Not for**: deciding alone about a person; data of another kind than it was trained on.",
        "",
        (
            f"Gradient boosted trees (LightGBM {training['versions']['lightgbm']}), {training['trees']} "
            f"trees of at most {training['leaves']} leaves over {len(bundle.spec.names)} features, seed "
            f"{training['seed']}, trained {training['trained_at']}."
        ),
        "",
        "| part | rows | frauds | from | to |",
        "|---|---:|---:|---|---|",
        *(
            f"| {name} | {training[name]['rows']:,} | {training[name]['frauds']:,} | "
            f"{training[name]['first'][:16]} | {training[name]['last'][:16]} |"
            for name in ("train", "validation", "test")
        ),
        "",
        (
            f"On the test part, scored once: AUC {figure_text(metrics['auc'])}, average precision "
            f"{figure_text(metrics['average_precision'])}; at the threshold {metrics['threshold']:.4f}, "
            f"chosen on validation: precision {metrics['precision']:.3f}, recall {metrics['recall']:.3f}."
        ),
        "",
        "Goes by, most first: " + ", ".join(name for name, gain in result.gains[:8] if gain > 0) + ".",
        "",
        "Limits: " + LIMITS,
        "",
    ]
    return "\n".join(lines)


def figure_text(value: float | None) -> str:
    """Return a figure as text; None is a missing figure."""
    return "-" if value is None else f"{value:.4f}"
