"""Losses and their hand-written gradients against library functions, autograd and extremes.

A base case holds what is true of every loss; a subclass says what its loss is, edge by edge, in terms of torch's own
functions. A new loss needs a case: the last test asks for one.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from rookery.twhin.config import LossConfig
from rookery.twhin.losses import Loss
from rookery.twhin.model import make_loss

NUM_EDGES, NUM_NEGATIVES = 5, 7


def loss_of(kind: str, settings: dict[str, float]) -> Loss:
    return make_loss(LossConfig.model_validate({kind: settings}))


def scores(scale: float = 1.0, masked: float = 0.3) -> tuple[Tensor, Tensor]:
    """Scores of positives ``[E]`` and negatives ``[E, N]`` with some of them masked."""
    generator = torch.Generator().manual_seed(0)
    positive = torch.randn(NUM_EDGES, generator=generator) * scale
    negatives = torch.randn(NUM_EDGES, NUM_NEGATIVES, generator=generator) * scale
    negatives[torch.rand(negatives.shape, generator=generator) < masked] = -torch.inf
    return positive, negatives


class LossCase:
    kind: ClassVar[str]
    settings: ClassVar[list[dict[str, Any]]]

    @staticmethod
    def reference(positive: Tensor, negatives: Tensor, num_candidates: int, **settings: float) -> Tensor:
        """The loss of one edge: a scalar and the negatives ``[n]`` that are not masked, of ``num_candidates``."""
        raise NotImplementedError

    def expected(self, positive: Tensor, negatives: Tensor, settings: dict[str, float]) -> Tensor:
        positive, negatives = positive.double(), negatives.double()
        losses = [
            self.reference(own, row[row > -torch.inf], len(row), **settings)
            for own, row in zip(positive, negatives, strict=True)
        ]
        return torch.stack(losses)

    def check(self, positive: Tensor, negatives: Tensor, settings: dict[str, float], weight: Tensor | float) -> None:
        value = loss_of(self.kind, settings)(positive.clone(), negatives.clone(), weight)
        leaves = positive.clone().double().requires_grad_(), negatives.clone().double().requires_grad_()
        expected = self.expected(*leaves, settings)
        torch.testing.assert_close(value.loss.double(), expected.detach(), rtol=1e-5, atol=1e-6)
        (expected * weight).sum().backward()
        for ours, theirs in zip((value.grad_positive, value.grad_negatives), leaves, strict=True):
            gradient = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
            torch.testing.assert_close(ours.double(), gradient, rtol=1e-5, atol=1e-6)

    def each_setting(self) -> list[dict[str, Any]]:
        return [{}, *self.settings]

    @pytest.mark.parametrize("masked", [0.0, 0.3])
    def test_values_and_gradients(self, masked: float) -> None:
        for settings in self.each_setting():
            self.check(*scores(masked=masked), settings, 1.0)
            value = loss_of(self.kind, settings)(*scores(masked=masked))
            assert value.grad_positive.min() < -0.01
            assert value.grad_negatives.max() > 0.01

    @pytest.mark.parametrize("weight", [0.25, torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0])], ids=["one", "each"])
    def test_a_weight_multiplies_the_derivatives_alone(self, weight: Tensor | float) -> None:
        for settings in self.each_setting():
            self.check(*scores(), settings, weight)

    @pytest.mark.parametrize("scale", [1e-4, 30.0, 1e4])
    def test_any_size_of_scores(self, scale: float) -> None:
        for settings in self.each_setting():
            self.check(*scores(scale), settings, 1.0)

    @pytest.mark.parametrize(("own", "others"), [(1e4, -1e4), (-1e4, 1e4), (1e4, 1e4), (-1e4, -1e4), (0.0, 1e30)])
    def test_huge_scores_stay_finite(self, own: float, others: float) -> None:
        for settings in self.each_setting():
            value = loss_of(self.kind, settings)(torch.full((2,), own), torch.full((2, 3), others))
            assert torch.isfinite(torch.cat([value.loss, value.grad_positive, value.grad_negatives.flatten()])).all()

    def test_an_edge_whose_negatives_are_all_masked_has_none(self) -> None:
        positive, negatives = scores()
        negatives[2] = -torch.inf
        for settings in self.each_setting():
            self.check(positive, negatives, settings, 1.0)
            value = loss_of(self.kind, settings)(positive.clone(), negatives.clone())
            assert value.grad_negatives[2].count_nonzero() == 0

    def test_no_candidates(self) -> None:
        for settings in self.each_setting():
            self.check(scores()[0], torch.empty(NUM_EDGES, 0), settings, 1.0)

    def test_one_candidate_and_no_edges(self) -> None:
        positive, negatives = scores(masked=0.0)
        for settings in self.each_setting():
            self.check(positive, negatives[:, :1].contiguous(), settings, 1.0)
            value = loss_of(self.kind, settings)(torch.empty(0), torch.empty(0, 4))
            assert (value.loss.shape, value.grad_negatives.shape) == ((0,), (0, 4))

    def test_masking_is_leaving_out_of_the_sum(self) -> None:
        """A column of masked candidates changes at most the number that a mean divides by."""
        positive, negatives = scores(masked=0.0)
        more = torch.cat([negatives, torch.full((NUM_EDGES, 1), -torch.inf)], dim=1)
        for settings in self.each_setting():
            short, long = (
                loss_of(self.kind, settings)(positive.clone(), each.clone()).grad_negatives
                for each in (negatives, more)
            )
            ratio = short / long[:, :-1]
            assert set(ratio[short != 0].mul(1e4).round().tolist()) <= {1e4, round(1e4 * 8 / 7)}
            assert long[:, -1].count_nonzero() == 0


class TestBce(LossCase):
    kind = "bce"
    settings: ClassVar = [{"negative_weight": 3.0}]

    @staticmethod
    def reference(positive: Tensor, negatives: Tensor, num_candidates: int, negative_weight: float = 1.0) -> Tensor:
        own = F.binary_cross_entropy_with_logits(positive, torch.ones_like(positive))
        others = F.binary_cross_entropy_with_logits(negatives, torch.zeros_like(negatives), reduction="sum")
        return own + negative_weight * others / max(1, num_candidates)


class TestSoftmax(LossCase):
    kind = "softmax"
    settings: ClassVar = [{"temperature": 0.1}, {"temperature": 4.0}]

    @staticmethod
    def reference(positive: Tensor, negatives: Tensor, num_candidates: int, temperature: float = 1.0) -> Tensor:
        logits = torch.cat([positive.view(1), negatives]) / temperature
        return F.cross_entropy(logits, torch.tensor(0))


class TestMarginRanking(LossCase):
    kind = "margin_ranking"
    settings: ClassVar = [{"margin": 0.2}]

    @staticmethod
    def reference(positive: Tensor, negatives: Tensor, num_candidates: int, margin: float = 1.0) -> Tensor:
        ones = torch.ones_like(negatives)
        total = F.margin_ranking_loss(positive.expand_as(negatives), negatives, ones, margin=margin, reduction="sum")
        return total / max(1, num_candidates)


class TestSelfAdversarial(LossCase):
    kind = "self_adversarial"
    settings: ClassVar = [{"margin": 2.0, "alpha": 0.5}, {"margin": -1.0, "alpha": 2.0}, {"alpha": 0.0}]

    @staticmethod
    def reference(
        positive: Tensor, negatives: Tensor, num_candidates: int, margin: float = 0.0, alpha: float = 1.0
    ) -> Tensor:
        """Sun et al. 2019, equation 6; their distance is minus our score, and the weights carry no gradient."""
        weights = torch.softmax(alpha * negatives, dim=0).detach()
        return -F.logsigmoid(margin + positive) - (weights * F.logsigmoid(-(negatives + margin))).sum()


def test_every_loss_of_the_configuration_has_a_case() -> None:
    assert {case.kind for case in LossCase.__subclasses__()} == set(LossConfig.one_of[0].fields)


def test_a_softmax_over_all_is_the_cross_entropy_of_a_classifier() -> None:
    """With every entity as candidate and the true one masked, the loss is that of a linear layer."""
    generator = torch.Generator().manual_seed(3)
    logits, target = torch.randn(6, 9, generator=generator), torch.tensor([0, 3, 3, 8, 5, 1])
    positive, negatives = logits.gather(1, target.unsqueeze(1)).squeeze(1), logits.clone()
    negatives.scatter_(1, target.unsqueeze(1), -torch.inf)
    value = loss_of("softmax", {})(positive, negatives)
    torch.testing.assert_close(value.loss, F.cross_entropy(logits, target, reduction="none"))


def test_log_q_makes_a_sampled_softmax_estimate_the_full_one() -> None:
    """Candidates drawn in proportion to q, corrected by the log of their expected count: the mean of exp(-loss)'s
    denominator is that of all entities.
    """
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(30, generator=generator)
    chance = torch.softmax(torch.randn(30, generator=generator), dim=0)
    num_draws, num_trials = 20, 4000
    drawn = torch.multinomial(chance, num_draws * num_trials, replacement=True, generator=generator)
    corrected = (logits - (chance * num_draws).log())[drawn].view(num_trials, num_draws)
    value = loss_of("softmax", {})(torch.zeros(num_trials), corrected)
    partition = value.loss.exp() - 1  # sum of exp over the candidates, the positive (score 0) taken off
    error = partition.std().item() / math.sqrt(num_trials)
    assert partition.mean().item() == pytest.approx(logits.exp().sum().item(), abs=4 * error)
