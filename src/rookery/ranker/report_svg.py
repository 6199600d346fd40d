"""Small pieces of SVG and HTML: escaped elements, axes with readable ticks, numbers as people read them.

Colours and fonts come from the page's style sheet by class, so that a drawing follows its light or dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape

_LOG_STEPS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7))
# Probabilities that read well as ticks: the first set that gives enough of them is used.
_HALVES = (
    (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.5),
    (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.25, 0.5),
    (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
)


def element(tag: str, *content: str, **attributes: str | float | None) -> str:
    """``<tag …>content</tag>``. Content is markup already; attributes are escaped, ``class_`` and ``stroke_width`` lose
    and turn their underscores, numbers are rounded to a tenth, None leaves an attribute out.
    """
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return f"<{tag}{named}>{''.join(content)}</{tag}>"


def text(x: float, y: float, words: str, class_: str = "tick", anchor: str = "middle") -> str:
    """A line of text in an SVG."""
    return element("text", escape(words), x=x, y=y, class_=class_, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def polyline(points: Iterable[tuple[float, float]], class_: str) -> str:
    """A path through points."""
    d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return element("path", d=d, class_=class_, fill="none")


def drawing(name: str, title: str, description: str, size: tuple[int, int], parts: Iterable[str]) -> str:
    """A whole SVG as wide as its place, with a title and a description for those who do not see it.

    ``name`` tells it from the others of the page.
    """
    width, height = size
    return element(
        "svg",
        element("title", escape(title), id=f"{name}-title"),
        element("desc", escape(description), id=f"{name}-desc"),
        *parts,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
    )


@dataclass(frozen=True)
class Scale:
    """Places values between two pixels, linearly in ``transform`` of the value; ``ticks`` are values with labels."""

    transform: Callable[[float], float]
    low: float
    high: float
    pixels: tuple[float, float]
    ticks: Sequence[tuple[float, str]]

    def __call__(self, value: float) -> float:
        """The pixel of a value; values outside land on the edge."""
        low, high = self.transform(self.low), self.transform(self.high)
        share = (self.transform(min(self.high, max(self.low, value))) - low) / (high - low)
        return self.pixels[0] + share * (self.pixels[1] - self.pixels[0])


def linear_scale(low: float, high: float, pixels: tuple[float, float], num_ticks: int) -> Scale:
    """Ticks at round numbers; a range of one value is widened."""
    if high <= low:
        margin = abs(low) * 0.05 or 0.5
        low, high = low - margin, high + margin
    step = _round_step((high - low) / num_ticks)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return Scale(float, low, high, pixels, [(n * step, _tick(n * step, digits)) for n in range(first, last + 1)])


def log_scale(low: float, high: float, pixels: tuple[float, float], gap: float) -> Scale:
    """For positive values; ticks at 1, 2 and 5 times powers of ten or at fewer, at least ``gap`` pixels apart."""
    if high <= low:
        low, high = low / 1.5, high * 1.5
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices = [
        [factor * 10.0**power for power in powers for factor in factors] for factors in ((1,), (1, 3), (1, 2, 5))
    ]
    return _with_ticks(Scale(math.log10, low, high, pixels, []), choices, gap, lambda value: f"{value:.3g}")


def probability_scale(low: float, high: float, pixels: tuple[float, float], gap: float) -> Scale:
    """By log-odds, so that .1% to 1% is as wide as 1% to 9%; ticks are at least ``gap`` pixels apart."""
    choices = [[*halves, *(1 - p for p in reversed(halves[:-1]))] for halves in _HALVES]
    return _with_ticks(Scale(logit, low, high, pixels, []), choices, gap, percent)


def _with_ticks(scale: Scale, choices: Sequence[Sequence[float]], gap: float, label: Callable[[float], str]) -> Scale:
    """``scale`` with the most ticks that leave room; where even the first choice does not, with some of it."""
    inside = [[value for value in choice if scale.low <= value <= scale.high] for choice in choices]
    chosen = _spread(inside[0], scale, gap)
    for values in inside[1:]:
        if len(values) > len(chosen) and _spread(values, scale, gap) == values:
            chosen = values
    return replace(scale, ticks=[(value, label(value)) for value in chosen])


def _spread(values: Sequence[float], scale: Scale, gap: float) -> list[float]:
    kept: list[float] = []
    for value in values:
        if not kept or abs(scale(value) - scale(kept[-1])) >= gap:
            kept.append(value)
    return kept


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def percent(share: float) -> str:
    """A share in percent as short as three digits allow: 44.1%, 10%, 0.083%; near 100% as many as it takes."""
    return f"{100 * share:.{3 if share < 0.99 else 6}g}%"


def _attribute(value: str | float) -> str:
    if isinstance(value, str):
        return escape(value)
    return f"{value:.1f}".removesuffix(".0")


def _round_step(step: float) -> float:
    """The next of 1, 2, 2.5 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9))


def _tick(value: float, digits: int) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:,.0f}k"
    extra = f"{value:.{digits + 1}f}"
    return (extra if extra[-1] != "0" else f"{value:.{digits}f}").replace("-", "−")
