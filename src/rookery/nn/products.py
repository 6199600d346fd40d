"""Products of activations and weights: one matrix product, or one for many networks side by side.

On a CPU large ones go to oneDNN directly. torch hands float32 products to MKL, which on AMD processors with AVX-512
runs at half the rate of oneDNN (Zen 5, two cores: 175 against 400 GFLOP/s); bfloat16 ones go to oneDNN either way, but
batched ones at two thirds of the rate of single ones, and views of weights are cast slowly. What was measured:
``benchmarks/ranker_step.py``. A compiled or exported network has torch's own operators.

Under autocast, training rounds the operands of every product, as torch does. Scoring on a CPU rounds those of
``rough`` layers alone and gives float32: each rounded layer moves a logit by some 1e-3 of its own, and float32 costs
twice as much there, not fifteen times as on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Multiplications of a product from which on oneDNN gains more than its call costs (15 µs, MKL's 3 µs).
_MIN_SIZE = 1 << 21

Product = Callable[[Tensor, Tensor, Tensor, torch.dtype], Tensor]


def linear(x: Tensor, weight: Tensor, bias: Tensor, *, rough: bool = False) -> Tensor:
    """``x [batch, in]`` times ``weight [out, in]`` plus ``bias [out]`` → ``[batch, out]``."""
    return _in_precision(_linear, x, weight, bias, rough)


def wide_linear(x: Tensor, weight: Tensor, bias: Tensor, *, rough: bool = False) -> Tensor:
    """Layers side by side on one input: ``x [batch, in]``, ``weight [num, out, in]`` → ``[batch, num, out]``.

    One product of width ``num * out`` instead of ``num`` narrow ones.
    """
    num, out, _ = weight.shape
    return linear(x, weight.flatten(0, 1), bias.flatten(), rough=rough).view(-1, num, out)


def batched_linear(x: Tensor, weight: Tensor, bias: Tensor, *, rough: bool = False) -> Tensor:
    """Layers side by side, each on an input of its own: ``x [batch, num, in]`` → ``[batch, num, out]``.

    ``weight [num, out, in]``, ``bias [num, out]``. The result is a transposed view: its rows of one layer lie together.
    """
    return _in_precision(_batched_linear, x.transpose(0, 1), weight, bias, rough).transpose(0, 1)


def is_scoring(x: Tensor) -> bool:
    """Whether nothing is learned from a product of ``x``, and it runs as it is written, on a CPU."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def scoring_dtype(rough: bool) -> torch.dtype:
    """In what a scoring CPU multiplies."""
    return torch.get_autocast_dtype("cpu") if rough and torch.is_autocast_enabled("cpu") else torch.float32


def multiply(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """``left [m, k]`` times ``right [n, k]`` transposed, plus ``bias [n]``, by oneDNN; no gradients.

    ``right`` may be a weight that oneDNN has laid out.
    """
    if left.dtype == torch.bfloat16 and bias is None:
        return torch.mm(left, right.t())  # oneDNN as well, and without a copy of a transposed left
    # A transposed matrix is as good on the right, but for one with gaps oneDNN has nothing better than three loops.
    if not right.is_mkldnn and not right.is_contiguous() and not right.t().is_contiguous():
        right = right.contiguous()
    out: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")  # noqa: SLF001  # no other door
    return out


@lru_cache
def has_onednn() -> bool:
    """Whether large products are oneDNN's on this machine."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and torch.backends.cpu.get_cpu_capability() == "AVX512"


def _in_precision(product: Product, x: Tensor, weight: Tensor, bias: Tensor, rough: bool) -> Tensor:
    """``product`` in the type that autocast asks for, or that scoring takes."""
    if not torch.is_autocast_enabled("cpu"):
        return product(x, weight, bias, torch.float32)
    if not is_scoring(x):
        return product(x, weight, bias, torch.get_autocast_dtype("cpu"))
    dtype = scoring_dtype(rough)
    with torch.autocast("cpu", enabled=False):
        return product(x.to(dtype), weight.to(dtype), bias.to(dtype), dtype).float()


def _linear(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    if not _suits_onednn(x, weight):
        return functional.linear(x, weight, bias)
    out: Tensor = _OneDnnLinear.apply(x, weight, bias, dtype)  # type: ignore[no-untyped-call]
    return out


def _batched_linear(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """``x [num, batch, in]`` → ``[num, batch, out]``."""
    if not _suits_onednn(x[0], weight[0]):
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
    out: Tensor = _OneDnnBatchedLinear.apply(x, weight, bias, dtype)  # type: ignore[no-untyped-call]
    return out


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether ``x [batch, in]`` times ``weight [out, in]`` is faster there.

    A matter of shapes and machine alone, so that equal runs stay equal.
    """
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.numel() * weight.shape[0] >= _MIN_SIZE
        and {x.dtype, weight.dtype} <= {torch.float32, torch.bfloat16}
        and has_onednn()
    )


class _OneDnnLinear(torch.autograd.Function):
    """``linear`` in ``dtype``; gradients come in the types of what they are gradients of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtypes = x.dtype, weight.dtype, bias.dtype
        x, weight = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.dtypes
        wanted_x, wanted_weight, wanted_bias, _ = ctx.needs_input_grad
        return (
            multiply(gradient, weight.t()).to(to_x) if wanted_x else None,
            multiply(gradient.t(), x.t()).to(to_weight) if wanted_weight else None,
            gradient.sum(0, dtype=to_bias) if wanted_bias else None,
            None,
        )


class _OneDnnBatchedLinear(torch.autograd.Function):
    """The same over ``x [num, batch, in]`` → ``[num, batch, out]``; oneDNN takes one matrix at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtypes = x.dtype, weight.dtype, bias.dtype
        x, weight = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, weight)
        return torch.stack([multiply(*each) for each in zip(x, weight, bias.to(dtype), strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.dtypes
        wanted_x, wanted_weight, wanted_bias, _ = ctx.needs_input_grad
        for_x = ((g, w.t()) for g, w in zip(gradient, weight, strict=True))
        for_weight = ((g.t(), a.t()) for g, a in zip(gradient, x, strict=True))
        return (
            _stacked(for_x, x.shape, to_x) if wanted_x else None,
            _stacked(for_weight, weight.shape, to_weight) if wanted_weight else None,
            gradient.sum(1, dtype=to_bias) if wanted_bias else None,
            None,
        )


def _stacked(pairs: Iterable[tuple[Tensor, Tensor]], shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Products of pairs one behind the other, cast on the way."""
    out = torch.empty(shape, dtype=dtype)
    for each, (left, right) in zip(out, pairs, strict=True):
        each.copy_(multiply(left, right))
    return out
