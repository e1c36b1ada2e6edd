"""A training run as a self-contained HTML page, for the person who has to answer for the model.

The page loads nothing: its pictures are drawings inside it, and it runs no script. All figures are of the
test part, which decided nothing, unless a caption names another part.
"""

from __future__ import annotations

import html
import io
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import lightgbm
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from offline.data.quality import check_quality
from offline.metrics import binary_metrics
from offline.reporting.model_card import LIMITS, figure_text
from stream.decisions.reasons import Explainer
from stream.events.fields import MS_PER_DAY, format_event_time

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt
    from matplotlib.axes import Axes

    from offline.data.table import TransactionTable
    from offline.training.train import TrainingResult

__all__ = ["render_report", "stability_index"]


_BINS: Final = 10
_TOP: Final = 15
_EXPLAINED_ROWS: Final = 1_000
_WATERFALL: Final = 9
_WEEK_MS: Final = 7 * MS_PER_DAY
_COLUMN_FACTS: Final = ("missing", "least", "median", "most", "distinct")

_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd;"
    "text-align:right}td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}"
    "figure{margin:1rem 0}figcaption{color:#555}"
)


def render_report(
    table: TransactionTable, result: TrainingResult, *, tuning: dict[str, Any] | None = None
) -> str:
    """Return the page of a training run.

    Parameters
    ----------
    table
        The table that ``result`` was trained on.
    tuning
        The result of ``riskstream tune``, if the parameters come from it.
    """
    bundle, split = result.bundle, result.split
    names = bundle.spec.names
    test = result.matrix[split.test]
    truth = np.asarray(table.is_fraud)[split.test] == 1
    booster = lightgbm.Booster(model_str=bundle.model_text)
    scores = np.asarray(booster.predict(test, num_threads=1), np.float64)
    times = table.event_time_ms[split.test]
    parts = [
        f"<h1>Model {_text(bundle.model_version)}</h1>",
        (
            "<p>All metrics refer to the test part, which influenced no choice, unless a caption "
            "says otherwise.</p>"
        ),
        _section(
            "Data",
            _quality(check_quality(table, allowed_lateness_ms=bundle.allowed_lateness_ms or 0)),
        ),
        _section("Protocol", _parts_table(bundle.training), _protocol(bundle.training)),
        _section(
            "Figures",
            _metrics_table(bundle.metrics),
            "<p>The same model and threshold, week by week of the test part:</p>",
            _weeks_table(truth, scores, times, bundle.thresholds.prediction),
        ),
        _section(
            "Curves",
            _figure("Receiver operating characteristic", lambda axes: _draw_roc(axes, truth, scores)),
            _figure("Precision and recall", lambda axes: _draw_precision(axes, truth, scores)),
            _figure(
                "Calibration: share of frauds by score, in ten groups of equally many rows; both "
                "axes are logarithmic, and on the line both are equal",
                lambda axes: _draw_calibration(axes, truth, scores),
            ),
            _figure(
                (
                    "Alert budget: frauds found by the number of transactions reviewed per day, highest "
                    "scores first"
                ),
                lambda axes: _draw_budget(axes, truth, scores, times),
            ),
        ),
        *_explanations(table, result, booster, test, scores),
        *([] if tuning is None else [_section("Tuning", *_tuning(tuning))]),
        _section("Drift of the test part against validation", _drift_table(bundle.reference, names, test)),
        _section("Limits", _limits(bundle.training)),
    ]
    title = f"RiskStream model {_text(bundle.model_version)}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _explanations(
    table: TransactionTable,
    result: TrainingResult,
    booster: lightgbm.Booster,
    test: npt.NDArray[np.float64],
    scores: npt.NDArray[np.float64],
) -> list[str]:
    """Return the sections on the model's reasons: LightGBM's own SHAP values, drawn by shap."""
    try:
        import shap  # noqa: PLC0415 - takes seconds to load
    except ImportError:
        return [_section("Feature importance", "<p>The package shap is not installed here.</p>")]

    spec = result.bundle.spec
    shown = np.sort(np.random.default_rng(0).permutation(len(test))[:_EXPLAINED_ROWS])
    labels = np.asarray(table.is_fraud)[result.split.test]
    chosen = _telling(labels == 1, scores, result.bundle.thresholds.prediction)

    def explain(rows: npt.NDArray[np.int64]) -> Any:
        moved = np.asarray(booster.predict(test[rows], pred_contrib=True, num_threads=1), np.float64)
        return shap.Explanation(
            values=moved[:, :-1], base_values=moved[:, -1], data=test[rows], feature_names=list(spec.names)
        )

    some, single = explain(shown), explain(np.array(list(chosen.values()), np.int64))
    top = np.argsort(-np.abs(some.values).mean(axis=0), kind="stable")[:4].tolist()
    explainer = Explainer(spec, 5)
    decisions = []
    for index, (name, row) in enumerate(chosen.items()):
        decisions.append(
            _shap_figure(
                f"{name}: "
                + _decision_caption(table, int(np.flatnonzero(result.split.test)[row]), float(scores[row])),
                partial(shap.plots.waterfall, single[index], max_display=_WATERFALL, show=False),
            )
        )
        moved = np.append(single.values[index], single.base_values[index])
        decisions.append(_sentences(explainer.reasons(test[row], moved)))
    return [
        _section(
            "Feature importance",
            _shap_figure(
                f"SHAP values (log-odds) of the strongest features over {len(shown):,} rows drawn at random",
                lambda: shap.plots.beeswarm(some, max_display=_TOP, show=False, s=6),
            ),
            *(
                _shap_figure(
                    f"Dependence on {spec.names[column]}; bars show the distribution of the values",
                    partial(shap.plots.scatter, some[:, column], show=False, dot_size=6),
                )
                for column in top
            ),
        ),
        _section("Single decisions", *decisions),
    ]


