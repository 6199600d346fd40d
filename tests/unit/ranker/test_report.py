"""The report: drawings that put numbers where they belong, and a page that stands alone."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binomtest

from rookery.metrics.engagement import EngagementMeter, MeasureOptions
from rookery.metrics.engagement_rows import EngagementRows
from rookery.ranker.evaluation import Evaluation
from rookery.ranker.report import render_report
from rookery.ranker.report_charts import (
    Estimate,
    Series,
    curve_chart,
    interval_chart,
    reliability_chart,
    score_chart,
    wilson_interval,
)
from rookery.ranker.report_curves import MAX_POINTS, evaluation_curves, training_curves
from rookery.ranker.report_svg import linear_scale, log_scale, percent, probability_scale
from rookery.train.evaluations import write_evaluation

HOSTILE = "<b>\"like\" & 'more'</b>"


def measured(num_rows: int, tasks: tuple[str, ...] = ("like", "hide"), **options: Any) -> Evaluation:
    generator = torch.Generator().manual_seed(num_rows)
    p = torch.sigmoid(torch.randn(num_rows, len(tasks), generator=generator) - torch.arange(len(tasks)) * 2)
    y = torch.rand(num_rows, len(tasks), generator=generator) < p
    users = torch.randint(40, (num_rows,), generator=generator)
    meter = EngagementMeter(tasks, ("some",))
    meter.update(EngagementRows(p, y, torch.ones_like(p), p.sum(1), y.float().sum(1), p[:, :1] > 0.5, users))
    whole, strata = meter.compute(MeasureOptions(num_replicates=10, **options))
    return Evaluation("test", whole, strata)


def keep(run: Path, evaluation: Evaluation, step: int = 100) -> None:
    write_evaluation(run, "test", step, {"step": step, **evaluation.report(), "elapsed_s": 0.1})


# ---- the page -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Checks that tags close in the order that they opened, and gathers what the page holds."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def attributes(self, name: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(name)) is not None]

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (50, 100):
        keep(tmp_path, measured(300 + step), step)
    lines = [
        {"step": step, "loss": 1 / step, "loss/like": 0.5, "lr/a": 0.1, "lr/b": 0.1} for step in range(10, 101, 10)
    ]
    lines += [{"step": 50, "validation/valid/like/auroc": 0.7}, {"step": 100, "validation/valid/like/auroc": None}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 110, "lo')
    return tmp_path


def test_the_page_is_whole_and_needs_nothing_beside_it(run: Path) -> None:
    html = render_report(run, "test", 100)
    page = Page(html)
    assert "http" not in re.sub(r"https?://www\.w3\.org\S*", "", html)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert "url(" not in html
    assert "prefers-color-scheme: dark" in html
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags


def test_every_drawing_says_what_it_shows_and_ids_are_unique(run: Path) -> None:
    html = render_report(run, "test", 100)
    page = Page(html)
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    drawings = [attributes for tag, attributes in page.tags if tag == "svg" and "aria-hidden" not in attributes]
    assert len(drawings) >= 7
    for attributes in drawings:
        assert attributes["role"] == "img"
        assert set(str(attributes["aria-labelledby"]).split()) <= set(ids)
    assert {attributes.get("scope") for tag, attributes in page.tags if tag == "th"} == {"col", "colgroup", "row"}
    assert len([tag for tag, _ in page.tags if tag == "caption"]) == len(
        [tag for tag, _ in page.tags if tag == "table"]
    )
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ET.fromstring(svg)
        assert "nan" not in svg.lower().replace("nano", "")


def test_the_numbers_of_the_evaluation_are_on_the_page(run: Path) -> None:
    evaluation = measured(400)
    page = Page(render_report(run, "test", 100))
    for task in evaluation.whole.tasks.values():
        for metric in ("auroc", "gauc", "prauc", "logloss", "ece"):
            assert f"{task.values[metric]:.4f}" in page.text
        low, high = task.intervals["auroc"]
        assert f"{low:.4f}–{high:.4f}" in page.text
        assert f"{task.positives:,}" in page.text
    assert f"{evaluation.whole.ndcg:.4f}" in page.text
    assert "some: " in page.text


def test_names_are_escaped(tmp_path: Path) -> None:
    keep(tmp_path, measured(200, (HOSTILE, "hide")))
    html = render_report(tmp_path, "test", 100)
    assert "<b>" not in html
    assert HOSTILE in Page(html).text


def test_a_task_without_positives_and_one_without_rows(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(50, 3, generator=generator)
    labels = torch.stack([p[:, 0] > 0.5, torch.zeros(50, dtype=torch.bool), p[:, 2] > 0.5], 1)
    weights = torch.tensor([1.0, 1.0, 0.0]).expand(50, 3)
    meter = EngagementMeter(("some", "none", "unknown"))
    strata = torch.zeros(50, 0, dtype=torch.bool)
    meter.update(EngagementRows(p, labels, weights, p[:, 0], p[:, 0], strata, None))
    whole, _ = meter.compute(MeasureOptions(num_replicates=3))
    keep(tmp_path, Evaluation("test", whole, {}))
    page = Page(render_report(tmp_path, "test", 100))
    assert "no rows" in page.text
    assert "–" in page.text


def test_nothing_at_all_and_a_single_row_still_make_a_page(tmp_path: Path) -> None:
    for step, num_rows in enumerate((0, 1)):
        keep(tmp_path, measured(num_rows), step)
        assert f"{num_rows}" in Page(render_report(tmp_path, "test", step)).text


# ---- curves ---------------------------------------------------------------------------------------------------------


def test_curves_of_a_log_and_of_kept_evaluations(run: Path) -> None:
    groups = {group.title: group for group in training_curves(run)}
    assert groups["training loss"].curves[0].points[0] == (10, 0.1)
    assert len(groups["training loss"].curves[0].points) == 10  # the half line at the end is not read
    assert [curve.name for curve in groups["learning rate"].curves] == ["a, b"]
    assert groups["AUROC on valid"].curves[0].points == [(50, 0.7)]
    assert "RCE, % on valid" not in groups
    kept = {group.title: group for group in evaluation_curves(run, "test")}
    expected = [(step, measured(300 + step).whole.tasks["like"].values["auroc"]) for step in (50, 100)]
    assert kept["AUROC on test"].curves[0].points == expected
    assert evaluation_curves(run, "valid") == []


@pytest.mark.parametrize("damage", ['{"step": 20, "lo', "[1]", '{"loss": 0.3}', '{"step": 20, "loss": "low"}', "\x00"])
def test_damaged_lines_of_a_log_are_left_out_and_told(run: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    log = run / "metrics.jsonl"
    lines = log.read_text().splitlines()
    lines[1] = damage
    log.write_text("\n".join(lines))
    curves = {group.title: group.curves for group in training_curves(run)}
    assert [step for step, _ in curves["training loss"][0].points] == [10, *range(30, 101, 10)]
    assert f"{log}: 1 lines are no metrics of a step, the first is line 2" in caplog.text


def test_long_curves_are_thinned_by_means(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": step % 10}) + "\n" for step in range(1, 2401)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    (curve,) = training_curves(tmp_path)[0].curves
    assert len(curve.points) == MAX_POINTS
    assert {value for _, value in curve.points} == {4.5}
    assert curve.points[-1][0] == 2400


# ---- drawings -------------------------------------------------------------------------------------------------------


def circles(svg: str, class_: str) -> list[tuple[float, float]]:
    found = ET.fromstring(svg).iter("circle")
    return [(float(each.get("cx", "")), float(each.get("cy", ""))) for each in found if each.get("class") == class_]


def path_points(svg: str, class_: str) -> list[tuple[float, float]]:
    (path,) = (each for each in ET.fromstring(svg).iter("path") if str(each.get("class")).startswith(class_))
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", str(path.get("d")))]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def test_a_right_prediction_lies_on_the_diagonal_and_higher_shares_lie_higher() -> None:
    def bin_at(predicted: float, observed: float) -> dict[str, float]:
        return {"low": predicted, "high": predicted, "mean_prediction": predicted, "ctr": observed, "count": 100}

    diagram = {
        "reliability": [bin_at(0.1, 0.1), bin_at(0.5, 0.5), bin_at(0.9, 0.9), bin_at(0.3, 0.0)],
        "histogram": {"low": -3.0, "width": 0.15, "positives": [1.0] * 40, "negatives": [2.0] * 40},
    }
    svg = reliability_chart("r", "like", {"calibration": 1.0, "ece": 0.0}, diagram)
    (diagonal,) = (each for each in ET.fromstring(svg).iter("line") if each.get("class") == "diagonal")
    x1, y1, x2, y2 = (float(diagonal.get(name, "")) for name in ("x1", "y1", "x2", "y2"))
    dots = circles(svg, "dot")
    assert len(dots) == 3
    for x, y in dots:
        assert y == pytest.approx(y1 + (x - x1) / (x2 - x1) * (y2 - y1), abs=0.2)
    assert dots[0][1] > dots[1][1] > dots[2][1]
    ((_, bottom),) = circles(svg, "hollow")
    assert bottom == y1


def test_a_higher_score_lies_further_right() -> None:
    histogram = {"low": -2.0, "width": 0.1, "positives": [0.0] * 30 + [2.0] * 10, "negatives": [1.0] * 40}
    svg = score_chart("s", histogram)
    positives, negatives = path_points(svg, "positives"), path_points(svg, "negatives")
    height = {name: min(y for _, y in points) for name, points in (("p", positives), ("n", negatives))}
    assert height["p"] < height["n"]  # ten bins share what is spread over forty there
    peak = [x for x, y in positives if y == height["p"]]
    assert (min(peak), max(peak)) == pytest.approx((negatives[0][0] * 0.25 + negatives[-1][0] * 0.75, negatives[-1][0]))


@pytest.mark.parametrize(("share", "count"), [(0.0, 10), (0.02, 500), (0.5, 8), (1.0, 3)])
def test_wilson_interval_against_scipy(share: float, count: int) -> None:
    expected = binomtest(round(share * count), count).proportion_ci(method="wilson")
    assert wilson_interval(share, count) == pytest.approx((expected.low, expected.high), abs=1e-7)


def test_a_curve_goes_through_its_points() -> None:
    svg = curve_chart("c", "loss", [Series("loss", [(0, 1.0), (50, 3.0), (100, 2.0)])], 100, log=False)
    (x0, y0), (x1, y1), (x2, y2) = path_points(svg, "curve")
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert (y0 - y2) == pytest.approx((y0 - y1) / 2, abs=0.2)


def test_an_interval_surrounds_its_mark() -> None:
    rows = [Estimate("like", 0, 2.0, (1.0, 4.0)), Estimate("hide", 0, None, None)]
    for log in (False, True):
        svg = interval_chart("i", "ratio", rows, 1.0, log=log)
        ((x, y),) = circles(svg, "dot")
        (whisker,) = (each for each in ET.fromstring(svg).iter("line") if each.get("class") == "whisker")
        low, high = float(whisker.get("x1", "")), float(whisker.get("x2", ""))
        assert low < x < high
        assert float(whisker.get("y1", "")) == y
        if log:
            assert x - low == pytest.approx(high - x, abs=0.2)
        assert "not defined" in svg


def test_what_has_no_values_says_so() -> None:
    unknown = [Series("like", [(10, None), (20, None)])]
    rows = [Estimate("like", 0, None, (None, None))]
    for svg in (
        curve_chart("c", "AUROC", unknown, 20, log=False),
        curve_chart("c", "AUROC", [], None, log=True),
        interval_chart("i", "AUROC", rows, None, log=False),
        interval_chart("i", "ratio", [], None, log=True),
    ):
        assert "nothing to draw" in svg
        assert "not defined" in svg
        ET.fromstring(svg)
    assert "no values above 0" in curve_chart("c", "loss", [Series("like", [(10, 0.0), (20, 0.0)])], 20, log=True)


def test_zero_lies_on_the_lower_edge_of_a_logarithmic_scale() -> None:
    svg = curve_chart("c", "loss", [Series("like", [(10, 0.0), (20, 1.0), (30, 10.0)])], None, log=True)
    assert [y for _, y in path_points(svg, "curve")] == [196.0, 196.0, 12.0]
    svg = interval_chart("i", "ratio", [Estimate("like", 0, 0.0, (0.0, 4.0))], 1.0, log=True)
    ((x, _),) = circles(svg, "dot")
    assert x == 124.0


def test_ticks_are_round_and_inside() -> None:
    assert [label for _, label in linear_scale(0.0, 1.0, (0, 100), 5).ticks] == [
        "0.0",
        "0.2",
        "0.4",
        "0.6",
        "0.8",
        "1.0",
    ]
    assert [label for _, label in linear_scale(-3.0, 12.0, (0, 100), 5).ticks] == ["0", "5", "10"]
    assert [label for _, label in linear_scale(0.0, 40_000, (0, 100), 4).ticks][-1] == "40k"
    assert [label for _, label in log_scale(0.5, 200.0, (0, 300), 40).ticks] == ["1", "3", "10", "30", "100"]
    assert [label for _, label in probability_scale(0.0008, 0.12, (0, 300), 40).ticks][:3] == ["0.1%", "0.2%", "0.5%"]
    for scale in (linear_scale(3.0, 3.0, (0, 100), 5), log_scale(3.0, 3.0, (0, 100), 30)):
        assert 0 < scale(3.0) < 100


def test_scales_are_linear_in_what_they_say() -> None:
    odds = probability_scale(0.01, 0.99, (0, 100), 10)
    assert odds(0.5) == pytest.approx(50)
    assert odds(0.1) == pytest.approx(50 * (1 - math.log(9) / math.log(99)))
    assert log_scale(1.0, 100.0, (0, 100), 10)(10.0) == pytest.approx(50)
    assert linear_scale(0.0, 4.0, (100, 0), 5)(1.0) == pytest.approx(75)
    assert linear_scale(0.0, 4.0, (100, 0), 5)(9.0) == 0  # outside: on the edge


@pytest.mark.parametrize(
    ("share", "words"), [(0.441, "44.1%"), (0.1, "10%"), (0.00083, "0.083%"), (0.9999, "99.99%"), (0.0, "0%")]
)
def test_percent(share: float, words: str) -> None:
    assert percent(share) == words
