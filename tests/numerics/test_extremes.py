"""Score, loss and gradient of batches at the edges of what can happen: finite, and what the formula says."""

from __future__ import annotations

import itertools

import pytest
import torch
from naive_twhin import naive_batch_loss
from torch import Tensor

from rookery.twhin.batch import TrainBatch
from rookery.twhin.comparators import COMPARATORS
from rookery.twhin.losses import Bce, Loss, MarginRanking, SelfAdversarial, Softmax
from rookery.twhin.negatives import NegativeSampler
from rookery.twhin.operators import OPERATORS
from rookery.twhin.planner import BatchPlanner, NegativePlan, RelationPlan
from rookery.twhin.regularizers import Regularizer
from rookery.twhin.score import ScoreSettings, batch_loss, needs_one_relation, parameter_key
from rookery.types import Side

DIM = 4
NUM_ENTITIES = {"user": 6, "item": 5}
BOTH = (Side.LHS, Side.RHS)
LOSSES: dict[str, Loss] = {
    "bce": Bce(),
    "softmax": Softmax(),
    "margin_ranking": MarginRanking(),
    "self_adversarial": SelfAdversarial(margin=1.0),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)

Gradients = dict[str, Tensor]


def plan(edges: list[tuple[int, int, int]], negatives: NegativePlan, operator: str = "translation") -> TrainBatch:
    """Three relations: two from users to items, one among users."""
    one_relation = any(
        needs_one_relation(operator, comparator, side) for comparator in COMPARATORS for side in ("lhs", "both")
    )
    tables = [("user", "item"), ("user", "item"), ("user", "user")]
    plans = [RelationPlan(lhs, rhs, operator, row, 1.0, one_relation) for row, (lhs, rhs) in enumerate(tables)]
    planner = BatchPlanner(plans, negatives, NegativeSampler(NUM_ENTITIES, {}, alpha=0.0), seed=0)
    lhs, rel, rhs = torch.tensor(edges).reshape(-1, 3).T.contiguous()
    return planner({"lhs": lhs, "rel": rel, "rhs": rhs}, step=0)


def leaves(
    batch: TrainBatch, scale: float = 1.0, operator: str = "translation", side: str = "lhs"
) -> tuple[dict, dict]:
    generator = torch.Generator().manual_seed(2)
    tables = {name: torch.randn(size, DIM, generator=generator) * scale for name, size in NUM_ENTITIES.items()}
    width = OPERATORS[operator].width(DIM)
    keys = sorted({parameter_key(operator, side, predicts) for predicts in Side})
    parameters = {key: torch.randn(3, width, generator=generator).requires_grad_() for key in keys}
    return {name: tables[name][ids].requires_grad_() for name, ids in batch.ids.items()}, parameters


def run(
    batch: TrainBatch,
    loss: Loss,
    rows: dict[str, Tensor],
    parameters: dict[tuple[str, str], Tensor],
    comparator: str = "dot",
    side: str = "lhs",
) -> float:
    settings = ScoreSettings(side, comparator, loss, 1.0, Regularizer())
    value, _ = batch_loss(batch, settings, rows, parameters)
    value.backward()
    return value.item()


SAMPLED = NegativePlan(chunk_size=3, num_in_batch=2, num_global=3, sides=BOTH, log_q=False)
EVERY = NegativePlan(chunk_size=3, num_in_batch=0, num_global=None, sides=BOTH, log_q=False)
EDGES = [(0, 0, 1), (1, 1, 1), (2, 0, 4), (5, 2, 3), (3, 1, 0), (2, 2, 2), (0, 0, 1)]


@each_loss
@pytest.mark.parametrize("scale", [0.0, 1e-12, 100.0, 1e4])
@pytest.mark.parametrize(("comparator", "operator"), list(itertools.product(COMPARATORS, OPERATORS)))
def test_rows_of_any_length_give_finite_numbers(loss: Loss, scale: float, comparator: str, operator: str) -> None:
    """At 1e4 a dot product is about ±1e8, a distance 1e4; at 0 a cosine has no direction."""
    for negatives in (SAMPLED, EVERY):
        batch = plan(EDGES, negatives, operator)
        rows, parameters = leaves(batch, scale, operator)
        numbers = [run(batch, loss, rows, parameters, comparator)]
        numbers += [tensor.grad.sum().item() for tensor in (*rows.values(), *parameters.values())]
        assert torch.isfinite(torch.tensor(numbers)).all()


