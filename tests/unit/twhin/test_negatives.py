"""Drawn negatives: their distribution, and what is never drawn."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor

from rookery.twhin.negatives import NegativeSampler
from rookery.types import Side

DEGREES = torch.tensor([0, 0, 50, 1, 0, 8, 3, 1, 20, 0])
NUM_ENTITIES = {"user": len(DEGREES), "item": 4}
LHS_ONLY = torch.tensor([5, 0, 0, 0])


def sampler(alpha: float) -> NegativeSampler:
    degrees = {
        ("user", Side.RHS): DEGREES,
        ("user", Side.LHS): DEGREES.flip(0),
        ("item", Side.LHS): LHS_ONLY,
        ("item", Side.RHS): torch.ones(4, dtype=torch.int64),
    }
    return NegativeSampler(NUM_ENTITIES, degrees, alpha)


def draw(alpha: float, side: Side = Side.RHS, num_rows: int = 100_000, table: str = "user") -> Tensor:
    return sampler(alpha).draw(table, side, num_rows, torch.Generator().manual_seed(0))


def chance_of(alpha: float) -> Tensor:
    if alpha == 0:
        return torch.full((len(DEGREES),), 1 / len(DEGREES), dtype=torch.float64)
    weight = torch.tensor([float(degree) ** alpha if degree else 0.0 for degree in DEGREES.tolist()]).double()
    return weight / weight.sum()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.75, 1.0, 2.0])
def test_rows_are_drawn_in_proportion_to_a_power_of_their_degree(alpha: float) -> None:
    counts = torch.bincount(draw(alpha), minlength=len(DEGREES))
    chance = chance_of(alpha)
    possible = chance > 0
    assert counts[~possible].count_nonzero() == 0
    assert stats.chisquare(counts[possible], (chance * counts.sum())[possible]).pvalue > 1e-3
    torch.testing.assert_close(sampler(alpha).probability("user", Side.RHS), chance)


def test_each_side_has_degrees_of_its_own() -> None:
    counts = torch.bincount(draw(1.0, Side.LHS), minlength=len(DEGREES))
    assert stats.chisquare(counts[counts > 0], chance_of(1.0).flip(0)[counts > 0] * counts.sum()).pvalue > 1e-3
    assert counts[DEGREES.flip(0) == 0].count_nonzero() == 0


def test_without_alpha_entities_that_no_edge_has_are_drawn_too() -> None:
    assert set(draw(0.0, num_rows=1000).tolist()) == set(range(len(DEGREES)))


def test_draws_are_independent_with_replacement() -> None:
    """Pairs of consecutive draws fill the product of the two distributions."""
    rows = draw(0.5, num_rows=200_000).view(-1, 2)
    table = torch.zeros(len(DEGREES), len(DEGREES)).index_put_(
        (rows[:, 0], rows[:, 1]), torch.ones(len(rows)), accumulate=True
    )
    seen = chance_of(0.5) > 0
    assert stats.chi2_contingency(table[seen][:, seen]).pvalue > 1e-3


def test_a_single_entity_on_the_side_is_all_that_is_drawn() -> None:
    assert draw(0.7, Side.LHS, num_rows=1000, table="item").unique().tolist() == [0]


@pytest.mark.parametrize("alpha", [0.0, 0.75])
def test_a_point_at_the_very_end_stays_in_the_table(alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding may leave a cumulative sum below the largest number under 1."""
    ends = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: ends)
    rows = sampler(alpha).draw("user", Side.RHS, 2, torch.Generator().manual_seed(0))
    assert DEGREES[rows].min() >= (1 if alpha else 0)
    assert rows.max() < len(DEGREES)
    if alpha:
        assert rows.tolist() == [2, 8]  # the first and the last with a degree


@pytest.mark.parametrize("alpha", [0.0, 0.75])
def test_the_same_generator_gives_the_same_rows(alpha: float) -> None:
    first, second = draw(alpha, num_rows=50), draw(alpha, num_rows=50)
    assert torch.equal(first, second)
    assert first.dtype == torch.int64
    assert draw(alpha, num_rows=0).tolist() == []


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize(("num_global", "num_in_batch"), [(10, 0), (10, 7), (0, 7)])
def test_log_expected(alpha: float, num_global: int, num_in_batch: int) -> None:
    found = sampler(alpha).log_expected("user", Side.RHS, num_global, num_in_batch)
    expected = chance_of(alpha) * num_global + DEGREES / DEGREES.sum() * num_in_batch
    possible = expected > 0
    torch.testing.assert_close(found[possible], expected[possible].log().float())
    assert torch.isfinite(found).all()
