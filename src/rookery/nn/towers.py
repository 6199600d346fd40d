"""Towers: for each task a network that ends in a logit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rookery.nn.config import AffineMapConfig, MlpConfig, TaskModelConfig
from rookery.nn.mlp import Linear, StackedLinear, StackedMlp
from rookery.nn.network import InputLayout, build_network


class Towers(nn.Module):
    """The logits of all tasks, ``[batch, T]`` in the order of ``configs``.

    MLP towers of equal shape run as batched products, other networks one by one. A tower whose last layer does not
    have size 1 gets one more linear layer that has.
    """

    def __init__(self, configs: Mapping[str, TaskModelConfig], layout: InputLayout) -> None:
        super().__init__()
        self._tasks = tuple(configs)
        equal = _equal_mlps(configs)
        others = [task for task, config in configs.items() if config.mlp_config is None]
        self.towers = nn.ModuleList(MlpTowers(mlp, len(tasks), layout.width) for mlp, tasks in equal.items())
        self.towers.extend(NetworkTower(configs[task], layout) for task in others)
        self.tasks_of = [*equal.values(), *((task,) for task in others)]
        """Of each module of ``towers`` the tasks whose logits it makes."""
        made = [task for tasks in self.tasks_of for task in tasks]
        self._order = [made.index(task) for task in self._tasks]
        maps = {task: config.affine_map for task, config in configs.items() if config.affine_map is not None}
        self.affine_map = AffineMaps(maps, self._tasks) if maps else None

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, F]``, which all towers read, or ``[T, batch, F]`` → logits ``[batch, T]``."""
        parts = [
            tower(x if x.dim() == 2 else self._inputs(x, tasks))
            for tower, tasks in zip(self.towers, self.tasks_of, strict=True)
        ]
        logits = torch.cat(parts, dim=1)
        if self._order != sorted(self._order):
            logits = logits[:, self._order]
        return logits if self.affine_map is None else self.affine_map(logits)

    def _inputs(self, x: Tensor, tasks: tuple[str, ...]) -> Tensor:
        """Of ``[T, batch, F]`` that of some tasks, ``[batch, num, F]``."""
        chosen = x if tasks == self._tasks else x[[self._tasks.index(task) for task in tasks]]
        return chosen.transpose(0, 1)

    def tower_parameters(self) -> dict[str, list[tuple[nn.Parameter, int | None]]]:
        """The parameters of each task; of a stacked parameter with the index of the task's slice, else None."""
        parameters: dict[str, list[tuple[nn.Parameter, int | None]]] = {task: [] for task in self._tasks}
        for tower, tasks in zip(self.towers, self.tasks_of, strict=True):
            for index, task in enumerate(tasks):
                at = index if isinstance(tower, MlpTowers) else None
                parameters[task] += [(parameter, at) for parameter in tower.parameters()]
        if self.affine_map is not None:
            for index, task in enumerate(self.affine_map.tasks):
                parameters[task] += [(parameter, index) for parameter in self.affine_map.parameters()]
        return parameters


class MlpTowers(nn.Module):
    """``num`` MLPs of equal shape: ``[batch, F]`` or ``[batch, num, F]`` → ``[batch, num]``."""

    def __init__(self, config: MlpConfig, num: int, in_features: int) -> None:
        super().__init__()
        self.mlp = StackedMlp(config, num, in_features)
        self.logit = StackedLinear(num, self.mlp.out_features, 1) if self.mlp.out_features != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(x)  # [batch, num, out]
        return (out if self.logit is None else self.logit(out)).squeeze(2)


class NetworkTower(nn.Module):
    """Any network as the tower of one task: ``[batch, F]`` or ``[batch, 1, F]`` → ``[batch, 1]``."""

    def __init__(self, config: TaskModelConfig, layout: InputLayout) -> None:
        super().__init__()
        self.network = build_network(config, layout, num_tasks=1)
        self.logit = Linear(self.network.out_features, 1) if self.network.out_features != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x if x.dim() == 2 else x.squeeze(1))
        return out if self.logit is None else self.logit(out)


class AffineMaps(nn.Module):
    """``scale * logit + bias`` for the tasks of ``maps``; logits of the others pass."""

    ones: Tensor
    columns: Tensor

    def __init__(self, maps: Mapping[str, AffineMapConfig], tasks: tuple[str, ...]) -> None:
        super().__init__()
        self.tasks = tuple(maps)
        self.scale = nn.Parameter(torch.tensor([config.scale for config in maps.values()]))
        self.bias = nn.Parameter(torch.tensor([config.bias for config in maps.values()]))
        self.register_buffer("ones", torch.ones(len(tasks)), persistent=False)
        self.register_buffer("columns", torch.tensor([tasks.index(task) for task in maps]), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        scale = self.ones.index_copy(0, self.columns, self.scale)
        bias = torch.zeros_like(self.ones).index_copy(0, self.columns, self.bias)
        return torch.addcmul(bias, logits, scale)


def _equal_mlps(configs: Mapping[str, TaskModelConfig]) -> dict[MlpConfig, tuple[str, ...]]:
    groups: dict[MlpConfig, tuple[str, ...]] = {}
    for task, config in configs.items():
        if config.mlp_config is not None:
            groups[config.mlp_config] = (*groups.get(config.mlp_config, ()), task)
    return groups
