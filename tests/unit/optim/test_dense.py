"""Dense optimizers against the formula of each, written out in float64, and against torch's own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rookery.optim.config import OptimizerConfig
from rookery.optim.dense import DenseRowwiseAdagrad, make_dense_optimizer
from rookery.optim.rows import make_row_optimizer
from rookery.train.state import OptimizerState

ROWS, DIM = 4, 3
CONFIGS: dict[str, dict[str, Any]] = {
    "sgd": {"sgd": {"lr": 0.1}},
    "momentum": {"sgd": {"lr": 0.1, "momentum": 0.8}},
    "adagrad": {"adagrad": {"lr": 0.1, "eps": 1e-3}},
    "rowwise_adagrad": {"rowwise_adagrad": {"lr": 0.1, "eps": 1e-3}},
    "adam": {"adam": {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3}},
}
each = pytest.mark.parametrize("name", list(CONFIGS))


def config_of(name: str) -> OptimizerConfig:
    return OptimizerConfig.model_validate(CONFIGS[name])


def gradient(step: int) -> Tensor:
    return torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(step))


def naive(name: str, weight: Tensor, gradients: list[Tensor]) -> Tensor:
    """The textbook rules, an element at a time, in float64."""
    w = weight.double().clone()
    velocity, square, first, second = (torch.zeros_like(w) for _ in range(4))
    row_square = torch.zeros(ROWS, dtype=torch.float64)
    for count, g in enumerate((each.double() for each in gradients), start=1):
        for row in range(ROWS):
            row_square[row] += sum(float(g[row, column]) ** 2 for column in range(DIM)) / DIM
            for column in range(DIM):
                at = (row, column)
                velocity[at] = 0.8 * velocity[at] + g[at]
                square[at] += g[at] ** 2
                first[at] = 0.8 * first[at] + 0.2 * g[at]
                second[at] = 0.95 * second[at] + 0.05 * g[at] ** 2
                w[at] -= (
                    0.1
                    * {
                        "sgd": g[at],
                        "momentum": velocity[at],
                        "adagrad": g[at] / (math.sqrt(square[at]) + 1e-3),
                        "rowwise_adagrad": g[at] / (math.sqrt(row_square[row]) + 1e-3),
                        "adam": first[at] / (1 - 0.8**count) / (math.sqrt(second[at] / (1 - 0.95**count)) + 1e-3),
                    }[name]
                )
    return w


def test_every_optimizer_of_the_config_is_tested_here() -> None:
    assert {config_of(name).kind for name in CONFIGS} == set(OptimizerConfig.one_of[0].fields)


@each
def test_moves_parameters_by_its_formula(name: str) -> None:
    start = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(99))
    parameter = nn.Parameter(start.clone())
    optimizer = make_dense_optimizer(config_of(name), [parameter])
    gradients = [gradient(step) for step in range(7)]
    for g in gradients:
        parameter.grad = g.clone()
        optimizer.step()
    torch.testing.assert_close(parameter.detach().double(), naive(name, start, gradients), rtol=0, atol=2e-6)


@each
def test_the_rule_of_tables_is_the_same_when_every_row_is_in_the_batch(name: str) -> None:
    parameter = nn.Parameter(torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(99)))
    optimizer, rule = make_dense_optimizer(config_of(name), [parameter]), make_row_optimizer(config_of(name))
    state, table = rule.initial_state(ROWS, DIM), parameter.detach().clone()
    for step in range(7):
        parameter.grad = gradient(step)
        optimizer.step()
        table += rule.step(state, torch.arange(ROWS), gradient(step), 0.1)
    torch.testing.assert_close(table, parameter.detach(), rtol=0, atol=2e-6)


@each
def test_starts_at_the_rate_of_its_schedule(name: str) -> None:
    rates = {"piecewise_constant": {"learning_rate_boundaries": [1], "learning_rate_values": [0.25, 0.5]}}
    config = OptimizerConfig.model_validate({**CONFIGS[name], "learning_rate": rates})
    optimizer = make_dense_optimizer(config, [nn.Parameter(torch.zeros(ROWS, DIM))])
    assert [group["lr"] for group in optimizer.param_groups] == [0.25]


@each
def test_its_stored_state_continues_bit_for_bit(name: str) -> None:
    runs = []
    for _ in range(2):
        parameter = nn.Parameter(torch.ones(ROWS, DIM))
        runs.append((parameter, make_dense_optimizer(config_of(name), [parameter])))
    (first, optimizer), (second, resumed) = runs

    def advance(parameter: nn.Parameter, by: torch.optim.Optimizer, step: int) -> None:
        parameter.grad = gradient(step)
        by.step()

    for step in range(5):
        advance(first, optimizer, step)
    stored = {key: tensor.clone() for key, tensor in OptimizerState(optimizer, {"p": first}).tensors().items()}
    with torch.no_grad():
        second.copy_(first)
    OptimizerState(resumed, {"p": second}).load_tensors(stored)
    for step in range(5, 9):
        advance(first, optimizer, step)
        advance(second, resumed, step)
    assert torch.equal(first, second)


def test_rowwise_adagrad_leaves_rows_without_gradient_even_without_eps() -> None:
    parameter = nn.Parameter(torch.ones(ROWS, DIM))
    optimizer = DenseRowwiseAdagrad([parameter], lr=0.5, eps=0.0)
    parameter.grad = torch.zeros(ROWS, DIM)
    parameter.grad[1] = 3.0
    optimizer.step()
    expected = torch.ones(ROWS, DIM)
    expected[1] = 0.5  # a first step is lr whatever the size of the gradient
    torch.testing.assert_close(parameter.detach(), expected)


def test_a_parameter_without_gradient_stays() -> None:
    parameter = nn.Parameter(torch.ones(ROWS, DIM))
    DenseRowwiseAdagrad([parameter], lr=0.5, eps=1e-8).step()
    assert torch.equal(parameter.detach(), torch.ones(ROWS, DIM))


def test_adam_in_one_pass_is_adam_operation_by_operation() -> None:
    one, other = (nn.Parameter(torch.randn(300, 17, generator=torch.Generator().manual_seed(1))) for _ in range(2))
    in_one_pass = make_dense_optimizer(OptimizerConfig.model_validate({"adam": {"lr": 0.01}}), [one])
    by_operation = torch.optim.Adam([other], lr=0.01, foreach=False, fused=False)
    assert in_one_pass.defaults["fused"]
    for step in range(30):
        gradient = torch.randn(one.shape, generator=torch.Generator().manual_seed(step)) * 10.0 ** (step % 5 - 3)
        one.grad, other.grad = gradient.clone(), gradient.clone()
        in_one_pass.step()
        by_operation.step()
    torch.testing.assert_close(one.detach(), other.detach(), rtol=0, atol=1e-6)  # a step moves by up to 1e-2
