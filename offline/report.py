"""A training run as one self-contained HTML page, for who has to answer for the model.

The page needs nothing from anywhere: its pictures are drawings inside it, it runs no script. All figures are
of the test part, which decided nothing, unless a caption says otherwise.
"""

from __future__ import annotations

import html
import io
from typing import TYPE_CHECKING, Any, Final

import lightgbm
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from stream.events import format_event_time
from stream.scoring.reasons import Explainer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt
    from matplotlib.axes import Axes

    from offline.table import TransactionTable
    from offline.train import TrainingResult

__all__ = ["model_card", "render_report"]

_BINS: Final = 10
_TOP: Final = 15
_EXPLAINED_ROWS: Final = 1_000
_DECISIONS: Final = 3
_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd;"
    "text-align:right}td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}"
    "figure{margin:1rem 0}figcaption{color:#555}"
)


def render_report(table: TransactionTable, result: TrainingResult) -> str:
    """Return the page of a training run.

    The table is the one that ``result`` was trained on.
    """
    bundle, split = result.bundle, result.split
    names = bundle.spec.names
    test = result.matrix[split.test]
    truth = np.asarray(table.is_fraud)[split.test] == 1
    booster = lightgbm.Booster(model_str=bundle.model_text)
    scores = np.asarray(booster.predict(test, num_threads=1), np.float64)
    some = np.random.default_rng(0).permutation(len(test))[:_EXPLAINED_ROWS]
    shown = np.sort(some)
    moved = np.asarray(booster.predict(test[shown], pred_contrib=True, num_threads=1), np.float64)
    strength = np.abs(moved[:, :-1]).mean(axis=0)
    top = np.argsort(-strength, kind="stable")[:_TOP]
    highest = np.argsort(-scores, kind="stable")[:_DECISIONS]
    explained = np.asarray(booster.predict(test[highest], pred_contrib=True, num_threads=1), np.float64)
    explainer = Explainer(bundle.spec, 5)
    parts = [
        f"<h1>Model {_text(bundle.model_version)}</h1>",
        "<p>All figures are of the test part, which decided nothing, unless a caption says otherwise.</p>",
        _section("Data and protocol", _parts_table(bundle.training), _protocol(bundle.training)),
        _section("Figures", _metrics_table(bundle.metrics)),
        _section(
            "Curves",
            _figure("Receiver operating characteristic", lambda axes: _draw_roc(axes, truth, scores)),
            _figure("Precision and recall", lambda axes: _draw_precision(axes, truth, scores)),
            _figure(
                "Calibration: frauds among rows of a score, by tenths of the rows; "
                "both axes logarithmic, the line is where they are the same",
                lambda axes: _draw_calibration(axes, truth, scores),
            ),
            _figure(
                "Alert budget: frauds found by the number of transactions looked at in a day, highest first",
                lambda axes: _draw_budget(axes, truth, scores, table.event_time_ms[split.test]),
            ),
        ),
        _section(
            "What the model goes by",
            _figure(
                f"Mean absolute SHAP value (log-odds) over {len(shown):,} rows drawn at random",
                lambda axes: _draw_bars(axes, [names[place] for place in top], strength[top]),
                height=5.0,
            ),
            *(_dependence(names[place], test[shown, place], moved[:, place]) for place in top[:4].tolist()),
        ),
        _section(
            "Single decisions",
            *(
                _decision(
                    table, int(np.flatnonzero(split.test)[row]), float(scores[row]), test[row], shap, names
                )
                + _sentences(explainer.reasons(test[row], shap))
                for row, shap in zip(highest.tolist(), explained, strict=True)
            ),
        ),
        _section("Drift of the test part against validation", _drift_table(bundle.reference, names, test)),
        _section("Limits", _limits(bundle.training)),
    ]
    title = f"RiskStream model {_text(bundle.model_version)}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
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
            f"On the test part, scored once: AUC {_number(metrics['auc'])}, average precision "
            f"{_number(metrics['average_precision'])}; at the threshold {metrics['threshold']:.4f}, chosen "
            f"on validation: precision {metrics['precision']:.3f}, recall {metrics['recall']:.3f}."
        ),
        "",
        "Goes by, most first: " + ", ".join(name for name, gain in result.gains[:8] if gain > 0) + ".",
        "",
        "Limits: " + _LIMITS,
        "",
    ]
    return "\n".join(lines)


