"""Experts mixed by gates, one mixture for each task: MMoE and PLE.

All experts of a level run as batched products; a gate is a softmax over experts of a linear map, without a bias as in
both papers. Outputs are ``[tasks, batch, out]``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from rookery.nn.config import MmoeConfig, PleConfig
from rookery.nn.mlp import StackedMlp


class Mmoe(nn.Module):
    """``[batch, in] -> [tasks, batch, out]``: ``y_t = sum_e softmax(G_t x)_e f_e(x)`` (Ma et al. 2018)."""

    per_task: ClassVar[bool] = True
    out_features: int

    def __init__(self, config: MmoeConfig, in_features: int, num_tasks: int) -> None:
        super().__init__()
        self.experts = StackedMlp(config.expert, config.num_experts, in_features)
        self.gates = Gates(num_tasks, in_features, config.num_experts)
        self.out_features = self.experts.out_features

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gates(x)  # [batch, tasks, experts]
        return torch.matmul(weights, self.experts(x)).transpose(0, 1)


class Ple(nn.Module):
    """``[batch, in] -> [tasks, batch, out]``: levels of experts (Tang et al. 2020)."""

    per_task: ClassVar[bool] = True
    out_features: int

    def __init__(self, config: PleConfig, in_features: int, num_tasks: int) -> None:
        super().__init__()
        widths = (in_features, *[config.expert.layer_sizes[-1]] * (config.num_levels - 1))
        last = config.num_levels - 1
        self.levels = nn.ModuleList(
            PleLevel(config, width, num_tasks, shares=level < last) for level, width in enumerate(widths)
        )
        self.out_features = config.expert.layer_sizes[-1]

    def forward(self, x: Tensor) -> Tensor:
        states = x
        for level in self.levels:
            states = level(states)
        return states.transpose(0, 1)


class PleLevel(nn.Module):
    """``[batch, tasks + 1, in] -> [batch, tasks + 1, out]``: the state of each task, then the shared one.

    A task's experts and its gate read its own state, shared experts and their gate the shared one. A task mixes its
    own experts and the shared ones, the shared state mixes all. The first level reads ``[batch, in]``, where all
    states are the same; the last (``shares`` false) gives no shared state: ``[batch, tasks, out]``.
    """

    def __init__(self, config: PleConfig, in_features: int, num_tasks: int, *, shares: bool) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.num_each, self.num_shared = config.num_task_experts, config.num_shared_experts
        num_experts = num_tasks * self.num_each + self.num_shared
        self.experts = StackedMlp(config.expert, num_experts, in_features)  # those of the tasks in turn, then shared
        self.gates = Gates(num_tasks, in_features, self.num_each + self.num_shared)
        self.shared_gate = Gates(1, in_features, num_experts) if shares else None

    def forward(self, states: Tensor) -> Tensor:
        same = states.dim() == 2
        experts = self.experts(states if same else self._inputs(states))  # [batch, experts, out]
        mixed = self._mix_for_tasks(self.gates(states if same else states[:, :-1]), experts)
        if self.shared_gate is None:
            return mixed
        weights = self.shared_gate(states if same else states[:, -1:])  # [batch, 1, experts]
        return torch.cat([mixed, torch.matmul(weights, experts)], dim=1)

    def _inputs(self, states: Tensor) -> Tensor:
        """What each expert reads: ``[batch, tasks + 1, in] -> [batch, experts, in]``."""
        own = states[:, :-1].unsqueeze(2).expand(-1, -1, self.num_each, -1).flatten(1, 2)
        return torch.cat([own, states[:, -1:].expand(-1, self.num_shared, -1)], dim=1)

    def _mix_for_tasks(self, weights: Tensor, experts: Tensor) -> Tensor:
        """Weights ``[batch, tasks, own + shared]`` and all experts to ``[batch, tasks, out]``."""
        batch, _, out = experts.shape
        num_own = self.num_tasks * self.num_each
        own = experts[:, :num_own].view(batch, self.num_tasks, self.num_each, out)
        by_own = torch.matmul(weights[:, :, : self.num_each].unsqueeze(2), own).squeeze(2)
        return by_own + torch.matmul(weights[:, :, self.num_each :], experts[:, num_own:])


class Gates(nn.Module):
    """``num`` gates: ``[batch, in]``, read by all, or ``[batch, num, in]`` to weights ``[batch, num, experts]``."""

    def __init__(self, num: int, in_features: int, num_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num, num_experts, in_features))
        for weight in self.weight.detach():
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor) -> Tensor:
        num, experts, _ = self.weight.shape
        if x.dim() == 2:  # as one product
            logits = functional.linear(x, self.weight.flatten(0, 1)).view(-1, num, experts)
        else:
            logits = torch.bmm(x.transpose(0, 1), self.weight.transpose(1, 2)).transpose(0, 1)
        return torch.softmax(logits, dim=2)
