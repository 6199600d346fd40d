"""Optimizers of dense parameters: torch's own, and row-wise Adagrad, which torch does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from rookery.optim.config import Adagrad, Adam, OptimizerConfig, Sgd
from rookery.optim.schedules import optimizer_schedule


def make_dense_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a config, at the rate of its schedule's first step."""
    chosen = config.chosen
    rate = optimizer_schedule(config)(0)
    if isinstance(chosen, Sgd):
        return torch.optim.SGD(parameters, lr=rate, momentum=chosen.momentum)
    if isinstance(chosen, Adagrad):
        return torch.optim.Adagrad(parameters, lr=rate, eps=chosen.eps)
    if isinstance(chosen, Adam):
        return torch.optim.Adam(parameters, lr=rate, betas=chosen.betas, eps=chosen.eps, fused=True)
    return DenseRowwiseAdagrad(parameters, lr=rate, eps=chosen.eps)


class DenseRowwiseAdagrad(torch.optim.Optimizer):
    """``s += mean(g²)`` per row, ``w -= lr * g / (sqrt(s) + eps)``; parameters are ``[rows, dim]``."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, eps: float) -> None:
        super().__init__(parameters, {"lr": lr, "eps": eps})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["sum"] = torch.zeros(parameter.shape[0], device=parameter.device)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step; a closure is refused, since none of ours needs the loss again."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    total = self.state[parameter]["sum"].add_(parameter.grad.square().mean(1))
                    scale = total.sqrt().add_(group["eps"]).reciprocal_().masked_fill_(total == 0, 0.0)
                    parameter.addcmul_(parameter.grad, scale.unsqueeze(1), value=-group["lr"])
