"""Losses with hand-written gradients, over one positive and N negatives an edge.

Each takes the score of the positive ``[E]`` and those of the negatives ``[E, N]``, where a masked negative is
``-inf``, and returns the loss of every edge ``[E]`` with its derivatives. ``s`` is the score of the positive, ``n_j``
of a negative:

    bce                softplus(-s) + w mean_j softplus(n_j)
    softmax            log(exp(s/τ) + sum_j exp(n_j/τ - log E_j)) - s/τ
                       E_j: expected count of the candidate among the negatives (log-Q correction; 1 without it)
    margin_ranking     mean_j max(0, margin + n_j - s)
    self_adversarial   softplus(-(s + margin)) + sum_j p_j softplus(n_j + margin),  p = softmax(α n) held constant
                       (Sun et al. 2019)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus


@dataclass(frozen=True)
class LossValue:
    """Loss ``[E]`` and its derivatives by the positive ``[E]`` and the negative scores ``[E, N]``, times the weight."""

    loss: Tensor
    grad_positive: Tensor
    grad_negatives: Tensor


class Loss(Protocol):
    def __call__(self, positive: Tensor, negatives: Tensor, weight: Tensor | float = 1.0) -> LossValue:
        """``weight`` (``[E]`` or a number) multiplies the derivatives alone; ``negatives`` may be overwritten."""
        ...


@dataclass(frozen=True)
class Bce:
    negative_weight: float = 1.0

    def __call__(self, positive: Tensor, negatives: Tensor, weight: Tensor | float = 1.0) -> LossValue:
        share = self.negative_weight / max(1, negatives.shape[1])
        loss = softplus(negatives).sum(1).mul_(share).add_(softplus(-positive))
        grad_positive = torch.sigmoid(-positive).mul_(weight).neg_()
        return LossValue(loss, grad_positive, negatives.sigmoid_().mul_(_column(weight, share)))


@dataclass(frozen=True)
class Softmax:
    temperature: float = 1.0

    def __call__(self, positive: Tensor, negatives: Tensor, weight: Tensor | float = 1.0) -> LossValue:
        scale = 1.0 / self.temperature
        own = positive * scale
        scaled = negatives.mul_(scale) if scale != 1.0 else negatives
        peak = torch.maximum(scaled.amax(1), own) if scaled.shape[1] else own
        weights = scaled.sub_(peak.unsqueeze(1)).exp_()
        own_weight = (own - peak).exp_()
        total = weights.sum(1).add_(own_weight)
        loss = total.log().add_(peak).sub_(own)
        grad_positive = own_weight.div_(total).sub_(1.0).mul_(weight).mul_(scale)
        return LossValue(loss, grad_positive, weights.mul_(total.reciprocal_().mul_(weight).mul_(scale).unsqueeze(1)))


@dataclass(frozen=True)
class MarginRanking:
    margin: float = 1.0

    def __call__(self, positive: Tensor, negatives: Tensor, weight: Tensor | float = 1.0) -> LossValue:
        share = 1.0 / max(1, negatives.shape[1])
        violations = negatives.sub_((positive - self.margin).unsqueeze(1)).clamp_min_(0.0)
        loss = violations.sum(1).mul_(share)
        grad = violations.sign_().mul_(_column(weight, share))
        return LossValue(loss, -grad.sum(1), grad)


@dataclass(frozen=True)
class SelfAdversarial:
    margin: float = 0.0
    alpha: float = 1.0

    def __call__(self, positive: Tensor, negatives: Tensor, weight: Tensor | float = 1.0) -> LossValue:
        shifted_positive = positive + self.margin
        loss = softplus(-shifted_positive)
        grad_positive = torch.sigmoid(-shifted_positive).mul_(weight).neg_()
        # With alpha 0 a masked negative is 0 times -inf: NaN, and still masked.
        scaled = (negatives * self.alpha).nan_to_num_(nan=-torch.inf, neginf=-torch.inf)
        # A row of -inf has no negatives: its softmax is NaN and counts as 0.
        weights = torch.softmax(scaled, dim=1).nan_to_num_(0.0)
        shifted = negatives.add_(self.margin)
        loss.add_((weights * softplus(shifted)).sum(1))
        return LossValue(loss, grad_positive, weights.mul_(shifted.sigmoid_()).mul_(_column(weight, 1.0)))


def _column(weight: Tensor | float, share: float) -> Tensor | float:
    """``weight * share``, to multiply ``[E, N]`` with."""
    return (weight * share).unsqueeze(1) if isinstance(weight, Tensor) else weight * share
