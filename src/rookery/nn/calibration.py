"""From what a network says to probabilities that come true."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

_MAX_STEPS = 100
_TOLERANCE = 1e-12  # of a mean probability, as a share of the mean label
_MIN_SHARE = 1e-6
_LOSS_ROUNDING = 1e-14


@dataclass(frozen=True)
class CalibrationMap:
    """``sigmoid(scale * logit + offset)``.

    ``method`` says what could be fitted: ``bias`` is the offset alone, ``identity`` nothing, for want of positives or
    of negatives.
    """

    scale: float
    offset: float
    method: Literal["platt", "bias", "identity"]

    def __call__(self, logits: Tensor) -> Tensor:
        """Calibrated logits, of any shape."""
        return self.scale * logits + self.offset


def fit_platt(logits: Tensor, labels: Tensor, weights: Tensor, method: Literal["platt", "bias"]) -> CalibrationMap:
    """The maximum-likelihood map for logits, labels in {0, 1} and weights from 0, each ``[N]`` (Platt 1999).

    In float64 by Newton's method, so the same input gives the same map. Afterwards the weighted mean of the
    probabilities is that of the labels. ``platt`` falls back to ``bias`` where its scale is not a finite positive
    number: a threshold parts the labels without fault, or the logits rank them the wrong way round or not at all.
    """
    counted = weights > 0
    logits, labels, weights = (x[counted].double() for x in (logits, labels, weights))
    positives, negatives = logits[labels > 0.5], logits[labels <= 0.5]
    if not (len(positives) and len(negatives)):
        return CalibrationMap(1.0, 0.0, "identity")
    weights = weights / weights.sum()
    overlap = bool((negatives.max() > positives.min()) & (positives.max() > negatives.min()))
    if method == "platt" and overlap:
        scale, offset = _fit_scale_and_offset(logits, labels, weights)
        if scale > 0:
            return CalibrationMap(scale, offset, "platt")
    return CalibrationMap(1.0, _fit_offset(logits, labels, weights), "bias")


def _fit_scale_and_offset(logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[float, float]:
    """Newton's method with backtracking, on logits of mean 0 and deviation 1; ``weights`` sum to 1."""
    centre = weights @ logits
    spread = (weights @ (logits - centre).square()).sqrt()
    design = torch.stack([(logits - centre) / spread, torch.ones_like(logits)])  # [2, N]
    share = weights @ labels
    point = torch.stack([torch.zeros_like(share), torch.logit(share)])

    def loss(calibrated: Tensor) -> Tensor:
        return weights @ (functional.softplus(calibrated) - labels * calibrated)

    for _ in range(_MAX_STEPS):
        probability = torch.sigmoid(point @ design)
        gradient = design @ (weights * (probability - labels))
        if gradient.abs().max() <= _TOLERANCE * share:
            break
        curvature = (design * (weights * probability * (1 - probability))) @ design.T
        step = torch.linalg.solve(curvature, gradient)
        point = _descend(loss, design, point, step, gradient @ step)
    scale = point[0] / spread
    return scale.item(), (point[1] - scale * centre).item()


def _descend(
    loss: Callable[[Tensor], Tensor], design: Tensor, point: Tensor, step: Tensor, decrement: Tensor
) -> Tensor:
    """``point`` less the largest of ``step``, ``step / 2``, ... that lowers the loss as its slope promises."""
    before = loss(point @ design)
    share = 1.0
    while share > _MIN_SHARE:
        moved = point - share * step
        # The last steps gain less than the rounding of the loss.
        if loss(moved @ design) <= before - 1e-4 * share * decrement + _LOSS_ROUNDING * before:
            return moved
        share /= 2
    return point


def _fit_offset(logits: Tensor, labels: Tensor, weights: Tensor) -> float:
    """The root of ``mean(sigmoid(logits + offset)) - mean(labels)``: Newton's method, bisection where it leaves."""
    share = (weights @ labels).item()
    odds = math.log(share / (1 - share))
    low, high = odds - logits.max().item(), odds - logits.min().item()  # all probabilities at most, at least, share
    offset = min(max(0.0, low), high)
    for _ in range(_MAX_STEPS):
        probability = torch.sigmoid(logits + offset)
        excess = (weights @ probability).item() - share
        if abs(excess) <= _TOLERANCE * share:
            break
        low, high = (low, offset) if excess > 0 else (offset, high)
        slope = (weights @ (probability * (1 - probability))).item()
        offset = offset - excess / slope if slope > 0 else high + 1
        if not low < offset < high:
            offset = (low + high) / 2
    return offset
