"""The loss: weighted binary cross-entropy of each task's logit, and how tasks are weighed against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from rookery.nn.config import TaskModelConfig
from rookery.parallel.world import all_sum, world_size
from rookery.ranker.config import GradNormWeights, LossConfig

_SMALLEST_WEIGHT = 1e-3
"""GradNorm takes steps of a fixed size: a weight must not cross zero."""


class MultiTaskLoss(nn.Module):
    """The mean over tasks of each task's weight times its cross-entropy, a weighted mean over the rows."""

    def __init__(self, config: LossConfig, towers: Mapping[str, TaskModelConfig]) -> None:
        super().__init__()
        self.tasks = tuple(towers)
        positive = [1.0 if tower.pos_weight is None else tower.pos_weight for tower in towers.values()]
        self.register_buffer("pos_weight", torch.tensor(positive), persistent=False)
        self.weighting = _weighting(config, self.tasks)
        self.pos_weight: Tensor

    def forward(self, logits: Tensor, labels: Tensor, row_weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of ``logits`` and ``labels`` ``[batch, tasks]`` with ``row_weights`` ``[batch]``; losses by task."""
        # Of several processes each has a part of the sums: what they give adds up to the losses of the whole batch.
        total_weight = all_sum(row_weights.sum())
        by_task = task_losses(logits, labels, row_weights, self.pos_weight, total_weight)  # [tasks]
        loss = self.weighting(by_task).mean()
        return loss, {f"loss/{task}": by_task[index].detach() for index, task in enumerate(self.tasks)}

    def balance(self, shared: Tensor) -> Tensor:
        """The backbone's output as the towers shall see it: GradNorm watches its gradient, by task."""
        return self.weighting.watch(shared) if isinstance(self.weighting, GradNorm) else shared


def task_losses(
    logits: Tensor, labels: Tensor, row_weights: Tensor, pos_weight: Tensor, total_weight: Tensor
) -> Tensor:
    """``sum_b w_b (p_t y (-log σ(z)) + (1 - y) (-log(1 - σ(z)))) / total_weight`` by task ``[tasks]``, in float32."""
    losses = row_losses(logits, labels, row_weights, pos_weight)
    # At least the smallest number: rows that all weigh nothing have a loss of 0.
    return losses.sum(0) / total_weight.clamp(min=torch.finfo(torch.float32).tiny)


def row_losses(logits: Tensor, labels: Tensor, row_weights: Tensor, pos_weight: Tensor) -> Tensor:
    """``w_b (p_t y (-log σ(z)) + (1 - y) (-log(1 - σ(z))))`` ``[batch, tasks]``, in float32."""
    return functional.binary_cross_entropy_with_logits(
        logits.float(), labels, weight=row_weights.unsqueeze(1), pos_weight=pos_weight, reduction="none"
    )


class Fixed(nn.Module):
    """Weights that stay."""

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor(weights), persistent=False)
        self.weights: Tensor

    def forward(self, losses: Tensor) -> Tensor:
        """Weighted losses ``[tasks]``."""
        return self.weights * losses


class Uncertainty(nn.Module):
    """``exp(-s) loss + s / 2``: with cross-entropies as likelihoods, s is the log of the task's noise."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(num_tasks))

    def forward(self, losses: Tensor) -> Tensor:
        """Weighted losses ``[tasks]``."""
        return torch.exp(-self.log_variance) * losses + self.log_variance / (2 * world_size())


class GradNorm(nn.Module):
    """Weights move so that ``|∇ w_t L_t|`` tends to ``mean · r_t^α``, r_t the task's loss by its first one.

    The gradient is that at the backbone's output, all tasks in one backward pass, where the paper takes the last shared
    weights. A weight moves by ``learning_rate · sign(G_t - target_t) · (G_t / w_t) / mean G``, the paper's rule
    relative to the mean norm; then the weights are scaled to a mean of 1.
    """

    def __init__(self, config: GradNormWeights, num_tasks: int) -> None:
        super().__init__()
        self._config = config
        self.register_buffer("weights", torch.ones(num_tasks))
        self.register_buffer("first_losses", torch.full((num_tasks,), torch.nan))
        self.weights: Tensor
        self.first_losses: Tensor
        self._losses: Tensor | None = None

    def forward(self, losses: Tensor) -> Tensor:
        """Weighted losses ``[tasks]``."""
        self._losses = all_sum(losses.detach().clone())
        return self.weights.clone() * losses

    def watch(self, shared: Tensor) -> Tensor:
        """``shared`` ``[batch, dim]`` once for each task, ``[tasks, batch, dim]``; its gradient moves the weights."""
        if shared.dim() == 2:
            shared = shared.expand(len(self.weights), *shared.shape)
        if shared.requires_grad:
            shared.register_hook(self._move)  # type: ignore[no-untyped-call]
        return shared

    @torch.no_grad()
    def _move(self, gradient: Tensor) -> None:
        assert self._losses is not None
        first = torch.where(self.first_losses.isnan(), self._losses, self.first_losses)
        self.first_losses.copy_(first)
        norms = gradient.flatten(1).float().norm(dim=1)  # [tasks]
        if world_size() > 1:
            norms = all_sum(norms.square()).sqrt()
        mean = norms.mean().clamp(min=torch.finfo(torch.float32).tiny)
        rates = self._losses / first.clamp(min=torch.finfo(torch.float32).tiny)
        target = mean * (rates / rates.mean()).pow(self._config.alpha)
        step = torch.sign(norms - target) * norms / self.weights / mean
        moved = (self.weights - self._config.learning_rate * step).clamp(min=_SMALLEST_WEIGHT)
        self.weights.copy_(moved / moved.mean())


def _weighting(config: LossConfig, tasks: Sequence[str]) -> Fixed | Uncertainty | GradNorm:
    if config.fixed is not None:
        return Fixed([config.fixed.weights.get(task, 1.0) for task in tasks])
    if config.grad_norm is not None:
        return GradNorm(config.grad_norm, len(tasks))
    return Uncertainty(len(tasks))