_LIMITS: Final = (
    "the figures are of one stretch of one file; labels that came late or never are not in them; the score "
    "is not calibrated beyond what the trees give; a fraud of a new kind is not known to the model until "
    "labels of it have come and it is trained anew."
)


def _text(value: object) -> str:
    return html.escape(str(value))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _section(title: str, *parts: str) -> str:
    return f"<h2>{_text(title)}</h2>{''.join(parts)}"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _figure(caption: str, draw: Callable[[Axes], None], *, height: float = 3.4) -> str:
    """Return a drawing as SVG inside the page; the same drawing gives the same bytes."""
    with mpl.rc_context({"svg.hashsalt": "riskstream", "font.size": 9}):
        figure = Figure(figsize=(7.0, height), layout="constrained")
        draw(figure.add_subplot())
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    drawing = stream.getvalue()
    return f"<figure>{drawing[drawing.index('<svg') :]}<figcaption>{_text(caption)}</figcaption></figure>"


def _parts_table(training: dict[str, Any]) -> str:
    rows = [
        (name, f"{part['rows']:,}", f"{part['frauds']:,}", part["first"][:16], part["last"][:16])
        for name, part in ((name, training[name]) for name in ("train", "validation", "test"))
    ]
    return _table(("part", "rows", "frauds", "from", "to"), rows)


def _protocol(training: dict[str, Any]) -> str:
    days = training["label_delay_ms"] / 86_400_000
    return (
        "<p>The parts follow each other in time, with a gap of the label delay "
        f"({days:g} days) before the later two. Trees stop and the threshold is chosen on validation. "
        f"Class imbalance: {_text(training['imbalance'])}. Of the file's {training['rows']:,} rows "
        f"{training['invalid_rows']:,} make no valid transaction.</p>"
    )


def _metrics_table(metrics: dict[str, Any]) -> str:
    names = ("auc", "average_precision", "precision", "recall", "f1", "threshold")
    rows: list[Sequence[object]] = [
        (name.replace("_", " "), *(_number(metrics[part][name]) for part in ("validation", "test")))
        for name in names
    ]
    rows += [
        (
            name.replace("_", " "),
            *(f"{metrics[part]['confusion'][name]:,}" for part in ("validation", "test")),
        )
        for name in ("true_positive", "false_positive", "false_negative", "true_negative")
    ]
    return _table(("", "validation", "test"), rows)


def _draw_roc(axes: Axes, truth: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64]) -> None:
    x, y, _ = roc_curve(truth, scores)
    axes.plot(x, y)
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    axes.set(xlabel="false-positive rate", ylabel="recall")


def _draw_precision(axes: Axes, truth: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64]) -> None:
    precision, recall, _ = precision_recall_curve(truth, scores, drop_intermediate=True)
    axes.plot(recall, precision)
    axes.axhline(truth.mean(), color="0.7", linewidth=0.8)
    axes.set(xlabel="recall", ylabel="precision", ylim=(0, 1.02))


def _draw_calibration(axes: Axes, truth: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64]) -> None:
    order = np.argsort(scores, kind="stable")
    parts = np.array_split(order, min(_BINS, len(order)))
    said = [float(scores[part].mean()) for part in parts]
    axes.plot(said, [float(truth[part].mean()) for part in parts], marker="o")
    axes.plot([min(said), 1], [min(said), 1], color="0.7", linewidth=0.8)
    axes.set(xlabel="mean score", ylabel="share of frauds", xscale="log")
    axes.set_yscale("symlog", linthresh=1e-3)


def _draw_budget(
    axes: Axes,
    truth: npt.NDArray[np.bool_],
    scores: npt.NDArray[np.float64],
    times_ms: npt.NDArray[np.int64],
) -> None:
    days = max(1.0, float(times_ms.max() - times_ms.min()) / 86_400_000)
    found = np.cumsum(truth[np.argsort(-scores, kind="stable")]) / truth.sum()
    looked_at = np.arange(1, len(found) + 1) / days
    upto = max(10, int(np.searchsorted(found, 0.99)) + 1)
    axes.plot(looked_at[:upto], found[:upto])
    axes.set(xlabel="transactions looked at a day", ylabel="frauds found", ylim=(0, 1.02))


