"""Metrics of one binary prediction, under many weightings of the same rows at once.

Each class does once what no weighting changes (sorting, sums by user) and answers ``under(multiplicity)``, where
``multiplicity [users, R]`` (float64) says how often each weighting counts each user. Answers are float64 ``[R]``, NaN
where a metric is not defined. ``docs/ranker-evaluation.md`` has the formulas on one page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rookery.metrics.runs import Runs, running_totals

# Half the spacing of float32 below 1: a saturated probability costs at most 16.6 nats, not infinitely many.
EPSILON = 2.0**-24


@dataclass(frozen=True)
class Predictions:
    """Rows of one task, all ``[rows]``: float32 probability, label (bool), float64 weight, user number from 0."""

    p: Tensor
    y: Tensor
    weights: Tensor
    users: Tensor
    num_users: int

    def by_user(self, columns: Sequence[Tensor]) -> Tensor:
        """Float64 ``[users, len(columns)]``: the weighted sums of columns ``[rows]`` over each user's rows."""
        values = self.weights.unsqueeze(1) * torch.stack([column.double() for column in columns], dim=1)
        return values.new_zeros(self.num_users, len(columns)).index_add_(0, self.users, values)


class Statistic(Protocol):
    """What has been made ready of some rows."""

    def under(self, multiplicity: Tensor) -> dict[str, Tensor]:
        """Metrics by name, ``[R]`` each, where users count as ``multiplicity [users, R]`` says."""
        ...


@dataclass(frozen=True)
class SumMetrics:
    """``ctr``, ``mean_prediction``, ``calibration``, ``ece``, ``logloss`` and ``rce``: all that sums over rows give.

    ECE is that of Guo et al. 2017: |mean prediction − mean label| in bins of equal width, averaged by weight.
    """

    per_user: Tensor  # [users, 4 + num_bins]

    @classmethod
    def of(cls, rows: Predictions, num_bins: int) -> SumMetrics:
        p = rows.p.double()
        bins = (p * num_bins).long().clamp(max=num_bins - 1)
        gaps = p.new_zeros(num_bins, len(p)).scatter_(0, bins.unsqueeze(0), (p - rows.y.double()).unsqueeze(0))
        return cls(rows.by_user([torch.ones_like(p), rows.y, p, losses(p, rows.y), *gaps]))

    def under(self, multiplicity: Tensor) -> dict[str, Tensor]:
        weight, labels, predictions, loss, *gaps = (multiplicity.T @ self.per_user).unbind(1)
        ctr, logloss = ratio(labels, weight), ratio(loss, weight)
        return {
            "ctr": ctr,
            "mean_prediction": ratio(predictions, weight),
            "calibration": ratio(predictions, labels),
            "ece": ratio(torch.stack(gaps).abs().sum(0), weight),
            "logloss": logloss,
            "rce": relative_cross_entropy(logloss, ctr),
        }


@dataclass(frozen=True)
class ScaledLoss:
    """``nrce``: RCE of the predictions times one factor, which makes their mean the mean label."""

    rows: Predictions
    per_user: Tensor  # [users, 3]

    @classmethod
    def of(cls, rows: Predictions) -> ScaledLoss:
        return cls(rows, rows.by_user([torch.ones_like(rows.p), rows.y, rows.p]))

    def under(self, multiplicity: Tensor) -> dict[str, Tensor]:
        rows = self.rows
        weight, labels, predictions = (multiplicity.T @ self.per_user).unbind(1)
        scaled = rows.p.double().unsqueeze(1) * ratio(labels, predictions)  # [rows, R]
        weights = multiplicity[rows.users] * rows.weights.unsqueeze(1)
        logloss = ratio((weights * losses(scaled, rows.y.unsqueeze(1))).sum(0), weight)
        return {"nrce": relative_cross_entropy(logloss, ratio(labels, weight))}


@dataclass(frozen=True)
class RankingMetrics:
    """``auroc`` (Mann-Whitney, ties one half) and ``prauc`` (average precision as scikit-learn defines it).

    Only ties that hold a positive add to either: one cumulative sum over all rows, the rest over positives alone.
    """

    weights: Tensor  # [rows] from the highest prediction down, and so on
    users: Tensor  # [rows]
    positives: Tensor  # [positives] places of positives in that order
    tie_of_positive: Tensor  # [positives]
    starts: Tensor  # [ties with a positive]
    ends: Tensor  # [ties with a positive]
    classes: Tensor  # [users, 2] weights of positives and of negatives

    @classmethod
    def of(cls, rows: Predictions) -> RankingMetrics:
        order = torch.argsort(rows.p, descending=True, stable=True)
        ties = Runs.of(rows.p[order])
        positives = rows.y[order].nonzero().squeeze(1)
        holding, tie = torch.unique_consecutive(ties.numbers[positives], return_inverse=True)
        return cls(
            rows.weights[order],
            rows.users[order],
            positives,
            tie,
            ties.starts[holding],
            ties.ends[holding],
            rows.by_user([rows.y, ~rows.y]),
        )

    def under(self, multiplicity: Tensor) -> dict[str, Tensor]:
        weights = multiplicity[self.users] * self.weights.unsqueeze(1)  # [rows, R]
        gained = weights.new_zeros(len(self.starts), weights.shape[1])  # weight of the positives of each tie
        gained.index_add_(0, self.tie_of_positive, weights[self.positives])
        found, passed = gained.cumsum(0), running_totals(weights)
        above, through = passed[self.starts], passed[self.ends]
        num_positive, num_negative = (multiplicity.T @ self.classes).unbind(1)
        negatives_above = (above - (found - gained) + through - found) / 2  # one of the same tie counts one half
        wins = (gained * (num_negative - negatives_above)).sum(0)
        # A tie without weight in a replicate gains nothing; its precision may be 0 / 0.
        precision = torch.where(gained > 0, found / through, 0.0)
        return {
            "auroc": ratio(wins, num_positive * num_negative),
            "prauc": ratio((gained * precision).sum(0), num_positive),
        }


def auroc(p: Tensor, y: Tensor, weights: Tensor) -> float:
    """AUROC of one task: float32 ``p``, bool ``y`` and ``weights``, all ``[rows]``; NaN without both classes."""
    rows = Predictions(p, y, weights.double(), torch.zeros(len(p), dtype=torch.int64), 1)
    return RankingMetrics.of(rows).under(torch.ones(1, 1, dtype=torch.float64))["auroc"].item()


def losses(p: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy in nats of probabilities held within [ε, 1 − ε]."""
    return -torch.where(y, p, 1 - p).clamp(EPSILON, 1 - EPSILON).log()


def relative_cross_entropy(logloss: Tensor, ctr: Tensor) -> Tensor:
    """``100 (1 − logloss / H)`` with ``H`` the loss of always predicting ``ctr``; NaN where all labels are alike."""
    entropy = -(torch.xlogy(ctr, ctr) + torch.xlogy(1 - ctr, 1 - ctr))
    return 100 * (1 - ratio(logloss, entropy))


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, NaN where the denominator is zero."""
    return torch.where(denominator != 0, numerator / denominator, torch.nan)
