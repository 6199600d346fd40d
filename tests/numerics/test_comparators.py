"""Comparators against their formulas: scores, gradients, and where a formula loses its digits."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from naive_twhin import compare
from torch import Tensor

from rookery.twhin.comparators import COMPARATORS, Comparator

NUM_QUERIES, NUM_CANDIDATES, DIM = 5, 7, 6


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pairwise(comparator: Comparator, q: Tensor, c: Tensor) -> Tensor:
    return comparator.pairwise(comparator.prepare(q), comparator.prepare(c))


def pairwise_gradients(comparator: Comparator, grad: Tensor, q: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Through ``prepare``, as the score does it."""
    own, others = comparator.prepare(q), comparator.prepare(c)
    scores = comparator.pairwise(own, others)
    by_c = torch.full_like(c, torch.nan)  # overwritten
    by_q = comparator.pairwise_backward(grad.clone(), scores, own, others, by_c, 0)
    return comparator.prepare_backward(by_q, q, own), comparator.prepare_backward(by_c, c, others)


def aligned_gradients(comparator: Comparator, grad: Tensor, q: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    own, partner = comparator.prepare(q), comparator.prepare(x)
    by_q = torch.zeros_like(q)
    by_x = comparator.aligned_backward(grad.clone(), comparator.aligned(own, partner), own, partner, by_q)
    return comparator.prepare_backward(by_q, q, own), comparator.prepare_backward(by_x, x, partner)


class ComparatorCase:
    name: ClassVar[str]
    scale_of_scores: ClassVar[float]  # how scores grow when both vectors are ten times as long

    @property
    def comparator(self) -> Comparator:
        return COMPARATORS[self.name]

    def formula(self, q: Tensor, c: Tensor) -> Tensor:
        return compare(self.name, q.unsqueeze(-2), c)

    @pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
    def test_pairwise(self, scale: float) -> None:
        q, c = random(0, NUM_QUERIES, DIM) * scale, random(1, NUM_CANDIDATES, DIM) * scale
        expected = self.formula(q.double(), c.double())
        tolerance = 1e-5 * expected.abs().max().item()
        torch.testing.assert_close(pairwise(self.comparator, q, c).double(), expected, rtol=1e-5, atol=tolerance)

    def test_pairwise_gradients(self) -> None:
        q, c, grad = random(0, NUM_QUERIES, DIM), random(1, NUM_CANDIDATES, DIM), random(2, NUM_QUERIES, NUM_CANDIDATES)
        leaves = q.double().requires_grad_(), c.double().requires_grad_()
        expected = torch.autograd.grad(self.formula(*leaves), leaves, grad.double())
        for ours, theirs in zip(pairwise_gradients(self.comparator, grad, q, c), expected, strict=True):
            assert theirs.abs().max() > 0.1
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)

    def test_gradients_of_candidates_add_up_over_chunks(self) -> None:
        comparator = self.comparator
        c, total = comparator.prepare(random(1, NUM_CANDIDATES, DIM)), torch.full((NUM_CANDIDATES, DIM), torch.nan)
        alone = []
        for beta, seed in enumerate((10, 20)):
            q, grad = comparator.prepare(random(seed, NUM_QUERIES, DIM)), random(seed + 1, NUM_QUERIES, NUM_CANDIDATES)
            alone.append(torch.empty_like(total))
            comparator.pairwise_backward(grad.clone(), comparator.pairwise(q, c), q, c, alone[-1], 0)
            comparator.pairwise_backward(grad.clone(), comparator.pairwise(q, c), q, c, total, beta)
        torch.testing.assert_close(total, alone[0] + alone[1], rtol=1e-5, atol=1e-5)

    def test_aligned_is_the_diagonal_of_pairwise(self) -> None:
        q, x, grad = random(0, NUM_QUERIES, DIM), random(3, NUM_QUERIES, DIM), random(4, NUM_QUERIES)
        prepared = self.comparator.prepare(q), self.comparator.prepare(x)
        torch.testing.assert_close(self.comparator.aligned(*prepared), self.comparator.pairwise(*prepared).diagonal())
        expected = pairwise_gradients(self.comparator, grad.diag(), q, x)
        for ours, theirs in zip(aligned_gradients(self.comparator, grad, q, x), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

    def test_the_query_gradient_of_a_partner_is_added_to_what_is_there(self) -> None:
        q, x, grad = (self.comparator.prepare(random(seed, NUM_QUERIES, DIM)) for seed in (0, 3, 4))
        once, twice = torch.zeros_like(q), torch.zeros_like(q)
        for into, times in ((once, 1), (twice, 2)):
            for _ in range(times):
                self.comparator.aligned_backward(grad[:, 0].clone(), self.comparator.aligned(q, x), q, x, into)
        torch.testing.assert_close(twice, 2 * once)

    def test_longer_vectors(self) -> None:
        q, c = random(0, NUM_QUERIES, DIM), random(1, NUM_CANDIDATES, DIM)
        grown = pairwise(self.comparator, 10 * q, 10 * c)
        torch.testing.assert_close(grown, self.scale_of_scores * pairwise(self.comparator, q, c), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("vector", [0.0, 1e-20, 1.0, 1e4])
    def test_equal_vectors_have_finite_gradients(self, vector: float) -> None:
        same = torch.full((2, DIM), vector)
        scores = pairwise(self.comparator, same, same)
        assert torch.isfinite(scores).all()
        parts = [*pairwise_gradients(self.comparator, torch.ones(2, 2), same, same)]
        parts += aligned_gradients(self.comparator, torch.ones(2), same, same)
        assert torch.isfinite(torch.cat(parts)).all()

    @pytest.mark.parametrize(("queries", "candidates"), [(0, 3), (3, 0), (0, 0)])
    def test_empties(self, queries: int, candidates: int) -> None:
        q, c = torch.empty(queries, DIM), torch.empty(candidates, DIM)
        assert pairwise(self.comparator, q, c).shape == (queries, candidates)
        by_q, by_c = pairwise_gradients(self.comparator, torch.empty(queries, candidates), q, c)
        assert by_q.count_nonzero() == by_c.count_nonzero() == 0


class TestDot(ComparatorCase):
    name = "dot"
    scale_of_scores = 100.0


class TestCosine(ComparatorCase):
    name = "cosine"
    scale_of_scores = 1.0

    def test_it_lies_between_minus_one_and_one(self) -> None:
        q = random(0, NUM_QUERIES, DIM)
        torch.testing.assert_close(pairwise(self.comparator, q, -3 * q).diagonal(), torch.full((NUM_QUERIES,), -1.0))
        torch.testing.assert_close(pairwise(self.comparator, q, 1e-3 * q).diagonal(), torch.ones(NUM_QUERIES))


class DistanceCase(ComparatorCase):
    scale_of_scores = 10.0

    def test_near_neighbours_far_from_the_origin_keep_their_digits(self) -> None:
        """``|q|² + |c|² - 2 <q, c>`` has none left: 1e6 - 1e6 to tell 1e-4."""
        q = random(0, NUM_QUERIES, DIM) + 1000.0
        c = q + 1e-2 * random(1, NUM_QUERIES, DIM).sign()
        expected = self.formula(q.double(), c.double())
        found = pairwise(self.comparator, q, c).double()
        torch.testing.assert_close(found.diagonal(), expected.diagonal(), rtol=1e-5, atol=0)
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)

    def test_a_vector_is_at_no_distance_from_itself_and_stays_there(self) -> None:
        same = random(0, NUM_QUERIES, DIM)
        assert pairwise(self.comparator, same, same).diagonal().count_nonzero() == 0
        grad = torch.eye(NUM_QUERIES)
        for gradient in pairwise_gradients(self.comparator, grad, same, same):
            assert gradient.count_nonzero() == 0


class TestL2(DistanceCase):
    name = "l2"


class TestL1(DistanceCase):
    name = "l1"


def test_every_comparator_has_a_case() -> None:
    cases = [*ComparatorCase.__subclasses__(), *DistanceCase.__subclasses__()]
    assert {case.name for case in cases if hasattr(case, "name")} == set(COMPARATORS)
    assert {name for name, comparator in COMPARATORS.items() if comparator.half_products} == {"dot", "cosine"}


@pytest.mark.parametrize("name", ["dot", "cosine"])
def test_half_products_give_float32_close_to_the_exact(name: str) -> None:
    comparator = COMPARATORS[name]
    q, c = comparator.prepare(random(0, NUM_QUERIES, DIM)), comparator.prepare(random(1, NUM_CANDIDATES, DIM))
    half = comparator.pairwise(q.bfloat16(), c.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, comparator.pairwise(q, c), rtol=0.05, atol=0.05)
    grad = random(2, NUM_QUERIES, NUM_CANDIDATES)
    into, exact = torch.zeros_like(c), torch.zeros_like(c)
    by_q = comparator.pairwise_backward(grad.clone(), half, q.bfloat16(), c.bfloat16(), into, 1)
    by_q_exact = comparator.pairwise_backward(grad.clone(), half, q, c, exact, 1)
    assert by_q.dtype == into.dtype == torch.float32
    torch.testing.assert_close(by_q, by_q_exact, rtol=0.05, atol=0.1)
    torch.testing.assert_close(into, exact, rtol=0.05, atol=0.1)