@each_loss
def test_scores_of_ten_thousand_give_the_loss_of_the_formula(loss: Loss) -> None:
    names = {
        "bce": {"weight": 1.0},
        "softmax": {"temperature": 1.0},
        "margin_ranking": {"margin": 1.0},
        "self_adversarial": {"margin": 1.0, "alpha": 1.0},
    }
    kind = next(name for name, each in LOSSES.items() if each is loss)
    batch = plan(EDGES, SAMPLED)
    rows, parameters = leaves(batch, 70.0)
    value = run(batch, loss, rows, parameters)
    naive_rows, naive_parameters = leaves(batch, 70.0)
    expected = naive_batch_loss(batch, "lhs", "dot", naive_rows, naive_parameters, kind, **names[kind])
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-5)
    assert value > 1000
    for name in rows:
        torch.testing.assert_close(rows[name].grad, naive_rows[name].grad, rtol=1e-3, atol=1e-3)


@each_loss
def test_when_every_negative_is_masked_only_the_positive_counts(loss: Loss) -> None:
    """All edges lead to one item, which lends itself as the only negative."""
    lent = NegativePlan(chunk_size=10, num_in_batch=10, num_global=0, sides=(Side.RHS,), log_q=False)
    batch = plan([(user, 0, 3) for user in range(6)], lent)
    rows, parameters = leaves(batch)
    value = run(batch, loss, rows, parameters)
    positive = ((rows["user"] + parameters["translation", "forward"][0]) * rows["item"]).sum(1)
    alone = loss(positive.detach(), torch.empty(6, 0))
    assert value == pytest.approx(alone.loss.mean().item(), rel=1e-6, abs=1e-7)
    expected = alone.grad_positive.unsqueeze(1) * rows["item"].detach() / 6
    torch.testing.assert_close(rows["user"].grad, expected, rtol=1e-5, atol=1e-7)


@each_loss
@pytest.mark.parametrize("predicts", BOTH)
def test_a_single_edge_without_negatives(loss: Loss, predicts: Side) -> None:
    lent = NegativePlan(chunk_size=1, num_in_batch=1, num_global=0, sides=(predicts,), log_q=False)
    batch = plan([(2, 1, 3)], lent)
    rows, parameters = leaves(batch)
    positive = ((rows["user"] + parameters["translation", "forward"][1]) * rows["item"]).sum(1).detach()
    value = run(batch, loss, rows, parameters)
    assert value == pytest.approx(loss(positive, torch.empty(1, 0)).loss.item(), rel=1e-6, abs=1e-7)


@each_loss
def test_a_relation_without_edges_gets_no_gradient(loss: Loss) -> None:
    for negatives in (SAMPLED, EVERY):
        batch = plan([edge for edge in EDGES if edge[1] != 1], negatives)
        rows, parameters = leaves(batch)
        run(batch, loss, rows, parameters)
        gradient = parameters["translation", "forward"].grad
        assert gradient[1].count_nonzero() == 0
        assert (gradient[[0, 2]].abs().max(dim=1).values > 1e-4).all()


@each_loss
def test_a_table_without_edges_is_not_looked_up(loss: Loss) -> None:
    batch = plan([edge for edge in EDGES if edge[1] == 2], SAMPLED)
    assert set(batch.ids) == {"user"}
    rows, parameters = leaves(batch)
    assert run(batch, loss, rows, parameters) >= 0


@each_loss
def test_repeating_every_edge_changes_neither_loss_nor_gradient(loss: Loss) -> None:
    """Each entity is a candidate, so that negatives do not depend on the batch; gradients are compared by entity."""
    results = []
    for edges in (EDGES, EDGES * 3):
        batch = plan(edges, EVERY)
        rows, parameters = leaves(batch)
        value = run(batch, loss, rows, parameters)
        by_entity = {
            name: torch.zeros(size, DIM).index_add_(0, batch.ids[name], rows[name].grad)
            for name, size in NUM_ENTITIES.items()
        }
        results.append((value, by_entity, parameters["translation", "forward"].grad))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-6)
    torch.testing.assert_close(results[1][1:], results[0][1:], rtol=1e-5, atol=1e-6)


@each_loss
def test_the_gradient_of_a_scaled_loss_is_scaled(loss: Loss) -> None:
    """Gradient accumulation divides the loss before its backward pass."""
    batch = plan(EDGES, SAMPLED)
    gradients = []
    for scale in (1.0, 0.25):
        rows, parameters = leaves(batch)
        value, _ = batch_loss(batch, ScoreSettings("lhs", "dot", loss, 1.0, Regularizer()), rows, parameters)
        (value * scale).backward()
        gradients.append([tensor.grad for tensor in (*rows.values(), *parameters.values())])
    torch.testing.assert_close(gradients[1], [gradient * 0.25 for gradient in gradients[0]])
