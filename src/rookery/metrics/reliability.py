"""What diagrams show of predictions: mean label against mean prediction, and how values lie by label."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rookery.metrics.runs import Runs

HISTOGRAM_BINS = 40


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows whose predictions lie in ``[low, high]``.

    ``count`` is how many rows of weight one would say as much: ``(Σ w)² / Σ w²``.
    """

    low: float
    high: float
    mean_prediction: float
    ctr: float
    count: float


@dataclass(frozen=True)
class Histogram:
    """Weight of the rows of each label, in bins of equal width; bin ``i`` begins at ``low + i * width``."""

    low: float
    width: float
    positives: tuple[float, ...]
    negatives: tuple[float, ...]


def reliability(p: Tensor, y: Tensor, weights: Tensor, num_bins: int) -> list[ReliabilityBin]:
    """Up to ``num_bins`` bins of about equal weight, by prediction; equal predictions share a bin.

    Bins of equal weight, other than those of ECE: where a label is rare, nearly all predictions lie in one bin of equal
    width. ``p`` (float32), ``y`` (bool) and ``weights`` are ``[rows]``; rows without weight do not count.
    """
    p, order = torch.sort(p[weights > 0], stable=True)
    y, weights = y[weights > 0][order], weights[weights > 0][order].double()
    if not len(p):
        return []
    ties = Runs.of(p)
    mass = ties.sums(weights)
    middle = (mass.cumsum(0) - mass / 2) / mass.sum()
    bins = Runs.of((middle * num_bins).long()[ties.numbers])
    weight, squares = bins.sums(weights), bins.sums(weights**2)
    means = (bins.sums(weights * p), bins.sums(weights * y))
    columns = (p[bins.starts], p[bins.ends - 1], means[0] / weight, means[1] / weight, weight**2 / squares)
    return [ReliabilityBin(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def histogram(values: Tensor, y: Tensor, weights: Tensor) -> Histogram:
    """40 bins between the least and the greatest of ``values``. Shapes as in ``reliability``."""
    kept = weights > 0
    values = values[kept].double()
    low, high = (values.min().item(), values.max().item()) if len(values) else (0.0, 0.0)
    width = (high - low or 1.0) / HISTOGRAM_BINS
    bins = ((values - low) / width).long().clamp(0, HISTOGRAM_BINS - 1)
    label, weight = y[kept], weights[kept].double()
    by_label = [torch.bincount(bins[chosen], weight[chosen], HISTOGRAM_BINS).tolist() for chosen in (label, ~label)]
    return Histogram(low, width, tuple(by_label[0]), tuple(by_label[1]))