def _text(value: object) -> str:
    return html.escape(str(value))


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
        return _drawing(figure, caption)


def _drawing(figure: Figure, caption: str) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    drawing = stream.getvalue()
    return f"<figure>{drawing[drawing.index('<svg') :]}<figcaption>{_text(caption)}</figcaption></figure>"


def _quality(report: dict[str, Any]) -> str:
    columns = [
        (name, *("" if (cell := found.get(key)) is None else _cell(cell) for key in _COLUMN_FACTS))
        for name, found in report["columns"].items()
        if found["kind"] != "label"
    ]
    findings = [
        (
            item["severity"],
            item["field"],
            item["what"],
            f"{item['rows']:,}",
            f"{item['share']:.2%}",
            ", ".join(map(str, item["first_rows"])),
        )
        for item in report["findings"]
    ]
    said = (
        _table(("", "field", "what", "rows", "share", "first rows"), findings)
        if findings
        else "<p>No problems found.</p>"
    )
    return (
        f"<p>{report['rows']:,} rows, {report['valid_rows']:,} of them valid transactions.</p>"
        + _table(("field", *_COLUMN_FACTS), columns)
        + said
    )


def _cell(value: float | str) -> str:
    return value[:16] if isinstance(value, str) else f"{value:,.6g}"


def _weeks_table(
    truth: npt.NDArray[np.bool_],
    scores: npt.NDArray[np.float64],
    times_ms: npt.NDArray[np.int64],
    threshold: float,
) -> str:
    week = (times_ms - times_ms.min()) // _WEEK_MS
    rows: list[Sequence[object]] = []
    for number in np.unique(week).tolist():
        own = week == number
        found = binary_metrics(truth[own].astype(np.int8), scores[own], threshold)
        rows.append(
            (
                format_event_time(int(times_ms.min()) + number * _WEEK_MS)[:10],
                f"{found['rows']:,}",
                f"{found['frauds']:,}",
                *(
                    figure_text(found[name])
                    for name in ("auc", "average_precision", "precision", "recall", "f1")
                ),
            )
        )
    return _table(("from", "rows", "frauds", "AUC", "average precision", "precision", "recall", "F1"), rows)


def _tuning(found: dict[str, Any]) -> list[str]:
    """Return the study's pictures: trial after trial, the importance of parameters, and their values."""
    trials = [trial for trial in found.get("study", {}).get("trials", []) if trial["objective"] is not None]
    weights = found.get("study", {}).get("importances", {})
    if not trials:
        return ["<p>The file of parameters does not describe its study.</p>"]
    reached = np.array([trial["objective"] for trial in trials])
    numbers = [trial["number"] for trial in trials]

    def history(axes: Axes) -> None:
        axes.plot(numbers, reached, "o", markersize=3)
        axes.plot(numbers, np.maximum.accumulate(reached), drawstyle="steps-post")
        axes.set(xlabel="trial", ylabel="objective on validation")

    def slices(name: str) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            axes.scatter([trial["parameters"][name] for trial in trials], reached, s=8)
            axes.set(xlabel=name, ylabel="objective")

        return draw

    counts = found["trials"]
    return [
        (
            f"<p>{counts['finished']} trials finished, {counts['pruned']} pruned; objective: "
            f"{_text(found['study']['objective'])}.</p>"
        ),
        _figure("Objective by trial; the line is the best so far", history),
        _figure(
            "How much of the objective's spread each parameter explains (fANOVA)",
            lambda axes: _draw_bars(axes, list(weights), np.array(list(weights.values()))),
        ),
        *(_figure(f"Objective by {name}", slices(name), height=2.2) for name in list(weights)[:3]),
    ]


def _draw_bars(axes: Axes, names: Sequence[str], values: npt.NDArray[np.float64]) -> None:
    axes.barh(list(names)[::-1], values[::-1])


