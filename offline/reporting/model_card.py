"""The model card: purpose, data, quality and limits of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from offline.training.train import TrainingResult

__all__ = ["LIMITS", "figure_text", "model_card"]


LIMITS: Final = (
    "the metrics describe one period of one file; labels that arrived late or never are "
    "not included; the score is only as well calibrated as the trees make it; the model "
    "does not know a new kind of fraud until labels of it have arrived and you retrain "
    "the model."
)


def model_card(result: TrainingResult) -> str:
    """Return the model's card in Markdown, to lie beside it in the bundle's folder."""
    bundle = result.bundle
    training, metrics = bundle.training, bundle.metrics["test"]
    lines = [
        f"# Model {bundle.model_version}",
        "",
        (
            "**Intended use**: to give each transaction in RiskStream a probability of fraud, "
            "and each alert its reasons."
        ),
        "**Out of scope**: decisions about a person without human review; data unlike the training data.",
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
            f"{figure_text(metrics['average_precision'])}; at the threshold "
            f"{metrics['threshold']:.4f}, chosen on validation: precision "
            f"{metrics['precision']:.3f}, recall {metrics['recall']:.3f}."
        ),
        "",
        "Most important features, highest first: "
        + ", ".join(name for name, gain in result.gains[:8] if gain > 0)
        + ".",
        "",
        "Limits: " + LIMITS,
        "",
    ]
    return "\n".join(lines)


def figure_text(value: float | None) -> str:
    """Return a figure as text; None is a missing figure."""
    return "-" if value is None else f"{value:.4f}"
