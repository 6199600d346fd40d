"""Replicates and the intervals that they give."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rookery.metrics.bootstrap import Resampling, interval


def all_columns(resampling: Resampling, size: int) -> torch.Tensor:
    return torch.cat(list(resampling.chunks(size)), dim=1)


def test_the_first_column_is_the_users_as_they_are_and_each_other_draws_as_many() -> None:
    columns = all_columns(Resampling(30, 50, seed=1), 7)
    assert columns.shape == (30, 51)
    assert torch.equal(columns[:, 0], torch.ones(30).double())
    assert torch.equal(columns.sum(0), torch.full((51,), 30.0).double())
    assert len(columns[:, 1:].unique(dim=1)[0]) == 50


def test_replicates_do_not_depend_on_how_many_are_made_at_a_time() -> None:
    whole = all_columns(Resampling(20, 9, seed=3), 100)
    assert torch.equal(whole, all_columns(Resampling(20, 9, seed=3), 1))
    assert torch.equal(whole[:, :5], all_columns(Resampling(20, 4, seed=3), 3))
    assert not torch.equal(whole, all_columns(Resampling(20, 9, seed=4), 100))


def test_nobody_to_draw() -> None:
    assert all_columns(Resampling(0, 3, seed=0), 2).shape == (0, 4)


def test_an_interval_is_of_percentiles_and_leaves_out_what_is_not_defined() -> None:
    values = torch.arange(101).double()
    assert interval(values) == pytest.approx((2.5, 97.5))
    assert interval(torch.cat([values, torch.full((50,), math.nan).double()])) == interval(values)
    assert all(math.isnan(bound) for bound in interval(torch.tensor([math.nan]).double()))
    assert all(math.isnan(bound) for bound in interval(torch.empty(0).double()))


def test_the_interval_of_a_mean_is_as_wide_as_theory_says() -> None:
    random = np.random.default_rng(0)
    values = torch.from_numpy(random.normal(size=400))
    columns = all_columns(Resampling(400, 2000, seed=0), 500)
    low, high = interval((columns.T @ values)[1:] / 400)
    deviation = values.std().item() / 20
    assert low == pytest.approx(values.mean().item() - 1.96 * deviation, abs=0.15 * deviation)
    assert high == pytest.approx(values.mean().item() + 1.96 * deviation, abs=0.15 * deviation)
