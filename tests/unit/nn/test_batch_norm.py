"""Batch normalisation of rows that lie in several processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ranks import run_ranks
from torch import Tensor
from torch.nn import functional

from rookery.nn.config import BatchNormConfig
from rookery.nn.mlp import BatchNorm
from rookery.parallel.world import differentiable_sum, rank, world_size

ROWS, WIDTH = 11, 5


def make(affine: bool) -> BatchNorm:
    norm = BatchNorm(BatchNormConfig(affine=affine, momentum=0.2), WIDTH)
    if norm.weight is not None and norm.bias is not None:
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.5, 2, WIDTH))
            norm.bias.copy_(torch.linspace(-1, 1, WIDTH))
    return norm


def rows() -> tuple[Tensor, Tensor]:
    """Inputs, and the gradient of the loss by the outputs."""
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randn(ROWS, WIDTH, generator=generator) * 3 + 1 for _ in range(2))  # type: ignore[return-value]


def normalised(affine: bool) -> dict[str, np.ndarray]:
    """This process's share of the rows, an uneven one, through a layer that all of them share."""
    norm = make(affine)
    norm.sum_over_processes = differentiable_sum
    first = [0, *([2 + 3 * number for number in range(world_size() - 1)]), ROWS]
    mine = slice(first[rank()], first[rank() + 1])
    x, weight = (part[mine].clone() for part in rows())
    x.requires_grad_()
    out = norm(x)
    (out * weight).sum().backward()
    assert x.grad is not None
    tensors = {"out": out.detach(), "grad": x.grad, "mean": norm.running_mean, "var": norm.running_var}
    return {name: tensor.numpy() for name, tensor in tensors.items()}  # a tensor would stay in memory of this process


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("affine", [False, True])
def test_shares_are_normalised_as_the_whole_batch(size: int, affine: bool) -> None:
    x, weight = rows()
    x.requires_grad_()
    norm = make(affine)
    mean, var = torch.zeros(WIDTH), torch.ones(WIDTH)
    expected = functional.batch_norm(x, mean, var, norm.weight, norm.bias, training=True, momentum=0.2)
    (expected * weight).sum().backward()
    found = run_ranks(size, normalised, affine)
    parts = [{name: torch.from_numpy(array) for name, array in part.items()} for part in found]
    torch.testing.assert_close(torch.cat([part["out"] for part in parts]), expected.detach())
    torch.testing.assert_close(torch.cat([part["grad"] for part in parts]), x.grad, rtol=1e-4, atol=1e-5)
    for part in parts:
        torch.testing.assert_close(part["mean"], mean)
        torch.testing.assert_close(part["var"], var)


def test_a_batch_of_one_row_is_normalised_by_the_running_statistics() -> None:
    norm = make(affine=True)
    norm.sum_over_processes = differentiable_sum
    alone = norm(rows()[0][:1])
    assert torch.equal(norm.running_mean, torch.zeros(WIDTH))
    torch.testing.assert_close(alone, make(affine=True)(rows()[0][:1]))
