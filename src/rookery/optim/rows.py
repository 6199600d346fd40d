"""Optimizers that move a few rows of a large table in place.

Each rule takes distinct row numbers and the summed gradient of each of those rows. Arithmetic is float32
whatever the dtype of the table; a half-precision table is rounded stochastically, so that updates smaller
than half a unit in the last place move it in expectation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from rookery.optim.config import Adagrad, Adam, OptimizerConfig, RowwiseAdagrad, Sgd


class RowOptimizer(Protocol):
    """The rule of one table."""

    def initial_state(self, num_rows: int, dim: int) -> dict[str, Tensor]:
        """Zero state by name: ``[num_rows, dim]``, ``[num_rows]`` or a scalar."""
        ...

    def step(self, state: Mapping[str, Tensor], rows: Tensor, gradient: Tensor, learning_rate: float) -> Tensor:
        """The change ``[len(rows), dim]`` to add to the rows; updates ``state`` in place, may spend ``gradient``."""
        ...


class _Sgd:
    def __init__(self, config: Sgd) -> None:
        self._momentum = config.momentum

    def initial_state(self, num_rows: int, dim: int) -> dict[str, Tensor]:
        return {"momentum": torch.zeros(num_rows, dim)} if self._momentum else {}

    def step(self, state: Mapping[str, Tensor], rows: Tensor, gradient: Tensor, learning_rate: float) -> Tensor:
        if self._momentum:
            velocity = state["momentum"].index_select(0, rows).mul_(self._momentum).add_(gradient)
            state["momentum"].index_copy_(0, rows, velocity)
            gradient = velocity
        return gradient.mul_(-learning_rate)


class _Adagrad:
    def __init__(self, config: Adagrad) -> None:
        self._eps = config.eps

    def initial_state(self, num_rows: int, dim: int) -> dict[str, Tensor]:
        return {"sum": torch.zeros(num_rows, dim)}

    def step(self, state: Mapping[str, Tensor], rows: Tensor, gradient: Tensor, learning_rate: float) -> Tensor:
        total = state["sum"].index_select(0, rows).addcmul_(gradient, gradient)
        state["sum"].index_copy_(0, rows, total)
        return _scaled(gradient, total, learning_rate, self._eps)


class _RowwiseAdagrad:
    def __init__(self, config: RowwiseAdagrad) -> None:
        self._eps = config.eps

    def initial_state(self, num_rows: int, dim: int) -> dict[str, Tensor]:
        return {"sum": torch.zeros(num_rows)}

    def step(self, state: Mapping[str, Tensor], rows: Tensor, gradient: Tensor, learning_rate: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(gradient, dim=1).square_().div_(gradient.shape[1])
        total = state["sum"].index_select(0, rows).add_(mean_square)
        state["sum"].index_copy_(0, rows, total)
        return _scaled(gradient, total.unsqueeze(1), learning_rate, self._eps)


class _Adam:
    def __init__(self, config: Adam) -> None:
        self._config = config

    def initial_state(self, num_rows: int, dim: int) -> dict[str, Tensor]:
        moments = {name: torch.zeros(num_rows, dim) for name in ("exp_avg", "exp_avg_sq")}
        return {**moments, "step": torch.zeros((), dtype=torch.int64)}

    def step(self, state: Mapping[str, Tensor], rows: Tensor, gradient: Tensor, learning_rate: float) -> Tensor:
        beta1, beta2 = self._config.betas
        num_steps = int(state["step"].add_(1))
        first = state["exp_avg"].index_select(0, rows).lerp_(gradient, 1 - beta1)
        second = state["exp_avg_sq"].index_select(0, rows).mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        state["exp_avg"].index_copy_(0, rows, first)
        state["exp_avg_sq"].index_copy_(0, rows, second)
        corrected = second.div_(1 - beta2**num_steps).sqrt_().add_(self._config.eps)
        return first.div_(corrected).mul_(-learning_rate / (1 - beta1**num_steps))


def _scaled(gradient: Tensor, total: Tensor, learning_rate: float, eps: float) -> Tensor:
    """``-learning_rate * gradient / (sqrt(total) + eps)``; 0 where the sum, and so the gradient, is 0 (eps may be)."""
    scale = total.sqrt().add_(eps).reciprocal_().mul_(-learning_rate)
    return gradient.mul_(scale.masked_fill_(total == 0, 0.0))


def make_row_optimizer(config: OptimizerConfig) -> RowOptimizer:
    """The rule of an optimizer config."""
    chosen = config.chosen
    if isinstance(chosen, Sgd):
        return _Sgd(chosen)
    if isinstance(chosen, Adagrad):
        return _Adagrad(chosen)
    if isinstance(chosen, RowwiseAdagrad):
        return _RowwiseAdagrad(chosen)
    return _Adam(chosen)


def stochastic_round(values: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Round float32 ``values`` to bf16 or fp16, up or down with the probability that keeps the expectation.

    Random bits are added below the last kept bit and the rest is cut off. Exact for bf16 and for fp16 in its
    normal range (magnitudes from 6e-5); below it fp16 rounds to nearest.
    """
    num_dropped = {torch.bfloat16: 16, torch.float16: 13}[dtype]
    noise = torch.randint(1 << num_dropped, values.shape, dtype=torch.int32, generator=generator, device=values.device)
    kept = values.view(torch.int32).add(noise).bitwise_and_(-(1 << num_dropped))
    return kept.view(torch.float32).to(dtype)
