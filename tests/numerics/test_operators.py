"""Operators against their formulas; hand-written gradients, adjoints and inverses against autograd and their laws."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from naive_twhin import operate
from torch import Tensor

from rookery.twhin.operators import OPERATORS, Operator

NUM_EDGES, DIM = 5, 6


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradients(function: Callable[..., Tensor], grad: Tensor, *inputs: Tensor) -> list[Tensor]:
    """By autograd, in float64; zero where the function does not use an input."""
    leaves = [each.double().requires_grad_() for each in inputs]
    found = torch.autograd.grad(function(*leaves), leaves, grad.double(), allow_unused=True)
    return [torch.zeros_like(leaf) if each is None else each for leaf, each in zip(leaves, found, strict=True)]


class OperatorCase:
    name: ClassVar[str]
    width: ClassVar[int]
    identity: ClassVar[list[float]]
    parameter_rows: ClassVar[tuple[int, ...]] = (1, NUM_EDGES)  # one relation for all edges, and one each

    @property
    def operator(self) -> Operator:
        return OPERATORS[self.name]

    def parameters(self, rows: int) -> Tensor:
        return random(1, rows, self.width)

    def formula(self, x: Tensor, p: Tensor) -> Tensor:
        return operate(self.name, x, p)

    def assert_gradients(self, ours: tuple[Tensor, Tensor], theirs: list[Tensor], rows: int) -> None:
        by_x, by_p = ours
        torch.testing.assert_close(by_x.double(), theirs[0], rtol=1e-5, atol=1e-5)
        if rows == 1:  # a row for each edge may be given where all share one
            by_p = by_p.sum(0, keepdim=True)
        torch.testing.assert_close(by_p.double(), theirs[1], rtol=1e-5, atol=1e-5)
        assert theirs[0].abs().max() > 0.1
        assert self.width == 0 or theirs[1].abs().max() > 0.1

    def test_width_and_the_parameters_that_change_nothing(self) -> None:
        assert self.operator.width(DIM) == self.width
        identity = self.operator.identity_parameters(DIM)
        assert identity.tolist() == self.identity
        x = random(0, NUM_EDGES, DIM)
        torch.testing.assert_close(self.operator.apply(x, identity.unsqueeze(0)), x)

    def test_apply(self) -> None:
        x = random(0, NUM_EDGES, DIM)
        for rows in self.parameter_rows:
            p = self.parameters(rows)
            torch.testing.assert_close(self.operator.apply(x, p), self.formula(x, p))

    def test_backward(self) -> None:
        x, grad = random(0, NUM_EDGES, DIM), random(2, NUM_EDGES, DIM)
        for rows in self.parameter_rows:
            p = self.parameters(rows)
            self.assert_gradients(self.operator.backward(grad.clone(), x, p), gradients(self.formula, grad, x, p), rows)

    def test_adjoint_moves_the_operator_across_a_dot_product(self) -> None:
        x, t = random(0, NUM_EDGES, DIM), random(3, NUM_EDGES, DIM)
        for rows in self.parameter_rows:
            p = self.parameters(rows)
            q, bias = self.operator.adjoint(t, p)
            moved = (x * q).sum(1) + (0.0 if bias is None else bias)
            torch.testing.assert_close(moved, (self.formula(x, p) * t).sum(1), rtol=1e-5, atol=1e-5)

    def test_adjoint_backward(self) -> None:
        """The gradient of ``<grad, q> + <grad_bias, b>``."""
        t, grad, grad_bias = random(3, NUM_EDGES, DIM), random(2, NUM_EDGES, DIM), random(4, NUM_EDGES)
        for rows in self.parameter_rows:
            p = self.parameters(rows)
            has_bias = self.operator.adjoint(t, p)[1] is not None
            ours = self.operator.adjoint_backward(grad.clone(), grad_bias.clone() if has_bias else None, t, p)

            def total(t: Tensor, p: Tensor) -> Tensor:
                return (self.formula(grad.double(), p) * t).sum(1)  # <grad, q> + b, whatever q and b are

            def bias(t: Tensor, p: Tensor) -> Tensor:
                return (self.formula(torch.zeros_like(t), p) * t).sum(1)  # b alone

            ones = torch.ones(NUM_EDGES)
            by_total, by_bias = gradients(total, ones, t, p), gradients(bias, grad_bias - 1, t, p)
            self.assert_gradients(ours, [a + b for a, b in zip(by_total, by_bias, strict=True)], rows)

    def test_inverse_keeps_distances_where_there_is_one(self) -> None:
        x, t, grad = random(0, NUM_EDGES, DIM), random(3, NUM_EDGES, DIM), random(2, NUM_EDGES, DIM)
        for rows in self.parameter_rows:
            p = self.parameters(rows)
            if not self.operator.has_inverse:
                with pytest.raises(AssertionError, match="has no inverse"):
                    self.operator.inverse(t, p)
                with pytest.raises(AssertionError, match="has no inverse"):
                    self.operator.inverse_backward(grad, t, p)
                continue
            for order in (1, 2):
                here = torch.linalg.vector_norm(self.formula(x, p) - t, ord=order, dim=1)
                there = torch.linalg.vector_norm(x - self.operator.inverse(t, p), ord=order, dim=1)
                torch.testing.assert_close(there, here)
            shift = self.formula(torch.zeros_like(t), p).detach() if self.width else torch.zeros_like(t)
            torch.testing.assert_close(self.operator.inverse(t, p), t - shift)
            ours = self.operator.inverse_backward(grad.clone(), t, p)
            self.assert_gradients(ours, gradients(lambda t, p: t - (p if self.width else 0), grad, t, p), rows)

    def test_no_edges(self) -> None:
        x, p = torch.empty(0, DIM), self.parameters(1)
        assert self.operator.apply(x, p).shape == (0, DIM)
        by_x, by_p = self.operator.backward(torch.empty(0, DIM), x, p)
        assert by_x.shape == (0, DIM)
        assert by_p.sum(0).count_nonzero() == 0


class TestTranslation(OperatorCase):
    name = "translation"
    width = DIM
    identity: ClassVar = [0.0] * DIM


class TestIdentity(OperatorCase):
    name = "identity"
    width = 0
    identity: ClassVar = []


class TestDiagonal(OperatorCase):
    name = "diagonal"
    width = DIM
    identity: ClassVar = [1.0] * DIM


class TestComplexDiagonal(OperatorCase):
    name = "complex_diagonal"
    width = DIM
    identity: ClassVar = [1.0] * (DIM // 2) + [0.0] * (DIM // 2)


class TestLinear(OperatorCase):
    name = "linear"
    width = DIM * DIM
    identity: ClassVar = torch.eye(DIM).flatten().tolist()
    parameter_rows: ClassVar = (1,)

    def test_it_takes_one_relation_a_call(self) -> None:
        assert [name for name, operator in OPERATORS.items() if operator.one_relation_a_call] == ["linear"]

    def test_it_is_torch_linear(self) -> None:
        x, p = random(0, NUM_EDGES, DIM), self.parameters(1)
        torch.testing.assert_close(self.operator.apply(x, p), torch.nn.functional.linear(x, p.view(DIM, DIM)))


def test_every_operator_has_a_case() -> None:
    assert {case.name for case in OperatorCase.__subclasses__()} == set(OPERATORS)


def test_a_rotation_is_a_complex_number_of_length_one() -> None:
    """RotatE (Sun et al. 2019): turning by an angle and back gives the vector again."""
    angle = random(5, DIM // 2)
    p = torch.cat([angle.cos(), angle.sin()]).unsqueeze(0)
    operator, x = OPERATORS["complex_diagonal"], random(0, NUM_EDGES, DIM)
    turned = operator.apply(x, p)
    torch.testing.assert_close(turned.norm(dim=1), x.norm(dim=1))
    torch.testing.assert_close(operator.adjoint(turned, p)[0], x)
