"""One optimizer over slices of stacked towers against an Adam for each tower of its own."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from small_ranker import TASKS, small_batch, small_config, small_model

from rookery.ranker.model import RankerModel
from rookery.ranker.optimizers import make_optimizer

RATES = {"click": 0.01, "like": 0.003, "hide": 0.03}


def _several(**adam: Any) -> dict[str, Any]:
    return {
        **(adam or {"adam": {}}),
        "multi_task_learning_rates": {
            "backbone_learning_rate": {"constant": 0.002},
            "tower_learning_rates": {task: {"constant": rate} for task, rate in RATES.items()},
        },
    }


# Without batch normalisation: it makes gradients of the biases before it rounding errors, which Adam scales up.
PLAIN = {task: {"mlp_config": {"layer_sizes": [8, 4, 1]}} for task in TASKS}


def _loss(model: RankerModel, step: int) -> torch.Tensor:
    torch.manual_seed(step)  # dropped positions
    loss, _ = model(small_batch(step))
    return loss


def _expected(model: RankerModel, steps: int) -> dict[str, torch.Tensor]:
    """Every element by the formula of Adam, at the rate of its tower or of the backbone."""
    parameters = dict(model.named_parameters())
    rates = {name: torch.full_like(each, 0.002) for name, each in parameters.items()}
    names = {id(each): name for name, each in parameters.items()}
    for task, pieces in model.network.towers.tower_parameters().items():
        for parameter, index in pieces:
            rates[names[id(parameter)]][slice(None) if index is None else index] = RATES[task]
    first = {name: torch.zeros_like(each) for name, each in parameters.items()}
    second = {name: torch.zeros_like(each) for name, each in parameters.items()}
    for step in range(steps):
        gradients = torch.autograd.grad(_loss(model, step), list(parameters.values()), allow_unused=True)
        with torch.no_grad():
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                if gradient is None:
                    continue
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient**2
                unbiased = first[name] / (1 - 0.9 ** (step + 1))
                scale = (second[name] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
                parameter.sub_(rates[name] * unbiased / scale)
    return {name: each.detach().clone() for name, each in parameters.items()}


def test_each_tower_moves_at_its_rate() -> None:
    config = small_config(optimizer=_several(), model__tasks=PLAIN)
    expected = _expected(small_model(config), 3)
    model = small_model(config)
    start = {name: each.detach().clone() for name, each in model.named_parameters()}
    made = make_optimizer(config.optimizer, model)
    assert [rate.name for rate in made.learning_rates] == ["backbone", *(f"tower/{task}" for task in TASKS)]
    for step in range(3):
        for rate in made.learning_rates:
            rate.apply(rate.schedule(step))
        _loss(model, step).backward()
        made.optimizer.step()
        made.optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=2e-4, atol=2e-5)
    stacked = [name for name in start if name.startswith("network.towers") and name.endswith("weight")]
    assert stacked and all((start[name] - expected[name]).abs().max() > 1e-3 for name in stacked)


def test_one_rate_moves_all_parameters_in_one_group() -> None:
    config = small_config()
    model = small_model(config)
    made = make_optimizer(config.optimizer, model)
    assert [rate.name for rate in made.learning_rates] == ["backbone"]
    assert {id(each) for each in made.parameters.values()} == {id(each) for each in model.parameters()}


def test_every_parameter_is_moved_once_with_several_rates() -> None:
    model = small_model(small_config())
    made = make_optimizer(small_config(optimizer=_several()).optimizer, model)
    storages = [(each.data_ptr(), each.numel()) for each in made.parameters.values()]
    assert len(set(storages)) == len(storages)
    assert sum(size for _, size in storages) == sum(each.numel() for each in model.parameters())
    grouped = list(itertools.chain.from_iterable(group["params"] for group in made.optimizer.param_groups))
    assert {id(each) for each in grouped} == {id(each) for each in made.parameters.values()}


@pytest.mark.parametrize("several", [False, True])
def test_weight_decay_takes_matrices_and_small_tables_alone(several: bool) -> None:
    single = {"adamw": {"weight_decay": 0.1}, "single_task_learning_rate": {"constant": 0.01}}
    config = small_config(optimizer=_several(adamw={"weight_decay": 0.1}) if several else single)
    model = small_model(config)
    made = make_optimizer(config.optimizer, model)
    decay = {id(each): group["weight_decay"] for group in made.optimizer.param_groups for each in group["params"]}
    for name, parameter in made.parameters.items():
        base = name.split("[", maxsplit=1)[0]
        is_table = ".small." in base
        is_bias = base.rsplit(".", 1)[-1] == "bias"
        if is_table:
            assert decay[id(parameter)] == 0.1, name
        elif is_bias or "norm" in base or "joined" in base or "position" in base:
            assert decay[id(parameter)] == 0.0, name
        else:
            assert decay[id(parameter)] == 0.1, name


def test_a_wrong_task_has_no_rate_to_fall_back_on() -> None:
    rates = _several()
    del rates["multi_task_learning_rates"]["tower_learning_rates"]["hide"]
    with pytest.raises(Exception, match="task 'hide' has none"):
        small_config(optimizer=rates)
