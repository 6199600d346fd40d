"""Stochastic rounding. The rules of the tables are held against formulas in tests/unit/tables/test_local.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rookery.optim.rows import stochastic_round

KEPT_BITS = {torch.bfloat16: 7, torch.float16: 10}  # of the mantissa
each_dtype = pytest.mark.parametrize("dtype", list(KEPT_BITS))


def rounded(values: Tensor, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return stochastic_round(values, dtype, torch.Generator().manual_seed(seed))


def neighbours(value: float, dtype: torch.dtype) -> tuple[float, float]:
    """The representable numbers on both sides, by the definition of a unit in the last place; both are ``value`` itself
    where it can be represented.
    """
    magnitude = abs(value)
    unit = 2.0 ** (torch.tensor(magnitude, dtype=torch.float64).log2().floor().item() - KEPT_BITS[dtype])
    low = magnitude // unit * unit
    high = low if low == magnitude else low + unit
    return (low, high) if value > 0 else (-high, -low)


@each_dtype
@settings(max_examples=60, deadline=None)
@given(value=st.floats(2**-10, 6e4, width=32) | st.floats(-6e4, -(2**-10), width=32), seed=st.integers(0, 2**31))
def test_the_result_is_a_neighbour(dtype: torch.dtype, value: float, seed: int) -> None:
    found = rounded(torch.full((64,), value), dtype, seed).double()
    assert set(found.tolist()) <= set(neighbours(value, dtype))


@each_dtype
@pytest.mark.parametrize("value", [1.0003, -2.7182817, 0.01234, 1000.77])
def test_the_mean_is_the_value(dtype: torch.dtype, value: float) -> None:
    num_draws = 200_000
    found = rounded(torch.full((num_draws,), value), dtype).double()
    exact = torch.tensor(value).double().item()
    low, high = neighbours(exact, dtype)
    chance_up = (exact - low) / (high - low)
    error = (high - low) * (chance_up * (1 - chance_up) / num_draws) ** 0.5
    assert found.mean().item() == pytest.approx(exact, abs=4 * error)
    assert 0 < (found == high).double().mean() < 1


@each_dtype
def test_numbers_that_it_can_hold_stay_exactly(dtype: torch.dtype) -> None:
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = torch.cat([values, torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0**-14, 2.0**15], dtype=dtype)])
    assert torch.equal(rounded(exact.float(), dtype), exact)


@each_dtype
def test_the_same_generator_state_gives_the_same_numbers(dtype: torch.dtype) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(2))
    assert torch.equal(rounded(values, dtype, 5), rounded(values, dtype, 5))
    assert not torch.equal(rounded(values, dtype, 5), rounded(values, dtype, 6))


@each_dtype
def test_elements_are_rounded_independently(dtype: torch.dtype) -> None:
    """The covariance of two columns of the same value is that of independent draws: 0."""
    found = rounded(torch.full((50_000, 2), 1.0003), dtype).double()
    ups = (found > 1.0003).double()
    assert torch.corrcoef(ups.T)[0, 1].abs() < 0.02
