"""The demo's page, one HTML file that needs nothing beside it, and the same figures for the page of the server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rookery.demo.measures import Measure
from rookery.ranker.report_charts import Series, curve_chart, reliability_chart, swatch
from rookery.ranker.report_curves import CurveGroup
from rookery.ranker.report_style import STYLE
from rookery.ranker.report_svg import element
from rookery.timeline.evaluation import POLICIES

WITH, WITHOUT = "with TwHIN", "without TwHIN"
_LOSS = "training loss"
_BAR = """
td .bar { display: block; height: 5px; margin-top: 3px; background: var(--grid); border-radius: 3px; min-width: 6rem; }
td .bar i { display: block; height: 100%; background: var(--accent); border-radius: 3px; }
td.words, th.words { text-align: left; white-space: normal; }
"""


@dataclass(frozen=True)
class Findings:
    """All that the demo measured. ``evaluations`` and ``curves`` are by ``WITH`` and ``WITHOUT``."""

    measures: Sequence[Measure]
    timelines: Mapping[str, Any]
    evaluations: Mapping[str, Mapping[str, Any]]
    curves: Mapping[str, Sequence[CurveGroup]]
    not_predicted: tuple[str, ...]
    """Engagements that the rankers do not predict, and that no score weighs."""

    @property
    def lead(self) -> str:
        """What stands over the measures."""
        return _LEAD + self._left_out

    @property
    def worth_lead(self) -> str:
        """What stands over the policies."""
        return _WORTH_LEAD + self._left_out

    @property
    def _left_out(self) -> str:
        names = ", ".join(self.not_predicted)
        return f" Not predicted, for want of examples, and so not weighed: {names}." if names else ""


def render_page(findings: Findings, title: str) -> str:
    """The page as HTML."""
    sections = [
        element("header", element("h1", escape(title)), element("dl", *_facts(findings), class_="facts")),
        _section("What was reached", findings.lead, _scroll("What was reached", _measures(findings.measures))),
        _section(
            f"What {findings.timelines['k']} posts are worth",
            findings.worth_lead,
            _scroll("Policies", _policies(findings)),
        ),
        _section("What candidates find", _RECALL_LEAD, _scroll("Recall", _recall(findings.timelines["recall"]))),
        _section("Reliability of the ranker with TwHIN", _RELIABILITY_LEAD, _grid(_reliability(findings))),
        _section("Training", "Both rankers, step by step.", _grid(_curves(findings.curves))),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}{_BAR}\n</style>\n</head>\n<body>\n<main>\n"
        f"{''.join(sections)}\n</main>\n</body>\n</html>\n"
    )


_LEAD = (
    "On the last day of the log, which nothing was trained on or chosen by. The oracle knows the true probability of "
    "every engagement; reached: the way from chance to the oracle that was gone, where positives are enough to tell."
)
_WORTH_LEAD = (
    "True expected engagement by the weights of 2023, discounted by place, as a share of what the oracle shows: the "
    "best of all posts that may be shown. With 95% intervals over users."
)
_RECALL_LEAD = (
    "Of the posts that are truly best for a user, the share among the candidates; beside it what as many posts at "
    "random would find, and, out of network, what as many of the most favourited would."
)
_RELIABILITY_LEAD = (
    "Dots: bins of equal weight, the predicted share against the observed one with its 95% interval. Beneath: where "
    "predictions lie, by label, both areas of the same size."
)


def _facts(findings: Findings) -> Iterator[str]:
    share = {each["policy"]: each["share"] for each in findings.timelines["policies"]}
    for name, value, note in (
        ("timelines", f"{share['ranker']:.0%}", "of the oracle’s worth"),
        ("without TwHIN’s vectors", f"{share['ranker_without_twhin']:.0%}", ""),
        ("most popular posts", f"{share['popularity']:.0%}", ""),
        ("newest posts", f"{share['recency']:.0%}", ""),
    ):
        yield element("div", element("dt", name), element("dd", value, element("small", note) if note else ""))


def _section(title: str, lead: str, content: str) -> str:
    return element("section", element("h2", escape(title)), element("p", escape(lead), class_="lead"), content)


def _scroll(label: str, table: str) -> str:
    return element("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)


def _grid(figures: Iterable[str]) -> str:
    return element("div", *figures, class_="grid")


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first cell of each row is its head; cells are markup."""
    head = element("tr", *(element("th", escape(name), scope="col") for name in columns))
    body = (
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in rows
    )
    return element("table", element("thead", head), element("tbody", *body))


