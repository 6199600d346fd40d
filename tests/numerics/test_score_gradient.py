"""The hand-written gradient of score and loss against autograd on the plain formulas."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from naive_twhin import naive_batch_loss
from torch import Tensor

from rookery.twhin.batch import QueryGroup, TrainBatch
from rookery.twhin.losses import Bce, Loss, MarginRanking, SelfAdversarial, Softmax
from rookery.twhin.negatives import NegativeSampler
from rookery.twhin.operators import OPERATORS
from rookery.twhin.planner import BatchPlanner, NegativePlan, RelationPlan
from rookery.twhin.regularizers import Regularizer
from rookery.twhin.score import ScoreSettings, batch_loss, needs_one_relation, parameter_key
from rookery.types import Side

DIM = 6
NUM_ENTITIES = {"user": 9, "post": 7}
LOSSES: dict[str, tuple[Loss, dict[str, float]]] = {
    "bce": (Bce(negative_weight=2.0), {"weight": 2.0}),
    "softmax": (Softmax(temperature=0.7), {"temperature": 0.7}),
    "margin_ranking": (MarginRanking(margin=0.3), {"margin": 0.3}),
    "self_adversarial": (SelfAdversarial(margin=0.4, alpha=0.8), {"margin": 0.4, "alpha": 0.8}),
}
COMPARATOR_NAMES = ("dot", "cosine", "l2", "l1")


def relation_plans(operator: str, one_relation: bool) -> list[RelationPlan]:
    tables = [("user", "user"), ("user", "post"), ("user", "user")]
    return [RelationPlan(lhs, rhs, operator, row, 1.0 + row / 2, one_relation) for row, (lhs, rhs) in enumerate(tables)]


def columns(num_edges: int, weighted: bool = True) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    rel = torch.randint(3, (num_edges,), generator=generator)
    rhs = torch.randint(NUM_ENTITIES["post"], (num_edges,), generator=generator)
    lhs = torch.randint(NUM_ENTITIES["user"], (num_edges,), generator=generator)
    weight = {"weight": torch.rand(num_edges, generator=generator) + 0.5} if weighted else {}
    return {"lhs": lhs, "rel": rel, "rhs": rhs, **weight}


def make_batch(
    operator: str, comparator: str, operator_side: str, negatives: NegativePlan, num_edges: int = 23
) -> TrainBatch:
    degrees = {(table, side): torch.arange(1, size + 1) for table, size in NUM_ENTITIES.items() for side in Side}
    sampler = NegativeSampler(NUM_ENTITIES, degrees, alpha=0.5)
    plans = relation_plans(operator, needs_one_relation(operator, comparator, operator_side))
    return BatchPlanner(plans, negatives, sampler, seed=3)(columns(num_edges), step=5)


def leaves(
    batch: TrainBatch, operator: str, operator_side: str
) -> tuple[dict[str, Tensor], dict[tuple[str, str], Tensor]]:
    generator = torch.Generator().manual_seed(2)
    width = OPERATORS[operator].width(DIM)
    tables = {name: torch.randn(size, DIM, generator=generator) for name, size in NUM_ENTITIES.items()}
    rows = {name: tables[name][ids].requires_grad_() for name, ids in batch.ids.items()}
    keys = sorted({parameter_key(operator, operator_side, side) for side in Side})
    return rows, {key: torch.randn(3, width, generator=generator).requires_grad_() for key in keys}


def assert_same_gradients(
    batch: TrainBatch, operator: str, comparator: str, operator_side: str, loss_name: str, log_q_scale: float = 1.0
) -> None:
    loss, naive_parameters = LOSSES[loss_name]
    settings = ScoreSettings(operator_side, comparator, loss, log_q_scale, Regularizer())
    rows, parameters = leaves(batch, operator, operator_side)
    value, _ = batch_loss(batch, settings, rows, parameters)
    (value * 3.0).backward()
    naive_rows, naive_params = leaves(batch, operator, operator_side)
    expected = naive_batch_loss(
        batch, operator_side, comparator, naive_rows, naive_params, loss_name, log_q_scale, **naive_parameters
    )
    (expected * 3.0).backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    for name in rows:
        assert naive_rows[name].grad.abs().max() > 1e-4
        torch.testing.assert_close(rows[name].grad, naive_rows[name].grad, rtol=1e-4, atol=1e-6)
    for key in parameters:
        if operator != "identity":
            assert naive_params[key].grad.abs().max() > 1e-4
            torch.testing.assert_close(parameters[key].grad, naive_params[key].grad, rtol=1e-4, atol=1e-6)


SAMPLED = NegativePlan(chunk_size=5, num_in_batch=3, num_global=4, sides=(Side.LHS, Side.RHS), log_q=False)


@pytest.mark.parametrize(
    ("operator", "comparator", "operator_side"),
    list(itertools.product(OPERATORS, COMPARATOR_NAMES, ("lhs", "rhs", "both"))),
)
def test_every_operator_comparator_and_side(operator: str, comparator: str, operator_side: str) -> None:
    batch = make_batch(operator, comparator, operator_side, SAMPLED)
    assert_same_gradients(batch, operator, comparator, operator_side, "softmax")


@pytest.mark.parametrize("loss_name", list(LOSSES))
@pytest.mark.parametrize("comparator", COMPARATOR_NAMES)
def test_every_loss(loss_name: str, comparator: str) -> None:
    batch = make_batch("translation", comparator, "lhs", SAMPLED)
    assert_same_gradients(batch, "translation", comparator, "lhs", loss_name)


@pytest.mark.parametrize("operator_side", ["lhs", "both"])
@pytest.mark.parametrize("operator", list(OPERATORS))
@pytest.mark.parametrize("comparator", ["dot", "cosine", "l2"])
def test_every_entity_as_candidate(operator: str, comparator: str, operator_side: str) -> None:
    plan = NegativePlan(chunk_size=7, num_in_batch=0, num_global=None, sides=(Side.LHS, Side.RHS), log_q=False)
    batch = make_batch(operator, comparator, operator_side, plan)
    assert_same_gradients(batch, operator, comparator, operator_side, "softmax")


@pytest.mark.parametrize("side", list(Side))
def test_one_side_only_and_log_q(side: Side) -> None:
    plan = NegativePlan(chunk_size=6, num_in_batch=2, num_global=5, sides=(side,), log_q=True)
    batch = make_batch("complex_diagonal", "dot", "lhs", plan)
    assert_same_gradients(batch, "complex_diagonal", "dot", "lhs", "softmax", log_q_scale=0.7)


@pytest.mark.parametrize(("num_in_batch", "num_global"), [(0, 4), (3, 0), (50, 2)])
def test_negative_counts(num_in_batch: int, num_global: int) -> None:
    plan = NegativePlan(
        chunk_size=5, num_in_batch=num_in_batch, num_global=num_global, sides=(Side.LHS, Side.RHS), log_q=False
    )
    batch = make_batch("diagonal", "dot", "lhs", plan)
    assert_same_gradients(batch, "diagonal", "dot", "lhs", "softmax")


@pytest.mark.parametrize("negatives", [False, True])
@pytest.mark.parametrize("operator", ["complex_diagonal", "translation"])
def test_regularizer_adds_its_own_gradient(operator: str, negatives: bool) -> None:
    batch = make_batch(operator, "dot", "both", SAMPLED)
    rows, parameters = leaves(batch, operator, "both")
    plain = batch_loss(batch, ScoreSettings("both", "dot", Bce(), 1.0, Regularizer()), rows, parameters)[0]
    regularizer = Regularizer(0.2, 0.1, negatives)
    held = batch_loss(batch, ScoreSettings("both", "dot", Bce(), 1.0, regularizer), rows, parameters)[0]
    (held - plain).backward()
    naive_rows, naive_parameters = leaves(batch, operator, "both")
    penalty = _naive_penalty(batch, naive_rows, naive_parameters, operator == "complex_diagonal", negatives)
    penalty.backward()
    assert (held - plain).item() == pytest.approx(penalty.item(), rel=1e-4)
    for ours, theirs in ((rows, naive_rows), (parameters, naive_parameters)):
        for key in ours:
            torch.testing.assert_close(ours[key].grad, theirs[key].grad, rtol=1e-3, atol=1e-5)


def _naive_penalty(
    batch: TrainBatch,
    rows: dict[str, Tensor],
    parameters: dict[tuple[str, str], Tensor],
    is_complex: bool,
    negatives: bool,
) -> Tensor:
    def penalty(x: Tensor) -> Tensor:
        size = torch.complex(*x.chunk(2, dim=-1)).abs() if is_complex else x.abs()
        return 0.2 * size.pow(3).sum() + 0.1 * x.pow(2).sum()

    total = torch.zeros(())
    for group in batch.groups:
        for edge in range(group.relation.shape[0]):
            total = total + penalty(rows[group.lhs_table][group.lhs_start + edge])
            total = total + penalty(rows[group.rhs_table][group.rhs_start + edge])
            for key in parameters:  # each direction has its own, and half of the edge
                total = total + penalty(parameters[key][group.relation[edge]]) / 2
        for candidates in group.candidates.values() if negatives else ():
            for chunk, (first, last) in enumerate(group.chunks):
                drawn = rows[candidates.table][candidates.start_of(chunk) :][: candidates.num_global]
                total = total + penalty(drawn) * (last - first) / len(drawn) / 2
    return total / batch.num_edges


def query_batches(
    operator: str, comparator: str, operator_side: str, sides: tuple[Side, ...]
) -> tuple[TrainBatch, TrainBatch]:
    """The same edges as plain groups and as queries."""
    plain = NegativePlan(chunk_size=7, num_in_batch=0, num_global=None, sides=sides, log_q=False)
    grouped = dataclasses.replace(plain, group_queries=True)
    return tuple(make_batch(operator, comparator, operator_side, plan, num_edges=60) for plan in (plain, grouped))


@pytest.mark.parametrize("sides", [(Side.LHS, Side.RHS), (Side.RHS,)])
@pytest.mark.parametrize("operator_side", ["lhs", "both"])
@pytest.mark.parametrize("operator", ["translation", "complex_diagonal", "identity"])
@pytest.mark.parametrize("comparator", COMPARATOR_NAMES)
def test_scoring_each_query_once_changes_nothing(
    operator: str, comparator: str, operator_side: str, sides: tuple[Side, ...]
) -> None:
    """Weighted edges, a regularizer, repeated queries; gradients are compared by entity, since look-ups differ."""
    gradients, losses = [], []
    for batch in query_batches(operator, comparator, operator_side, sides):
        settings = ScoreSettings(operator_side, comparator, Softmax(0.7), 1.0, Regularizer(n3=0.2, l2=0.1))
        rows, parameters = leaves(batch, operator, operator_side)
        loss, _ = batch_loss(batch, settings, rows, parameters)
        loss.backward()
        by_entity = [
            torch.zeros(NUM_ENTITIES[name], DIM).index_add_(0, batch.ids[name], rows[name].grad)
            for name in NUM_ENTITIES
        ]
        gradients.append([*by_entity, *(parameter.grad for parameter in parameters.values())])
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for plain, grouped in zip(*gradients, strict=True):
        torch.testing.assert_close(grouped, plain, rtol=1e-4, atol=1e-6)


def test_queries_are_scored_once() -> None:
    grouped = query_batches("translation", "l2", "lhs", (Side.LHS, Side.RHS))[1]
    for group in grouped.groups:
        assert isinstance(group, QueryGroup)
        num_queries = len(group.relation)
        assert num_queries < len(group.target)
        assert group.query_of_edge.unique().tolist() == list(range(num_queries))
    assert sum(len(group.target) for group in grouped.groups) == 2 * 60


@pytest.mark.parametrize("loss_name", list(LOSSES))
def test_bf16_products_stay_close(loss_name: str) -> None:
    batch = make_batch("translation", "dot", "lhs", SAMPLED)
    loss = LOSSES[loss_name][0]
    gradients = []
    for half in (False, True):
        rows, parameters = leaves(batch, "translation", "lhs")
        batch_loss(batch, ScoreSettings("lhs", "dot", loss, 1.0, Regularizer(), half), rows, parameters)[0].backward()
        gradients.append(torch.cat([tensor.grad.flatten() for tensor in (*rows.values(), *parameters.values())]))
    assert torch.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.999
    assert not torch.equal(gradients[0], gradients[1])
