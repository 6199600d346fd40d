"""Products of activations and weights, as one matrix product or as one batched product for many networks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x [batch, in]`` times ``weight [out, in]`` plus ``bias [out]`` → ``[batch, out]``."""
    return functional.linear(x, weight, bias)


def wide_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layers side by side on one input: ``x [batch, in]``, ``weight [num, out, in]`` → ``[batch, num, out]``.

    One product of width ``num * out`` instead of ``num`` narrow ones.
    """
    num, out, _ = weight.shape
    return linear(x, weight.flatten(0, 1), bias.flatten()).unflatten(1, (num, out))


def batched_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layers side by side, each on an input of its own: ``x [batch, num, in]`` → ``[batch, num, out]``.

    ``weight [num, out, in]``, ``bias [num, out]``. The result is a transposed view: its rows of one layer lie together.
    """
    return torch.baddbmm(bias.unsqueeze(1), x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)
