"""The report of an evaluation: one HTML file that needs nothing beside it, neither script nor network.

Drawn from what a run keeps: the evaluation of a step, those of other steps, and the log of training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from rookery.ranker.evaluation_files import read_evaluation
from rookery.ranker.report_charts import (
    Estimate,
    curve_chart,
    interval_chart,
    reliability_chart,
    score_chart,
    swatch,
)
from rookery.ranker.report_curves import CurveGroup, evaluation_curves, training_curves
from rookery.ranker.report_style import STYLE
from rookery.ranker.report_svg import element


class _Column(NamedTuple):
    metric: str
    title: str
    form: str  # "share" (in percent), or a format of Python


_COLUMNS: Mapping[str, tuple[_Column, ...]] = {
    "Order": (
        _Column("auroc", "AUROC", ".4f"),
        _Column("gauc", "GAUC", ".4f"),
        _Column("prauc", "PR-AUC", ".4f"),
    ),
    "Probability": (
        _Column("ctr", "CTR, %", "share"),
        _Column("mean_prediction", "predicted, %", "share"),
        _Column("calibration", "ratio", ".3f"),
        _Column("ece", "ECE", ".4f"),
    ),
    "Loss": (
        _Column("logloss", "log-loss", ".4f"),
        _Column("rce", "RCE, %", ".2f"),
        _Column("nrce", "NRCE, %", ".2f"),
    ),
    "Rows": (_Column("count", "impressions", ",d"), _Column("positives", "positives", ",d")),
}

_TERMS = (
    (
        "CTR, predicted, ratio",
        "share of positive labels; mean of the calibrated probabilities; the second over the first.",
    ),
    ("ECE", "|mean prediction − mean label| in bins of equal width, averaged over rows."),
    ("log-loss", "mean cross-entropy in nats."),
    ("RCE", "100 (1 − log-loss / log-loss of always predicting the CTR). 0: no better than that; 100: perfect."),
    ("NRCE", "RCE after one factor has made the mean prediction the CTR: what is left with that error mended."),
    ("AUROC", "chance that a positive scores above a negative, ties one half."),
    ("GAUC", "AUROC within each user who has both labels, averaged by their impressions."),
    ("PR-AUC", "average precision: precision at each threshold, averaged over recall."),
    ("NDCG", "gain of each user’s rows in the order of the score, over that of the best order; means over users."),
    (
        "intervals",
        "95% percentiles of a bootstrap that draws users. Resampling adds noise to bins, so that of ECE lies too high.",
    ),
)


def render_report(run: Path, split: str, step: int) -> str:
    """The page for the kept evaluation of a checkpoint."""
    evaluation = read_evaluation(run, split, step)
    sections = [
        _header(run, evaluation),
        _section("Tasks", _metric_table(f"Metrics by task on {split}", evaluation), _TABLE_LEAD),
        _section("At a glance", _grid(_overviews(evaluation["tasks"])), "Marks with 95% intervals."),
        _section("Reliability and predictions", _grid(_reliability_figures(evaluation)), _RELIABILITY_LEAD),
    ]
    if any(evaluation["score_histogram"]["positives"] + evaluation["score_histogram"]["negatives"]):
        sections.append(_section("Score", _grid([_score_figure(evaluation)]), _SCORE_LEAD))
    curves = [*training_curves(run), *evaluation_curves(run, split)]
    if curves:
        figures = (_curve_figure(f"curve-{number}", group, step) for number, group in enumerate(curves))
        sections.append(
            _section("Training", _grid(figures), f"The dashed line is step {step:,}, which is measured here.")
        )
    if evaluation["strata"]:
        sections.append(_section("Strata", _strata(evaluation), "The same metrics of parts of the rows."))
    sections.append(_section("What the numbers mean", _terms(), ""))
    title = f"{run.resolve().name}: {split} at step {step:,}"
    return _page(title, "".join(sections))


_TABLE_LEAD = "Below each number its 95% interval."
_RELIABILITY_LEAD = (
    "Dots: bins of equal weight, the predicted share against the observed one with its 95% interval. On the dashed "
    "line the prediction is right; a hollow dot saw no positive, or nothing else. Beneath: where predictions lie, by "
    "label, both areas of the same size."
)

_SCORE_LEAD = (
    "The sum of weight times probability that rows are ordered by. Both areas are of the same size: the further they "
    "are apart, the better the order."
)


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def _header(run: Path, evaluation: Mapping[str, Any]) -> str:
    facts = [
        ("step", f"{evaluation['step']:,}", ""),
        ("impressions", f"{evaluation['num_rows']:,}", ""),
    ]
    if evaluation["num_users"] is not None:
        facts.append(("users", f"{evaluation['num_users']:,}", ""))
    facts.append(("mean AUROC", _formatted(evaluation["mean"]["auroc"], ".4f"), "over tasks"))
    facts.append(("mean RCE", _formatted(evaluation["mean"]["rce"], ".2f") + "%", "over tasks"))
    if evaluation["ndcg"] is not None:
        bounds = _bounds(evaluation["intervals"].get("ndcg"), ".4f")
        facts.append(("NDCG of the score", _formatted(evaluation["ndcg"], ".4f"), bounds))
    shown = "".join(
        element("div", element("dt", escape(name)), element("dd", value, element("small", note) if note else ""))
        for name, value, note in facts
    )
    kicker = element("p", escape(str(run)), class_="kicker")
    heading = element("h1", f"Evaluation on {escape(evaluation['split'])}")
    return element("header", kicker, heading, element("dl", shown, class_="facts"))


def _section(title: str, content: str, lead: str) -> str:
    words = element("p", escape(lead), class_="lead") if lead else ""
    return element("section", element("h2", escape(title)), words, content)


def _grid(figures: Iterable[str]) -> str:
    return element("div", *figures, class_="grid")


# ---- tables ---------------------------------------------------------------------------------------------------------


def _metric_table(caption: str, evaluation: Mapping[str, Any]) -> str:
    rows = [_row(name, task, "") for name, task in evaluation["tasks"].items()]
    if len(rows) > 1:
        rows.append(_row("mean over tasks", evaluation["mean"], "mean"))
    table = element("table", element("caption", escape(caption)), _head(), element("tbody", *rows))
    return element("div", table, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _head() -> str:
    groups = "".join(
        element("th", escape(name), class_="group first", colspan=len(columns), scope="colgroup")
        for name, columns in _COLUMNS.items()
    )
    titles = "".join(
        element("th", escape(column.title), scope="col", class_="first" if place == 0 else None)
        for columns in _COLUMNS.values()
        for place, column in enumerate(columns)
    )
    corner = element("th", "task", class_="corner", scope="col", rowspan=2)
    return element("thead", element("tr", corner, groups), element("tr", titles))


def _row(name: str, metrics: Mapping[str, Any], class_: str) -> str:
    intervals = metrics.get("intervals", {})
    cells = [
        _cell(metrics.get(column.metric, ""), intervals.get(column.metric), column.form, is_first=place == 0)
        for columns in _COLUMNS.values()
        for place, column in enumerate(columns)
    ]
    return element("tr", element("th", escape(name), scope="row"), *cells, class_=class_ or None)


def _cell(value: float | str | None, interval: Sequence[float | None] | None, form: str, *, is_first: bool) -> str:
    bounds = _bounds(interval, form)
    content = value if isinstance(value, str) else _formatted(value, form)
    return element("td", content, element("small", bounds) if bounds else "", class_="first" if is_first else None)


def _formatted(value: float | None, form: str) -> str:
    if value is None:
        return element("span", "–", class_="none", title="not defined")
    if form == "share":
        return f"{100 * value:#.3g}".rstrip(".")
    return f"{value:{form}}".replace("-", "−")


def _bounds(interval: Sequence[float | None] | None, form: str) -> str:
    if interval is None or None in interval:
        return ""
    low, high = (_formatted(bound, form) for bound in interval)
    return f"{low} to {high}" if "−" in low + high else f"{low}–{high}"


def _strata(evaluation: Mapping[str, Any]) -> str:
    parts = []
    for name, stratum in evaluation["strata"].items():
        users = "" if stratum["num_users"] is None else f", {stratum['num_users']:,} users"
        title = f"{name}: {stratum['num_rows']:,} impressions{users}"
        table = _metric_table(f"Metrics by task where {name}", stratum)
        parts.append(element("details", element("summary", escape(title)), table))
    return "".join(parts)


def _terms() -> str:
    pairs = "".join(element("dt", escape(name)) + element("dd", escape(meaning)) for name, meaning in _TERMS)
    return element("dl", pairs, class_="terms")


# ---- figures --------------------------------------------------------------------------------------------------------


def _overviews(tasks: Mapping[str, Any]) -> Iterable[str]:
    kinds = (
        ("glance-order", ("auroc", "AUROC"), ("gauc", "GAUC"), None, False),
        ("glance-rce", ("rce", "RCE, %"), ("nrce", "NRCE, %"), 0.0, False),
        ("glance-calibration", ("calibration", "calibration ratio"), None, 1.0, True),
    )
    for name, filled, hollow, reference, log in kinds:
        rows = []
        for task, metrics in tasks.items():
            for kind, chosen in enumerate(each for each in (filled, hollow) if each is not None):
                metric = chosen[0]
                rows.append(Estimate("" if kind else task, kind, metrics[metric], metrics["intervals"].get(metric)))
        if all(row.value is None for row in rows):
            continue
        title = filled[1] if hollow is None else f"{filled[1]} ● and {hollow[1]} ○"
        chart = interval_chart(name, f"{title} by task", rows, reference, log=log)
        yield element("figure", element("h3", escape(title)), chart)


def _reliability_figures(evaluation: Mapping[str, Any]) -> Iterable[str]:
    for number, (task, metrics) in enumerate(evaluation["tasks"].items()):
        ratio, ece = _formatted(metrics["calibration"], ".3f"), _formatted(metrics["ece"], ".4f")
        caption = element("figcaption", f"ratio {ratio}, ECE {ece}")
        chart = reliability_chart(f"reliability-{number}", task, metrics, evaluation["diagrams"][task])
        yield element("figure", element("h3", escape(task)), caption, chart, _LABEL_LEGEND)


_LABEL_LEGEND = (
    '<ul class="legend"><li><i class="positives"></i>predictions where it happened</li>'
    '<li><i class="negatives"></i>where it did not</li></ul>'
)


def _score_figure(evaluation: Mapping[str, Any]) -> str:
    ndcg = evaluation["ndcg"]
    caption = element("figcaption", f"NDCG by user {_formatted(ndcg, '.4f')}") if ndcg is not None else ""
    chart = score_chart("score", evaluation["score_histogram"])
    return element("figure", element("h3", "weighted score"), caption, chart, _GAIN_LEGEND)


_GAIN_LEGEND = (
    '<ul class="legend"><li><i class="positives"></i>rows with engagements of a weight above zero</li>'
    '<li><i class="negatives"></i>rows without</li></ul>'
)


def _curve_figure(name: str, group: CurveGroup, step: int) -> str:
    curves = [curve for curve in group.curves if curve.defined()]
    chart = curve_chart(name, f"{group.title} over steps", curves, step, log=group.log)
    entries = (element("li", swatch(number), escape(curve.name)) for number, curve in enumerate(curves))
    legend = element("ul", *entries, class_="legend") if len(curves) > 1 else ""
    return element("figure", element("h3", escape(group.title)), chart, legend)
