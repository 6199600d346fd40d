"""The drawings of a report: reliability with the predictions beneath, intervals by task, curves over steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rookery.ranker.report_svg import (
    Scale,
    drawing,
    element,
    line,
    linear_scale,
    log_scale,
    logit,
    percent,
    polyline,
    probability_scale,
    text,
)

WIDTH = 360  # of every drawing: one column of a phone; wider pages put several side by side
COLORS = 8  # series beyond them are dashed
_LEFT, _RIGHT = 54, 346
_Z = 1.959964  # of a 95% interval


@dataclass(frozen=True)
class Series:
    """A named curve over steps; a value may be missing (None)."""

    name: str
    points: Sequence[tuple[float, float | None]]

    def defined(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in self.points if y is not None]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, in a row of ``interval_chart``."""

    label: str
    kind: int  # 0: filled mark, 1: hollow mark
    value: float | None
    interval: Sequence[float | None] | None


# ---- reliability ----------------------------------------------------------------------------------------------------


def reliability_chart(name: str, task: str, metrics: Mapping[str, Any], diagram: Mapping[str, Any]) -> str:
    """Mean label against mean prediction in bins of equal weight, by log-odds; beneath, the predictions by label."""
    bins, histogram = diagram["reliability"], diagram["histogram"]
    if not bins:
        return _nothing(name, task, "no rows")
    low, high = _probability_range(bins, histogram)
    across = probability_scale(low, high, (_LEFT, _RIGHT), 40)
    up = probability_scale(low, high, (236, 12), 26)
    parts = [
        *_frame(across, up, 236, grid=True, x_labels=False),
        element("line", x1=_LEFT, y1=236.0, x2=_RIGHT, y2=12.0, class_="diagonal"),
        *(_reliability_mark(each, across, up, low) for each in bins),
        text(_LEFT + 6, 24, "happens more often than predicted", "note", "start"),
        text(_RIGHT - 6, 228, "less often", "note", "end"),
        *_histogram(histogram, lambda odds: across(1 / (1 + math.exp(-odds))), (300, 248)),
        *(text(across(value), 316, label) for value, label in across.ticks),
        text((_LEFT + _RIGHT) / 2, 334, "predicted probability", "axis"),
        element(
            "text", "observed share", class_="axis", text_anchor="middle", transform="translate(10 124) rotate(-90)"
        ),
    ]
    description = (
        f"{len(bins)} bins of rows by predicted probability. "
        + "; ".join(f"predicted {percent(b['mean_prediction'])}, observed {percent(b['ctr'])}" for b in bins)
        + f". Calibration ratio {_number(metrics['calibration'])}, ECE {_number(metrics['ece'])}."
    )
    return drawing(name, f"Reliability of {task}", description, (WIDTH, 342), parts)


def _probability_range(bins: Sequence[Mapping[str, Any]], histogram: Mapping[str, Any]) -> tuple[float, float]:
    """From log-odds that hold all means of bins and 99.8% of the rows, with a margin."""
    shares = [share for each in bins for share in (each["mean_prediction"], each["ctr"]) if 0 < share < 1]
    odds = [logit(share) for share in shares] + list(_central_range(histogram))
    low, high = max(min(odds) - 0.35, -14.5), min(max(odds) + 0.35, 14.5)
    return 1 / (1 + math.exp(-low)), 1 / (1 + math.exp(-high))


def _central_range(histogram: Mapping[str, Any]) -> tuple[float, float]:
    """Between these lie 99.8% of the weight."""
    mass = [a + b for a, b in zip(histogram["positives"], histogram["negatives"], strict=True)]
    total, passed, kept = sum(mass), 0.0, []
    for place, each in enumerate(mass):
        if passed + each > 0.001 * total and passed < 0.999 * total:
            kept.append(place)
        passed += each
    start, width = histogram["low"], histogram["width"]
    return start + kept[0] * width, start + (kept[-1] + 1) * width