def _parts_table(training: dict[str, Any]) -> str:
    rows = [
        (name, f"{part['rows']:,}", f"{part['frauds']:,}", part["first"][:16], part["last"][:16])
        for name, part in ((name, training[name]) for name in ("train", "validation", "test"))
    ]
    return _table(("part", "rows", "frauds", "from", "to"), rows)


def _protocol(training: dict[str, Any]) -> str:
    days = training["label_delay_ms"] / MS_PER_DAY
    return (
        "<p>The parts follow each other in time, with a gap of the label delay "
        f"({days:g} days) before the later two. Trees stop and the threshold is chosen on validation. "
        f"Class imbalance: {_text(training['imbalance'])}. Of the file's {training['rows']:,} rows "
        f"{training['invalid_rows']:,} make no valid transaction.</p>"
    )


def _metrics_table(metrics: dict[str, Any]) -> str:
    names = ("auc", "average_precision", "precision", "recall", "f1", "threshold")
    rows: list[Sequence[object]] = [
        (name.replace("_", " "), *(figure_text(metrics[part][name]) for part in ("validation", "test")))
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
    axes.set_ylim(0, 1)


def _draw_budget(
    axes: Axes,
    truth: npt.NDArray[np.bool_],
    scores: npt.NDArray[np.float64],
    times_ms: npt.NDArray[np.int64],
) -> None:
    days = max(1.0, float(times_ms.max() - times_ms.min()) / MS_PER_DAY)
    found = np.cumsum(truth[np.argsort(-scores, kind="stable")]) / truth.sum()
    looked_at = np.arange(1, len(found) + 1) / days
    upto = max(10, int(np.searchsorted(found, 0.99)) + 1)
    axes.plot(looked_at[:upto], found[:upto])
    axes.set(xlabel="transactions reviewed per day", ylabel="frauds found", ylim=(0, 1.02))


def _shap_figure(caption: str, draw: Callable[[], Any]) -> str:
    """Return the drawing that a function of shap's makes on the current figure; points as one picture."""
    import matplotlib.pyplot as plt  # noqa: PLC0415 - shap draws by pyplot only

    with mpl.rc_context({"svg.hashsalt": "riskstream", "font.size": 9, "savefig.dpi": 150}):
        plt.switch_backend("agg")
        figure = plt.figure(figsize=(7.0, 4.0))
        try:
            # shap draws its jitter from numpy's global generator.
            np.random.seed(0)  # noqa: NPY002
            draw()
            figure = plt.gcf()
            for axes in figure.axes:
                for points in axes.collections:
                    points.set_rasterized(True)
            return _drawing(figure, caption)
        finally:
            plt.close("all")


def _telling(
    fraud: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64], threshold: float
) -> dict[str, int]:
    """Return the most telling decisions: by name, the index among the test part's rows."""
    found = {}
    for name, rows, sign in (
        ("Fraud with the highest score", fraud & (scores >= threshold), -1),
        ("False alarm with the highest score", ~fraud & (scores >= threshold), -1),
        ("Missed fraud with the lowest score", fraud & (scores < threshold), 1),
    ):
        indexes = np.flatnonzero(rows)
        if len(indexes):
            found[name] = int(indexes[np.argmin(sign * scores[indexes])])
    return found


def _decision_caption(table: TransactionTable, row: int, score: float) -> str:
    label = {1: "fraud", 0: "legitimate"}[int(np.asarray(table.is_fraud)[row])]
    when = format_event_time(int(table.event_time_ms[row]))[:19]
    return (
        f"transaction {table.transaction_id[row]} at {when}: score {score:.4f}; its label is "
        f"{label}. Contribution of each feature to the log-odds."
    )


def _sentences(reasons: Sequence[dict[str, Any]]) -> str:
    return "<ul>" + "".join(f"<li>{_text(reason['sentence'])}</li>" for reason in reasons) + "</ul>"


def _drift_table(reference: dict[str, Any], names: Sequence[str], test: npt.NDArray[np.float64]) -> str:
    found = [
        (name, stability_index(reference["features"][name], test[:, index]))
        for index, name in enumerate(names)
    ]
    found.sort(key=lambda item: (-item[1], item[0]))
    rows = [(name, f"{value:.3f}") for name, value in found[:_TOP]]
    return (
        "<p>Population stability index, largest first; a shift above 0.2 is commonly "
        "investigated.</p>" + _table(("feature", "index"), rows)
    )


def stability_index(distribution: dict[str, Any], values: npt.NDArray[np.float64]) -> float:
    """Return the population stability index of values against a distribution of the reference.

    Half an observation is added to each bin, so that no bin is empty; missing values have their own bin.
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
    return f"<p>{_text(LIMITS.capitalize())} Versions: {_text(training['versions'])}.</p>"
