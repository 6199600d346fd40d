"""Layer normalisation that also holds with an epsilon of 0."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rookery.nn.config import LayerNormConfig


class LayerNorm(nn.Module):
    """``(x - mean) / sqrt(variance + epsilon)`` of each row of ``[batch, width]``; ``scale`` and ``center`` learn a
    factor and an offset for each column.

    With ``epsilon`` 0 a row of equal numbers becomes zeros (before the offset); the formula has 0 / 0 there.
    """

    def __init__(self, config: LayerNormConfig, width: int) -> None:
        super().__init__()
        self.epsilon = config.epsilon
        self.weight = nn.Parameter(torch.ones(width)) if config.scale else None
        self.bias = nn.Parameter(torch.zeros(width)) if config.center else None

    def forward(self, x: Tensor) -> Tensor:
        if self.epsilon > 0:
            return functional.layer_norm(x, x.shape[1:], self.weight, self.bias, self.epsilon)
        normed = _standardised(x) if x.shape[1] > 0 else x
        if self.weight is not None:
            normed = normed * self.weight
        return normed if self.bias is None else normed + self.bias


def _standardised(x: Tensor) -> Tensor:
    """Rows with mean 0 and variance 1; zeros, with zero gradient, where all numbers of a row are the same."""
    deviation = x - x.mean(dim=1, keepdim=True)
    # The mean of equal numbers may be off by rounding, so their deviation from it says nothing; their range does.
    varies = x.amax(dim=1, keepdim=True) > x.amin(dim=1, keepdim=True)
    # Divided by the largest first: squares of deviations below 1e-19 or above 1e19 have no place in float32.
    unit = deviation / deviation.abs().amax(dim=1, keepdim=True).detach().masked_fill(~varies, 1.0)
    variance = unit.square().mean(dim=1, keepdim=True).masked_fill(~varies, 1.0)
    return (unit * variance.rsqrt()).masked_fill(~varies, 0.0)
