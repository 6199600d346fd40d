"""Penalties against their formulas, gradients by autograd."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from rookery.twhin.config import RegularizerConfig
from rookery.twhin.regularizers import Regularizer

ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)) * 3

# Lacroix et al. 2018, section 5: cubes of magnitudes, of complex numbers where the operator is complex; squares.
FORMULAS = {
    "n3": lambda rows, is_complex: (
        torch.complex(*rows.chunk(2, dim=1)).abs().pow(3).sum(1) if is_complex else rows.abs().pow(3).sum(1)
    ),
    "l2": lambda rows, is_complex: rows.pow(2).sum(1),
}


def test_every_penalty_of_the_configuration_is_tested() -> None:
    """``pull`` needs an earlier run: tests/unit/twhin/test_warm_start.py."""
    names = {field.name for field in dataclasses.fields(Regularizer)}
    assert names == {*FORMULAS, "negatives"} == set(RegularizerConfig.model_fields) - {"pull"}


def check(regularizer: Regularizer, rows: Tensor, is_complex: bool) -> None:
    leaf = rows.double().requires_grad_()
    parts = [getattr(regularizer, name) * formula(leaf, is_complex) for name, formula in FORMULAS.items()]
    expected = torch.stack(parts).sum(0)
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    value, grad = regularizer(rows, is_complex)
    torch.testing.assert_close(value.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad.double(), gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("strengths", [{"n3": 0.3}, {"l2": 0.7}, {"n3": 0.3, "l2": 0.7}], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e-4])
def test_value_and_gradient(strengths: dict[str, float], is_complex: bool, scale: float) -> None:
    check(Regularizer(**strengths), ROWS * scale, is_complex)
    assert Regularizer(**strengths).active


@pytest.mark.parametrize("is_complex", [False, True])
def test_a_row_of_zeros_is_free_and_stays(is_complex: bool) -> None:
    value, grad = Regularizer(n3=1.0, l2=1.0)(torch.zeros(2, 6), is_complex)
    assert value.count_nonzero() == grad.count_nonzero() == 0


def test_no_rows_and_no_strength() -> None:
    assert Regularizer(n3=1.0, l2=1.0)(torch.empty(0, 6), True)[0].shape == (0,)
    assert not Regularizer().active
    value, grad = Regularizer()(ROWS, False)
    assert value.count_nonzero() == grad.count_nonzero() == 0
