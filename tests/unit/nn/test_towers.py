"""Towers against a network for each task: values, gradients, running statistics, and whose parameter is whose."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from naive_networks import assert_same, copy_from, gradients, naive_mlp, named, randomise, slices
from torch import Tensor, nn

from rookery.nn.config import TaskModelConfig
from rookery.nn.layout import InputLayout
from rookery.nn.towers import MlpTowers, Towers

BATCH, IN = 9, 6
NORMED = {"mlp_config": {"layer_sizes": [5, 3, 1], "batch_norm": {"affine": False, "momentum": 0.2}}}
WIDE = {"mlp_config": {"layer_sizes": [4]}}
MAPPED = {**NORMED, "affine_map": {"scale": 2.0, "bias": -0.5}}
CROSSED = {"dcn_config": {"poly_degree": 2, "use_parallel": False}, "affine_map": {"scale": 0.5}}
CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "equal": {"like": NORMED, "reply": NORMED, "share": NORMED},
    "one": {"like": WIDE},
    "mapped": {"like": NORMED, "reply": MAPPED, "share": {**NORMED, "pos_weight": 3.0}},
    "mixed": {"like": WIDE, "reply": CROSSED, "share": NORMED, "block": WIDE, "mute": MAPPED},
}
each = pytest.mark.parametrize("name", list(CONFIGS))
shared = pytest.mark.parametrize("shared", [True, False])


class NaiveTower(nn.Module):
    def __init__(self, config: TaskModelConfig) -> None:
        super().__init__()
        if config.mlp_config is not None:
            self.mlp = naive_mlp(config.mlp_config, IN)
            size = config.mlp_config.layer_sizes[-1]
        else:
            self.cross, size = nn.Linear(IN, IN), IN
        self.logit = nn.Linear(size, 1) if size > 1 else None
        self.affine = config.affine_map is not None
        if self.affine:
            self.scale, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        out = self.mlp(x) if hasattr(self, "mlp") else x * self.cross(x) + x
        out = out if self.logit is None else self.logit(out)
        return (self.scale * out + self.bias if self.affine else out).squeeze(1)


def configs_of(name: str) -> dict[str, TaskModelConfig]:
    return {task: TaskModelConfig.model_validate(config) for task, config in CONFIGS[name].items()}


def parts(towers: Towers, name: str) -> dict[str, dict[str, tuple[nn.Module, int | None, str]]]:
    """For each task where each part of its naive tower lives: module, index there, and prefix of its names."""
    configs = configs_of(name)
    mlps = list(dict.fromkeys(config.mlp_config for config in configs.values() if config.mlp_config is not None))
    others = [task for task, config in configs.items() if config.mlp_config is None]
    mapped = [task for task, config in configs.items() if config.affine_map is not None]
    found: dict[str, dict[str, tuple[nn.Module, int | None, str]]] = {}
    for task, config in configs.items():
        same = [other for other in configs if configs[other].mlp_config == config.mlp_config]
        if config.mlp_config is not None:
            tower, index = towers.towers[mlps.index(config.mlp_config)], same.index(task)
            found[task] = {"mlp": (tower.mlp, index, "layers.")}
        else:
            tower, index = towers.towers[len(mlps) + others.index(task)], None
            found[task] = {"cross": (tower.network.cross[0].up, None, "")}
        if tower.logit is not None:
            found[task]["logit"] = (tower.logit, index, "")
        if task in mapped:
            found[task]["affine"] = (towers.affine_map, mapped.index(task), "")
    return found


def affine_of(tower: NaiveTower) -> dict[str, nn.Parameter]:
    return {"scale": tower.scale, "bias": tower.bias}


def pair(name: str) -> tuple[Towers, dict[str, NaiveTower]]:
    towers = Towers(configs_of(name), InputLayout(IN))
    naive = {task: NaiveTower(config) for task, config in configs_of(name).items()}
    for seed, (task, tower) in enumerate(naive.items()):
        randomise(tower, seed)
        for part, (module, index, prefix) in parts(towers, name)[task].items():
            if part == "affine":
                with torch.no_grad():
                    module.scale[index], module.bias[index] = tower.scale[0], tower.bias[0]
            else:
                copy_from(getattr(tower, part), slices(module, index, prefix))
    return towers, naive


def rows(num_tasks: int, shared: bool, num_rows: int = BATCH) -> Tensor:
    shape = (num_rows, IN) if shared else (num_tasks, num_rows, IN)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5)).requires_grad_()


@shared
@each
@pytest.mark.parametrize("training", [True, False])
def test_equal_a_network_for_each_task(name: str, training: bool, shared: bool) -> None:
    towers, naive = pair(name)
    towers.train(training)
    x, x_naive = rows(len(naive), shared), rows(len(naive), shared)
    logits = towers(x)
    inputs = [x_naive] * len(naive) if shared else list(x_naive)
    expected = torch.stack([tower.train(training)(inputs[i]) for i, tower in enumerate(naive.values())], dim=1)
    torch.testing.assert_close(logits, expected)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(6))
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad, x_naive.grad)
    for task, tower in naive.items():
        for part, (module, index, prefix) in parts(towers, name)[task].items():
            if part == "affine":
                found = {n: p.grad[index].view(1) for n, p in module.named_parameters()}
                assert_same(found, {n: p.grad for n, p in affine_of(tower).items()})
                continue
            assert_same(
                gradients(module, index, prefix), {n: p.grad for n, p in getattr(tower, part).named_parameters()}
            )
            assert_same(slices(module, index, prefix), named(getattr(tower, part)))


def test_towers_of_equal_shape_share_a_module() -> None:
    towers, _ = pair("mixed")
    kinds = [len(t.mlp.layers[0].weight) if isinstance(t, MlpTowers) else 0 for t in towers.towers]
    assert kinds == [2, 2, 0]


@each
def test_every_parameter_belongs_to_a_task(name: str) -> None:
    """A task's parameters are those that its logits, and no other's, depend on."""
    towers, naive = pair(name)
    belongs = towers.tower_parameters()
    for column, task in enumerate(naive):
        towers.zero_grad()
        towers(rows(len(naive), shared=True))[:, column].square().sum().backward()
        for parameter in towers.parameters():
            moved = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            own = [index for mine, index in belongs[task] if mine is parameter]
            if own and own[0] is not None:
                assert moved[own[0]].abs().max() > 0
                moved = torch.cat([moved[: own[0]], moved[own[0] + 1 :]])
            elif own:
                assert moved.abs().max() > 0
                continue
            assert not moved.any()


@each
def test_half_precision_is_close(name: str) -> None:
    towers, naive = pair(name)
    x = rows(len(naive), shared=True)
    exact = torch.stack([tower(x) for tower in naive.values()], dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = towers(x)
    torch.testing.assert_close(logits.float(), exact, rtol=0, atol=0.1)
    logits.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().max() > 0 for p in towers.parameters())


@shared
@each
def test_exports_with_any_number_of_rows(name: str, shared: bool) -> None:
    towers, naive = pair(name)
    batch = torch.export.Dim("batch")
    dynamic = ({0 if shared else 1: batch},)
    exported = torch.export.export(towers.eval(), (rows(len(naive), shared),), dynamic_shapes=dynamic)
    for num_rows in (1, 5):
        x = rows(len(naive), shared, num_rows)
        torch.testing.assert_close(exported.module()(x), towers(x))
