"""The loss against formulas written out task by task, and what weighs the tasks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rookery.nn.config import MlpConfig, TaskModelConfig
from rookery.ranker.config import FixedWeights, GradNormWeights, LossConfig, UncertaintyWeights
from rookery.ranker.loss import MultiTaskLoss

TASKS = ("click", "like", "hide")


def _towers(pos_weight: float | None = None) -> dict[str, TaskModelConfig]:
    tower = TaskModelConfig(mlp_config=MlpConfig(layer_sizes=(1,)))
    return {task: tower if task != "like" else tower.model_copy(update={"pos_weight": pos_weight}) for task in TASKS}


def _rows(seed: int = 0, num_rows: int = 17) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_rows, len(TASKS), generator=generator)
    labels = (torch.rand(num_rows, len(TASKS), generator=generator) < 0.4).float()
    weights = torch.rand(num_rows, generator=generator) * 3
    return logits, labels, weights


def _naive_task_losses(logits: Tensor, labels: Tensor, weights: Tensor, pos_weights: list[float]) -> list[Tensor]:
    losses = []
    for task, pos_weight in enumerate(pos_weights):
        total = torch.zeros((), dtype=torch.float64)
        for row in range(len(logits)):
            probability = 1 / (1 + torch.exp(-logits[row, task].double()))
            y = labels[row, task].item()
            row_loss = -(pos_weight * y * torch.log(probability) + (1 - y) * torch.log(1 - probability))
            total = total + weights[row].double() * row_loss
        losses.append(total / weights.double().sum())
    return losses


@pytest.mark.parametrize("pos_weight", [None, 4.0])
def test_fixed_weights_against_the_formula(pos_weight: float | None) -> None:
    logits, labels, weights = _rows()
    loss = MultiTaskLoss(LossConfig(fixed=FixedWeights(weights={"hide": 0.5, "click": 0.0})), _towers(pos_weight))
    ours = logits.clone().requires_grad_()
    naive = logits.clone().requires_grad_()
    value, outputs = loss(ours, labels, weights)
    expected = _naive_task_losses(naive, labels, weights, [1.0, pos_weight or 1.0, 1.0])
    total = (0.0 * expected[0] + 1.0 * expected[1] + 0.5 * expected[2]) / 3
    value.backward()
    total.backward()
    assert value.item() == pytest.approx(total.item(), rel=1e-6)
    assert naive.grad is not None and naive.grad[:, 1:].abs().min() > 0
    torch.testing.assert_close(ours.grad, naive.grad, rtol=1e-5, atol=1e-8)
    for index, task in enumerate(TASKS):
        assert outputs[f"loss/{task}"].item() == pytest.approx(expected[index].item(), rel=1e-6)


def test_large_logits_stay_finite() -> None:
    loss = MultiTaskLoss(LossConfig(fixed=FixedWeights()), _towers())
    logits = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    value, _ = loss(logits, torch.tensor([[0.0, 1.0, 1.0]]), torch.ones(1))
    value.backward()
    assert value.item() == pytest.approx((200 + 200 + 0.6931472) / 3)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[1 / 3, -1 / 3, -1 / 6]]))


def test_uncertainty_against_the_formula() -> None:
    logits, labels, weights = _rows(1)
    loss = MultiTaskLoss(LossConfig(uncertainty=UncertaintyWeights()), _towers())
    s = torch.tensor([0.3, -0.4, 1.0])
    with torch.no_grad():
        loss.weighting.log_variance.copy_(s)
    value, _ = loss(logits, labels, weights)
    value.backward()
    by_task = _naive_task_losses(logits, labels, weights, [1.0, 1.0, 1.0])
    expected = sum(torch.exp(-s[t]).item() * by_task[t].item() + s[t].item() / 2 for t in range(3)) / 3
    assert value.item() == pytest.approx(expected, rel=1e-6)
    slopes = [(-torch.exp(-s[t]).item() * by_task[t].item() + 0.5) / 3 for t in range(3)]
    assert loss.weighting.log_variance.grad.tolist() == pytest.approx(slopes, rel=1e-5)


def test_uncertainty_settles_where_the_weight_is_half_the_inverse_loss() -> None:
    """The minimum over s of ``exp(-s) L + s / 2`` lies at ``exp(-s) = 1 / (2 L)``."""
    logits, labels, weights = _rows(2)
    loss = MultiTaskLoss(LossConfig(uncertainty=UncertaintyWeights()), _towers())
    optimizer = torch.optim.LBFGS(loss.parameters(), max_iter=100, tolerance_grad=1e-9)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value, _ = loss(logits, labels, weights)
        value.backward()
        return value

    optimizer.step(closure)
    by_task = _naive_task_losses(logits, labels, weights, [1.0, 1.0, 1.0])
    expected = [1 / (2 * each.item()) for each in by_task]
    assert torch.exp(-loss.weighting.log_variance).tolist() == pytest.approx(expected, rel=1e-3)


def _grad_norm(alpha: float = 1.5) -> tuple[MultiTaskLoss, Tensor]:
    loss = MultiTaskLoss(LossConfig(grad_norm=GradNormWeights(alpha=alpha, learning_rate=0.1)), _towers())
    readout = torch.randn(6, len(TASKS), generator=torch.Generator().manual_seed(3)) / 3
    readout[:, 2] *= 10  # a task with far larger gradients
    return loss, readout


def _step(loss: MultiTaskLoss, readout: Tensor, seed: int) -> Tensor:
    _, labels, weights = _rows(seed)
    shared = torch.randn(17, 6, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    seen = loss.balance(shared)
    assert seen.shape == (3, 17, 6)
    logits = torch.einsum("tbd,dt->bt", seen, readout)
    value, _ = loss(logits, labels, weights)
    value.backward()
    assert shared.grad is not None
    return shared.grad


def test_grad_norm_moves_weights_by_the_rule() -> None:
    loss, readout = _grad_norm()
    _step(loss, readout, 4)
    first = loss.weighting.first_losses.clone()
    before = loss.weighting.weights.clone()
    _step(loss, readout, 5)
    _, labels, weights = _rows(5)
    shared = torch.randn(17, 6, generator=torch.Generator().manual_seed(5)).requires_grad_()
    by_task = _naive_task_losses(shared @ readout, labels, weights, [1.0, 1.0, 1.0])
    norms = []
    for task in range(3):
        (gradient,) = torch.autograd.grad(before[task] * by_task[task], shared, retain_graph=True)
        norms.append(gradient.norm().item())
    mean = sum(norms) / 3
    rates = [by_task[t].item() / first[t].item() for t in range(3)]
    moved = []
    for task in range(3):
        target = mean * (rates[task] / (sum(rates) / 3)) ** 1.5
        sign = 1 if norms[task] > target else -1
        moved.append(max(before[task].item() - 0.1 * sign * norms[task] / before[task].item() / mean, 1e-3))
    expected = [3 * each / sum(moved) for each in moved]
    assert loss.weighting.weights.tolist() == pytest.approx(expected, rel=1e-4)
    assert max(abs(a - b) for a, b in zip(expected, before.tolist(), strict=True)) > 0.01


def test_grad_norm_leaves_the_gradient_of_the_weighted_loss() -> None:
    loss, readout = _grad_norm()
    gradient = _step(loss, readout, 6)  # weights are 1 in the first step
    _, labels, weights = _rows(6)
    shared = torch.randn(17, 6, generator=torch.Generator().manual_seed(6)).requires_grad_()
    (torch.stack(_naive_task_losses(shared @ readout, labels, weights, [1.0] * 3)).mean()).backward()
    torch.testing.assert_close(gradient, shared.grad, rtol=1e-4, atol=1e-7)


def test_grad_norm_evens_out_the_norms() -> None:
    loss, readout = _grad_norm(alpha=0.0)
    for seed in range(60):
        _step(loss, readout, seed)
    weights = loss.weighting.weights
    assert weights.mean().item() == pytest.approx(1.0)
    assert weights[2] < weights[0] / 2 and weights[2] < weights[1] / 2