def _measures(measures: Sequence[Measure]) -> str:
    rows = (
        (
            escape(each.title),
            f"{each.chance:.3f}",
            f"{each.without_twhin:.3f}",
            f"{each.with_twhin:.3f}",
            f"{each.oracle:.3f}",
            "–" if each.reached is None else _bar(each.reached),
        )
        for each in measures
    )
    return _table(("", "chance", WITHOUT, WITH, "oracle", "reached"), rows)


def _bar(share: float, note: str = "") -> str:
    width = 100 * min(1.0, max(0.0, share))
    bar = element("span", f'<i style="width:{width:.0f}%"></i>', class_="bar")
    return f"{share:.0%}{element('small', note) if note else ''}{bar}"


def _policies(findings: Findings) -> str:
    rows = (
        (
            escape(each["policy"].replace("_", " ")),
            element("span", escape(POLICIES[each["policy"]])),
            _bar(each["share"], _interval(each["share_interval"])),
        )
        for each in findings.timelines["policies"]
    )
    return _table(("", "what is shown", "share of the oracle"), rows)


def _recall(recall: Sequence[Mapping[str, Any]]) -> str:
    fields = ("all", "all_chance", "twhin", "popular", "out_of_network_chance")
    titles = ("all", "at random", "out of network: TwHIN", "most favourited", "at random")
    rows = ((f"best {each['best']}", *(_share(each[field]) for field in fields)) for each in recall)
    return _table(("", *titles), rows)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _reliability(findings: Findings) -> Iterator[str]:
    evaluation = findings.evaluations[WITH]
    for number, (task, metrics) in enumerate(evaluation["tasks"].items()):
        chart = reliability_chart(f"reliability-{number}", task, metrics, evaluation["diagrams"][task])
        yield element("figure", element("h3", escape(task)), chart)


def _curves(curves: Mapping[str, Sequence[CurveGroup]]) -> Iterator[str]:
    for number, (name, group) in enumerate((name, group) for name, groups in curves.items() for group in groups):
        chart = curve_chart(f"curve-{number}", f"{group.title}, {name}", group.curves, None, log=group.log)
        entries = (element("li", swatch(place), escape(curve.name)) for place, curve in enumerate(group.curves))
        legend = element("ul", *entries, class_="legend") if len(group.curves) > 1 else ""
        yield element("figure", element("h3", escape(f"{group.title}, {name}")), chart, legend)


# ---- the same for the page of the server ----------------------------------------------------------------------------


def served_metrics(findings: Findings) -> dict[str, Any]:
    """What ``GET /v1/metrics`` answers: tables, curves, diagrams."""
    return {
        "tables": [_served_measures(findings), _served_policies(findings)],
        "training": [*_served_curves(findings.curves)],
        "reliability": [
            {
                "model": name,
                "task": task,
                "metrics": {"calibration": metrics["calibration"], "ece": metrics["ece"]},
                "bins": evaluation["diagrams"][task]["reliability"],
            }
            for name, evaluation in findings.evaluations.items()
            for task, metrics in evaluation["tasks"].items()
        ],
    }


def _served_curves(curves: Mapping[str, Sequence[CurveGroup]]) -> Iterator[dict[str, Any]]:
    """Loss and AUROC of both rankers; the report has the rest."""
    loss = [(name, group.curves[0]) for name, groups in curves.items() for group in groups if group.title == _LOSS]
    yield {"title": _LOSS, "log": False, "curves": [_served_curve(name, curve) for name, curve in loss]}
    for name, groups in curves.items():
        for group in groups:
            if group.title.startswith("AUROC"):
                served = [_served_curve(curve.name, curve) for curve in group.curves]
                yield {"title": f"{group.title}, {name}", "log": group.log, "curves": served}


def _served_curve(name: str, curve: Series) -> dict[str, Any]:
    return {"name": name, "points": [list(point) for point in curve.defined()]}


def _served_measures(findings: Findings) -> dict[str, Any]:
    return {
        "title": "What was reached",
        "lead": findings.lead,
        "columns": ["", "chance", WITHOUT, WITH, "oracle", "reached"],
        "rows": [
            [each.title, each.chance, each.without_twhin, each.with_twhin, each.oracle, each.reached]
            for each in findings.measures
        ],
        "percent": ["reached"],
        "bar": "reached",
    }


def _interval(bounds: Sequence[float]) -> str:
    low, high = bounds
    return f"{low:.0%}–{high:.0%}"


def _served_policies(findings: Findings) -> dict[str, Any]:
    return {
        "title": f"What {findings.timelines['k']} posts are worth",
        "lead": findings.worth_lead,
        "columns": ["", "worth", "share of the oracle", "95%"],
        "rows": [
            [each["policy"].replace("_", " "), each["value"], each["share"], _interval(each["share_interval"])]
            for each in findings.timelines["policies"]
        ],
        "percent": ["share of the oracle"],
        "bar": "share of the oracle",
    }
