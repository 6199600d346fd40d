"""A second, naive table: float64, a Python loop over the rows of a batch, each optimizer as its formula is written."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rookery.optim.config import Adagrad, Adam, OptimizerConfig, RowwiseAdagrad, Sgd
from rookery.tables.protocol import TableSpec, initial_weight

SEED = 7


class NaiveTable:
    """One table whose ``step`` moves the rows of a batch by the textbook formula of its optimizer."""

    def __init__(self, spec: TableSpec, seed: int = SEED) -> None:
        self.spec = spec
        self.weight = initial_weight(spec, seed).double()
        self.momentum = torch.zeros_like(self.weight)
        self.sum = torch.zeros_like(self.weight)
        self.row_sum = torch.zeros(spec.num_embeddings, dtype=torch.float64)
        self.exp_avg = torch.zeros_like(self.weight)
        self.exp_avg_sq = torch.zeros_like(self.weight)
        self.num_steps = 0

    def step(self, ids: Tensor, gradient: Tensor, learning_rate: float) -> None:
        """Apply the gradient ``[len(ids), dim]`` of the looked-up rows."""
        self.num_steps += 1
        for row in sorted(set(ids.tolist())):
            summed = gradient[ids == row].double().sum(dim=0)
            self.weight[row] -= learning_rate * self._direction(row, summed)
            norm = self.weight[row].norm().item()
            if self.spec.max_norm is not None and norm > self.spec.max_norm:
                self.weight[row] *= self.spec.max_norm / norm

    def _direction(self, row: int, g: Tensor) -> Tensor:
        chosen = self.spec.optimizer.chosen
        if isinstance(chosen, Sgd):
            self.momentum[row] = chosen.momentum * self.momentum[row] + g
            return self.momentum[row]
        if isinstance(chosen, Adagrad):
            self.sum[row] += g**2
            return g / (self.sum[row].sqrt() + chosen.eps)
        if isinstance(chosen, RowwiseAdagrad):
            self.row_sum[row] += (g**2).mean()
            return g / (math.sqrt(self.row_sum[row]) + chosen.eps)
        return self._adam_direction(row, g, chosen)

    def _adam_direction(self, row: int, g: Tensor, adam: Adam) -> Tensor:
        beta1, beta2 = adam.betas
        self.exp_avg[row] = beta1 * self.exp_avg[row] + (1 - beta1) * g
        self.exp_avg_sq[row] = beta2 * self.exp_avg_sq[row] + (1 - beta2) * g**2
        mean = self.exp_avg[row] / (1 - beta1**self.num_steps)
        square = self.exp_avg_sq[row] / (1 - beta2**self.num_steps)
        return mean / (square.sqrt() + adam.eps)


@pytest.fixture(autouse=True)
def _one_thread():
    """On a busy machine threads wait for each other: fbgemm takes 20 ms for a batch of 64 ids instead of 1."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def naive() -> type[NaiveTable]:
    return NaiveTable


@pytest.fixture
def make_spec():
    """``make_spec(name, optimizer, num_embeddings=…, …)`` with small defaults."""

    def make(name: str, optimizer: OptimizerConfig, **fields) -> TableSpec:
        defaults = {"num_embeddings": 20, "embedding_dim": 8, "dtype": torch.float32, "init_scale": 0.5}
        return TableSpec(name=name, optimizer=optimizer, **{**defaults, **fields})

    return make
