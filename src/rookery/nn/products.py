"""Products of activations and weights: one matrix product, or one for many networks side by side.

torch hands float32 products to MKL. On AMD processors with AVX-512, MKL runs at half the rate of oneDNN, which torch
carries too (Zen 5, two cores: 175 against 400 GFLOP/s; ``benchmarks/ranker_step.py`` measures both), so that large
ones go there. A compiled or exported network has torch's own operators.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Multiplications of a product from which on oneDNN gains more than its call costs (15 µs, MKL's 3 µs).
_MIN_SIZE = 1 << 23


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x [batch, in]`` times ``weight [out, in]`` plus ``bias [out]`` → ``[batch, out]``."""
    if _suits_onednn(x, weight):
        out: Tensor = _OneDnnLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return out
    return functional.linear(x, weight, bias)


def wide_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layers side by side on one input: ``x [batch, in]``, ``weight [num, out, in]`` → ``[batch, num, out]``.

    One product of width ``num * out`` instead of ``num`` narrow ones.
    """
    num, out, _ = weight.shape
    return linear(x, weight.flatten(0, 1), bias.flatten()).view(-1, num, out)


def batched_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layers side by side, each on an input of its own: ``x [batch, num, in]`` → ``[batch, num, out]``.

    ``weight [num, out, in]``, ``bias [num, out]``. The result is a transposed view: its rows of one layer lie together.
    """
    if _suits_onednn(x[:, 0], weight[0]):
        out: Tensor = _OneDnnBatchedLinear.apply(x.transpose(0, 1), weight, bias)  # type: ignore[no-untyped-call]
        return out.transpose(0, 1)
    return torch.baddbmm(bias.unsqueeze(1), x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether ``x [batch, in]`` times ``weight [out, in]`` is faster there; a matter of shapes and machine alone."""
    return (
        not torch.compiler.is_compiling()
        and x.numel() * weight.shape[0] >= _MIN_SIZE
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and _has_onednn()
    )


@lru_cache
def _has_onednn() -> bool:
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and torch.backends.cpu.get_cpu_capability() == "AVX512"


def _multiply(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """``left [m, k]`` times ``right [n, k]`` transposed, plus ``bias [n]``."""
    # A transposed matrix is as good on the right, but for one with gaps oneDNN has nothing better than three loops.
    is_dense = right.is_contiguous() or right.t().is_contiguous()
    right = right if is_dense else right.contiguous()
    out: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")  # noqa: SLF001  # no other door
    return out


class _OneDnnLinear(torch.autograd.Function):
    """``linear`` with its two gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wanted_x, wanted_weight, wanted_bias = ctx.needs_input_grad
        return (
            _multiply(gradient, weight.t()) if wanted_x else None,
            _multiply(gradient.t(), x.t()) if wanted_weight else None,
            gradient.sum(0) if wanted_bias else None,
        )


class _OneDnnBatchedLinear(torch.autograd.Function):
    """Batched ``linear`` over ``x [num, batch, in]`` → ``[num, batch, out]``; oneDNN takes one matrix at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.stack([_multiply(*each) for each in zip(x, weight, bias, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wanted_x, wanted_weight, wanted_bias = ctx.needs_input_grad
        return (
            torch.stack([_multiply(g, w.t()) for g, w in zip(gradient, weight, strict=True)]) if wanted_x else None,
            torch.stack([_multiply(g.t(), a.t()) for g, a in zip(gradient, x, strict=True)]) if wanted_weight else None,
            gradient.sum(1) if wanted_bias else None,
        )
