from __future__ import annotations

import pytest
import torch
from torch import nn

from rookery.optim.average import WeightAverage, load_average


def _trained(decay: float, steps: int) -> tuple[nn.Linear, torch.optim.Optimizer, WeightAverage, list[torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    average = WeightAverage(dict(model.named_parameters()), optimizer, decay)
    seen = [model.weight.detach().clone()]
    _step(model, optimizer, steps, seen)
    return model, optimizer, average, seen


def _step(model: nn.Linear, optimizer: torch.optim.Optimizer, steps: int, seen: list[torch.Tensor]) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
        seen.append(model.weight.detach().clone())


def test_it_follows_the_formula() -> None:
    _, _, average, seen = _trained(0.3, 8)
    expected = seen[0].double()
    for step, weight in enumerate(seen[1:]):
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.double()
    torch.testing.assert_close(average.tensors()["weight"].double(), expected, rtol=1e-6, atol=1e-7)
    assert (average.tensors()["weight"] - seen[-1]).abs().max() > 1e-6


def test_it_stands_in_for_the_parameters_and_gives_way() -> None:
    model, _, average, seen = _trained(0.9, 5)
    mean = average.tensors()["weight"].clone()
    with pytest.raises(KeyError), average.applied():  # noqa: PT012 (what is inside fails on purpose)
        assert torch.equal(model.weight, mean)
        raise KeyError
    assert torch.equal(model.weight, seen[-1])
    assert torch.equal(average.tensors()["weight"], mean)


def test_a_resumed_average_goes_on() -> None:
    _, _, whole, _ = _trained(0.9, 9)
    model, optimizer, average, _ = _trained(0.9, 4)
    stored = {name: tensor.clone() for name, tensor in average.tensors().items()}
    fresh = WeightAverage(dict(model.named_parameters()), optimizer := torch.optim.SGD(model.parameters(), 0.1), 0.9)
    fresh.load_tensors(stored)
    _step(model, optimizer, 5, [])
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, fresh.tensors()[name])


def test_it_loads_without_an_optimizer() -> None:
    model, _, average, _ = _trained(0.9, 4)
    other = nn.Linear(3, 2)
    load_average(dict(other.named_parameters()), average.tensors())
    with average.applied():
        assert torch.equal(other.weight, model.weight)
        assert torch.equal(other.bias, model.bias)