def _draw_bars(axes: Axes, names: Sequence[str], values: npt.NDArray[np.float64]) -> None:
    axes.barh(list(names)[::-1], values[::-1])


def _dependence(name: str, values: npt.NDArray[np.float64], moved: npt.NDArray[np.float64]) -> str:
    def draw(axes: Axes) -> None:
        axes.scatter(values, moved, s=3, alpha=0.4)
        axes.set(xlabel="value", ylabel="SHAP value (log-odds)")

    return _figure(f"Dependence on {name}", draw)


def _decision(
    table: TransactionTable,
    row: int,
    score: float,
    values: npt.NDArray[np.float64],
    moved: npt.NDArray[np.float64],
    names: Sequence[str],
) -> str:
    """Return a waterfall: how far the strongest features moved the log-odds from the expectation."""
    order = np.argsort(-np.abs(moved[:-1]), kind="stable")[:8]
    rest = float(moved[:-1].sum() - moved[order].sum())
    steps = [("expectation", float(moved[-1])), ("all others", rest)]
    steps += [
        (f"{names[place]} = {values[place]:.6g}", float(moved[place])) for place in order[::-1].tolist()
    ]

    def draw(axes: Axes) -> None:
        at = 0.0
        for place, (_, step) in enumerate(steps):
            axes.barh(place, step, left=at, color="tab:red" if step > 0 else "tab:blue")
            at += step
        axes.set_yticks(range(len(steps)), [name for name, _ in steps])
        axes.set(xlabel="log-odds")

    label = {1: "fraud", 0: "legitimate"}[int(np.asarray(table.is_fraud)[row])]
    when = format_event_time(int(table.event_time_ms[row]))[:19]
    return _figure(
        f"Transaction {table.transaction_id[row]} at {when}: score {score:.4f}; it was {label}",
        draw,
        height=3.0,
    )


def _sentences(reasons: Sequence[dict[str, Any]]) -> str:
    return "<ul>" + "".join(f"<li>{_text(reason['sentence'])}</li>" for reason in reasons) + "</ul>"


def _drift_table(reference: dict[str, Any], names: Sequence[str], test: npt.NDArray[np.float64]) -> str:
    found = [
        (name, stability_index(reference["features"][name], test[:, place]))
        for place, name in enumerate(names)
    ]
    found.sort(key=lambda item: (-item[1], item[0]))
    rows = [(name, f"{value:.3f}") for name, value in found[:_TOP]]
    return (
        "<p>Population stability index, largest first; above 0.2 is commonly taken as a shift that wants a "
        "look.</p>" + _table(("feature", "index"), rows)
    )


def stability_index(distribution: dict[str, Any], values: npt.NDArray[np.float64]) -> float:
    """Return the population stability index of values against one of the reference's distributions.

    Half an observation is added to each bin, so that none is empty; what is missing is a bin of its own.
    """
    known = values[np.isfinite(values)]
    if distribution["kind"] == "numeric":
        bins = len(distribution["shares"])
        counts = np.bincount(np.searchsorted(distribution["edges"], known, side="left"), minlength=bins)
        shares = [*distribution["shares"]]
    else:
        counts = np.array([*((known == code).sum() for code in distribution["codes"]), 0])
        counts[-1] = len(known) - counts.sum()
        shares = [*distribution["shares"], 0.0]
    missing = float(distribution["missing"])
    expected = np.append(np.asarray(shares) * (1 - missing), missing)
    actual = np.append(counts, len(values) - len(known)) / max(1, len(values))
    floor = 0.5 / max(1, len(values))
    expected, actual = expected + floor, actual + floor
    expected, actual = expected / expected.sum(), actual / actual.sum()
    return float(((actual - expected) * np.log(actual / expected)).sum())


def _limits(training: dict[str, Any]) -> str:
    return f"<p>{_text(_LIMITS.capitalize())} Versions: {_text(training['versions'])}.</p>"