def _reliability_mark(each: Mapping[str, Any], across: Scale, up: Scale, floor: float) -> str:
    """A dot with the 95% interval of its share (Wilson 1927); hollow on the edge where the share is 0 or 1."""
    low, high = wilson_interval(each["ctr"], each["count"])
    x = across(each["mean_prediction"])
    observed = min(max(each["ctr"], floor), 1 - 1e-9)
    whisker = line(x, up(max(low, floor)), x, up(min(high, 1 - 1e-9)), "whisker")
    on_edge = each["ctr"] in {0, 1}
    title = f"predicted {percent(each['mean_prediction'])}, observed {percent(each['ctr'])}"
    dot = element(
        "circle", element("title", escape(title)), cx=x, cy=up(observed), r=3.5, class_="hollow" if on_edge else "dot"
    )
    return whisker + dot


def wilson_interval(share: float, count: float) -> tuple[float, float]:
    """The 95% interval of a share observed in ``count`` > 0 independent rows."""
    spread = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    center, scale = share + _Z**2 / (2 * count), 1 + _Z**2 / count
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)


def score_chart(name: str, histogram: Mapping[str, Any]) -> str:
    """How the weighted score lies where something came of a row, and where nothing did."""
    low, high = _central_range(histogram)
    across = linear_scale(low, high, (_LEFT, _RIGHT), 5)
    parts = [
        *_histogram(histogram, across, (196, 12)),
        *(text(across(value), 212, label) for value, label in across.ticks),
        text((_LEFT + _RIGHT) / 2, 230, "score", "axis"),
    ]
    description = f"99.8% of the scores lie between {_number(low)} and {_number(high)}."
    return drawing(name, "Distribution of the score", description, (WIDTH, 236), parts)


def _histogram(histogram: Mapping[str, Any], across: Callable[[float], float], rows: tuple[float, float]) -> list[str]:
    """Both labels as areas, each of the same size: they show where, not how many."""
    bottom, top = rows
    areas = []
    shares = {label: _shares(histogram[label]) for label in ("negatives", "positives")}
    highest = max(max(values, default=0) for values in shares.values()) or 1.0
    for label, values in shares.items():
        if not sum(values):
            continue
        points = []
        for place, share in enumerate(values):
            y = bottom - share / highest * (bottom - top)
            edges = (histogram["low"] + edge * histogram["width"] for edge in (place, place + 1))
            points += [(across(edge), y) for edge in edges]
        d = f"M{points[0][0]:.1f} {bottom}L" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        areas.append(element("path", d=f"{d}L{points[-1][0]:.1f} {bottom}Z", class_=label))
    return [*areas, line(_LEFT, bottom, _RIGHT, bottom, "edge")]


def _shares(values: Sequence[float]) -> list[float]:
    total = sum(values)
    return [value / total if total else 0.0 for value in values]


# ---- intervals by task ----------------------------------------------------------------------------------------------


def interval_chart(name: str, title: str, rows: Sequence[Estimate], reference: float | None, *, log: bool) -> str:
    """A mark and its 95% interval a row; ``reference`` is where a dashed line stands."""
    numbers = [
        number
        for row in rows
        for number in (row.value, *(row.interval or ()))
        if number is not None and (number > 0 or not log)
    ]
    numbers += [reference] if reference is not None else []
    if not numbers:
        return _nothing(name, title, "not defined")
    pixels = (124.0, 344.0)
    margin = (max(numbers) - min(numbers)) * 0.03
    low, high = min(numbers), max(numbers)
    across = log_scale(low, high, pixels, 40) if log else linear_scale(low - margin, high + margin, pixels, 5)
    bottom = 14 + 22 * len(rows)
    parts = [line(across(value), 8, across(value), bottom, "grid") for value, _ in across.ticks]
    parts += [text(across(value), bottom + 16, label) for value, label in across.ticks]
    if reference is not None:
        parts.append(line(across(reference), 8, across(reference), bottom, "reference"))
    for place, row in enumerate(rows):
        parts += _estimate(row, across, 24 + 22 * place)
    described = "; ".join(_describe(row) for row in rows)
    return drawing(name, title, f"{described}.", (WIDTH, bottom + 24), parts)


