from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rookery.checkpoint.files import read_checkpoint
from rookery.checkpoint.write import write_checkpoint
from rookery.errors import ConfigError
from rookery.train.state import ModuleState, OptimizerState, StateGroup, check_fit

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.1),
}


def module() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
    model(inputs).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_stored_optimizer_goes_on_as_the_one_it_was_taken_from(name: str, steps_before: int, tmp_path: Path) -> None:
    def parts() -> tuple[nn.Module, torch.optim.Optimizer, StateGroup]:
        model = module()
        optimizer = OPTIMIZERS[name](model.parameters())
        parameters = dict(model.named_parameters())
        return model, optimizer, StateGroup({"m": ModuleState(model), "o": OptimizerState(optimizer, parameters)})

    model, optimizer, state = parts()
    for seed in range(steps_before):
        step(model, optimizer, seed)
    write_checkpoint(tmp_path / "c", steps_before, {"all": state.tensors()}, {})
    other_model, other_optimizer, other_state = parts()
    other_state.load_tensors(read_checkpoint(tmp_path / "c").tensors("all"))
    for seed in range(steps_before, 6):
        step(model, optimizer, seed)
        step(other_model, other_optimizer, seed)
    stored, other = state.tensors(), other_state.tensors()
    assert stored.keys() == other.keys()
    assert all(torch.equal(stored[key], other[key]) for key in stored)


def test_nothing_is_copied_to_be_saved() -> None:
    model = module()
    assert all(
        tensor.data_ptr() == model.state_dict()[name].data_ptr()
        for name, tensor in ModuleState(model).tensors().items()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {"w": torch.zeros(3)}, r"w is float32\[2\] there, float32\[3\] in this configuration"),
        (lambda state: {"w": torch.zeros(2).half()}, r"w is float32\[2\] there, float16\[2\]"),
        (lambda state: {**state, "v": torch.zeros(1)}, r"v is absent there, float32\[1\]"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    class Fixed:
        def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
            self.tensors = lambda: tensors

        def load_tensors(self, tensors: Any) -> None:
            raise NotImplementedError

    tensors = {"w": torch.zeros(2)}
    write_checkpoint(tmp_path / "c", 1, {"model": tensors}, {})
    checkpoint = read_checkpoint(tmp_path / "c")
    check_fit({"model": Fixed(tensors)}, checkpoint, "use another run")
    with pytest.raises(ConfigError, match=f"{message}.*; use another run$"):
        check_fit({"model": Fixed(change(tensors))}, checkpoint, "use another run")
