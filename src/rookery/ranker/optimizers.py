"""The optimizer of the network: one fused Adam, its parameters in groups with a schedule each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rookery.optim.config import LearningRateConfig
from rookery.optim.schedules import make_schedule
from rookery.ranker.config import RankerOptimizerConfig
from rookery.ranker.model import RankerModel
from rookery.train.job import LearningRate

BACKBONE = "backbone"
"""The group of everything that is in no tower."""


@dataclass(frozen=True)
class Slice:
    """One task's part of parameters that several towers have stacked; ``index`` None: a parameter of its own."""

    name: str
    parameter: nn.Parameter
    index: int | None


class SlicedAdam(torch.optim.AdamW):
    """Adam (``weight_decay`` 0) or AdamW, in one fused pass, over whole parameters and slices of stacked ones.

    A slice is a view of its parameter: the towers run as one product, and yet each has a rate of its own.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        slices: Iterable[tuple[nn.Parameter, nn.Parameter, int]],
        **settings: Any,
    ) -> None:
        self._slices = tuple(slices)
        super().__init__(groups, fused=True, **settings)

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Move every parameter by its gradient."""
        for view, stacked, index in self._slices:
            view.grad = None if stacked.grad is None else stacked.grad[index]
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, those of stacked parameters too."""
        for _, stacked, _ in self._slices:
            stacked.grad = None
        super().zero_grad(set_to_none)


@dataclass(frozen=True)
class RankerOptimizer:
    """The optimizer, its schedules, and the names under which a checkpoint holds its state."""

    optimizer: SlicedAdam
    learning_rates: tuple[LearningRate, ...]
    parameters: Mapping[str, nn.Parameter]


def make_optimizer(config: RankerOptimizerConfig, model: RankerModel) -> RankerOptimizer:
    """Group the parameters of ``model`` by schedule and by whether weight decay takes them."""
    schedules = _schedules(config, model.tasks)
    by_task = _slices_by_task(model) if config.multi_task_learning_rates is not None else {}
    slices = [piece for pieces in by_task.values() for piece in pieces]
    in_towers = {id(piece.parameter) for piece in slices}
    rest = {name: each for name, each in model.named_parameters() if id(each) not in in_towers}
    named: dict[str, dict[str, nn.Parameter]] = {BACKBONE: rest}
    views: list[tuple[nn.Parameter, nn.Parameter, int]] = []
    for task, pieces in by_task.items():
        named[task] = {piece.name: _view(piece, views) for piece in pieces}
    decay = config.adamw.weight_decay if config.adamw is not None else 0.0
    chosen = config.adamw or config.adam
    assert chosen is not None
    optimizer = SlicedAdam(
        _groups(named, schedules, dict.fromkeys(_decayed(model), decay)),
        views,
        betas=(chosen.beta_1, chosen.beta_2),
        eps=chosen.epsilon,
    )
    rates = tuple(
        LearningRate(name, make_schedule(schedules[name]), functools.partial(_apply, optimizer, name)) for name in named
    )
    parameters = {name: each for members in named.values() for name, each in members.items()}
    return RankerOptimizer(optimizer, rates, parameters)


def _schedules(config: RankerOptimizerConfig, tasks: Iterable[str]) -> dict[str, LearningRateConfig]:
    several = config.multi_task_learning_rates
    if several is None:
        assert config.single_task_learning_rate is not None
        return {BACKBONE: config.single_task_learning_rate}
    towers = {_tower(task): several.tower_learning_rates[task] for task in tasks}
    return {BACKBONE: several.backbone_learning_rate, **towers}


def _tower(task: str) -> str:
    return f"tower/{task}"


def _slices_by_task(model: RankerModel) -> dict[str, list[Slice]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        _tower(task): [
            Slice(names[id(parameter)] + ("" if index is None else f"[{task}]"), parameter, index)
            for parameter, index in pieces
        ]
        for task, pieces in model.network.towers.tower_parameters().items()
    }


def _view(piece: Slice, views: list[tuple[nn.Parameter, nn.Parameter, int]]) -> nn.Parameter:
    if piece.index is None:
        return piece.parameter
    view = nn.Parameter(piece.parameter.detach()[piece.index])
    views.append((view, piece.parameter, piece.index))
    return view


def _groups(
    named: Mapping[str, Mapping[str, nn.Parameter]],
    schedules: Mapping[str, LearningRateConfig],
    decays: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Parameters by schedule and by weight decay, which ``decays`` has by name (0 for others)."""
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    for group, members in named.items():
        for name, parameter in members.items():
            groups.setdefault((group, decays.get(name.split("[", maxsplit=1)[0], 0.0)), []).append(parameter)
    return [
        {"params": chosen, "lr": make_schedule(schedules[group])(0), "weight_decay": decay, "name": group}
        for (group, decay), chosen in groups.items()
    ]


def _decayed(model: RankerModel) -> frozenset[str]:
    """Names of matrices and small tables: neither biases and norms, nor vectors that come from an export."""
    return frozenset(
        f"{path}.{name}"
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if path.endswith(".embeddings.small")
        or (name.startswith("weight") and parameter.dim() > 1 and "Norm" not in type(module).__name__)
    )


def _apply(optimizer: torch.optim.Optimizer, name: str, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        if group["name"] == name:
            group["lr"] = learning_rate