def _estimate(row: Estimate, across: Scale, y: float) -> list[str]:
    parts = [text(116, y + 4, _shortened(row.label, 18), "label", "end")] if row.label else []
    if row.value is None:
        return [*parts, text(130, y + 4, "not defined", "note", "start")]
    if row.interval is not None and None not in row.interval:
        low, high = (float(bound) for bound in row.interval if bound is not None)
        parts.append(line(across(max(low, across.low)), y, across(high), y, "whisker"))
    mark = element("title", escape(_describe(row)))
    return [
        *parts,
        element("circle", mark, cx=across(row.value), cy=float(y), r=4.0, class_="hollow" if row.kind else "dot"),
    ]


def _describe(row: Estimate) -> str:
    bounds = "" if row.interval is None else f" ({_number(row.interval[0])} to {_number(row.interval[1])})"
    return f"{row.label} {_number(row.value)}{bounds}".strip()


# ---- curves over steps ----------------------------------------------------------------------------------------------


def curve_chart(name: str, title: str, curves: Sequence[Series], marked_step: float | None, *, log: bool) -> str:
    """Curves over training steps; ``marked_step`` is where a dashed line stands."""
    defined = [(curve, curve.defined()) for curve in curves]
    xs = [x for _, points in defined for x, _ in points]
    ys = [y for _, points in defined for _, y in points if y > 0 or not log]
    if not ys:
        return _nothing(name, title, "no values above 0" if xs else "not defined")
    margin = (max(ys) - min(ys)) * 0.04
    across = linear_scale(min(xs), max(xs), (_LEFT, _RIGHT), 5)
    pixels = (196.0, 12.0)
    up = log_scale(min(ys), max(ys), pixels, 18) if log else linear_scale(min(ys) - margin, max(ys) + margin, pixels, 5)
    parts = list(_frame(across, up, 196, grid=True, x_labels=True))
    if marked_step is not None and across.low <= marked_step <= across.high:
        parts.append(line(across(marked_step), 12, across(marked_step), 196, "reference"))
    for number, (_, points) in enumerate(defined):
        places = [(across(x), up(y)) for x, y in points]
        if len(places) > 1:
            parts.append(polyline(places, curve_class(number)))
        elif places:
            x, y = places[0]
            parts.append(element("circle", cx=x, cy=y, r=3.0, class_=f"{curve_class(number)} point"))
    parts.append(text((_LEFT + _RIGHT) / 2, 230, "step", "axis"))
    described = "; ".join(
        f"{curve.name} from {_number(points[0][1])} to {_number(points[-1][1])}" for curve, points in defined if points
    )
    return drawing(name, title, f"{described}.", (WIDTH, 236), parts)


def curve_class(number: int) -> str:
    """The classes of a curve: one of eight colours, and a dash for those beyond."""
    return f"curve c{number % COLORS}" + (" dashed" if number >= COLORS else "")


def swatch(number: int) -> str:
    """A piece of a curve for its legend."""
    return element(
        "svg", line(0, 5, 22, 5, curve_class(number)), viewBox="0 0 22 10", class_="swatch", aria_hidden="true"
    )


def _frame(across: Scale, up: Scale, bottom: float, *, grid: bool, x_labels: bool) -> Iterable[str]:
    if grid:
        yield from (line(_LEFT, up(value), _RIGHT, up(value), "grid") for value, _ in up.ticks)
    yield from (text(_LEFT - 6, up(value) + 4, label, "tick", "end") for value, label in up.ticks)
    if x_labels:
        yield from (text(across(value), bottom + 16, label) for value, label in across.ticks)
    yield line(_LEFT, bottom, _RIGHT, bottom, "edge")


def _nothing(name: str, title: str, reason: str) -> str:
    words = text(WIDTH / 2, 24, reason)
    return drawing(name, f"{title}: nothing to draw", f"{reason.capitalize()}.", (WIDTH, 40), [words])


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4g}"


def _shortened(words: str, length: int) -> str:
    return words if len(words) <= length else f"{words[: length - 1]}…"
