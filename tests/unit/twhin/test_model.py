"""The model against the formulas of its scores, for every operator, comparator, side and direction."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from naive_twhin import compare, operate
from torch import Tensor

from rookery.optim.config import OptimizerConfig
from rookery.tables.backends import make_tables
from rookery.tables.protocol import TableSpec
from rookery.twhin.batch import TrainBatch
from rookery.twhin.comparators import COMPARATORS
from rookery.twhin.config import LossConfig, ModelConfig
from rookery.twhin.losses import Bce, MarginRanking, SelfAdversarial, Softmax
from rookery.twhin.model import TwhinModel, make_loss, parameter_rows
from rookery.twhin.negatives import NegativeSampler
from rookery.twhin.operators import OPERATORS
from rookery.twhin.planner import BatchPlanner, NegativePlan
from rookery.types import Side

DIM = 6
NUM_ENTITIES = {"user": 9, "item": 7}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SGD = {"sgd": {"lr": 1.0}}


def model_config(
    operators: tuple[str, ...] = ("translation",) * 3, data_type: str = "fp32", **fields: Any
) -> ModelConfig:
    """Three relations: user to item, user to user, item to user."""
    sides = [("user", "item"), ("user", "user"), ("item", "user")]
    return ModelConfig.model_validate(
        {
            "embeddings": {
                "tables": [
                    {
                        "name": name,
                        "num_embeddings": size,
                        "embedding_dim": DIM,
                        "data_type": data_type,
                        "optimizer": SGD,
                    }
                    for name, size in NUM_ENTITIES.items()
                ],
                "tables_to_log": fields.pop("tables_to_log", None),
            },
            "relations": [
                {"name": f"r{number}", "lhs": lhs, "rhs": rhs, "operator": operator}
                for number, ((lhs, rhs), operator) in enumerate(zip(sides, operators, strict=True))
            ],
            "translation_optimizer": SGD,
            **fields,
        }
    )


def make_model(config: ModelConfig, init_scale: float = 1.0) -> TwhinModel:
    specs = [
        TableSpec(
            table.name,
            table.num_embeddings,
            DIM,
            DTYPES[table.data_type],
            OptimizerConfig.model_validate(SGD),
            init_scale,
        )
        for table in config.embeddings.tables
    ]
    return TwhinModel(config, make_tables("local", specs, seed=1), seed=2)


def random_model(operator: str, comparator: str, operator_side: str, loss: dict[str, Any] | None = None) -> TwhinModel:
    """Its first and last relation have the operator, the second one another."""
    other = "identity" if operator != "identity" else "diagonal"
    config = model_config(
        (operator, other, operator),
        comparator=comparator,
        operator_side=operator_side,
        relation_init_scale=0.8,
        loss=loss or {"bce": {}},
    )
    return make_model(config)


def naive_scores(model: TwhinModel, side: Side, relation: int, anchors: Tensor, candidates: Tensor) -> Tensor:
    spec = model.relations[relation]
    lhs_rows, rhs_rows = model.entity_rows(spec.lhs).double(), model.entity_rows(spec.rhs).double()
    p = model.relation_parameters(relation, side).double()
    operator_side = model.config.operator_side
    scores = torch.empty(len(anchors), len(candidates), dtype=torch.float64)
    pairs = itertools.product(enumerate(anchors.tolist()), enumerate(candidates.tolist()))
    for (row, anchor), (column, candidate) in pairs:
        lhs, rhs = (anchor, candidate) if side is Side.RHS else (candidate, anchor)
        x, y = lhs_rows[lhs], rhs_rows[rhs]
        acts_on_lhs = operator_side == "lhs" or (operator_side == "both" and side is Side.RHS)
        x, y = (operate(spec.operator, x, p), y) if acts_on_lhs else (x, operate(spec.operator, y, p))
        scores[row, column] = compare(model.comparator, x, y)
    return scores


COMBINATIONS = list(itertools.product(OPERATORS, COMPARATORS, ("lhs", "rhs", "both")))
each_combination = pytest.mark.parametrize(("operator", "comparator", "operator_side"), COMBINATIONS)


@each_combination
def test_scores_are_those_of_the_formula(operator: str, comparator: str, operator_side: str) -> None:
    model = random_model(operator, comparator, operator_side)
    for side, relation in itertools.product(Side, range(3)):
        spec = model.relations[relation]
        table = spec.rhs if side is Side.RHS else spec.lhs
        anchors, some = torch.tensor([4, 0, 4, 6]), torch.tensor([6, 1, 1])
        every = torch.arange(NUM_ENTITIES[table])
        for candidates, asked in ((some, some), (every, None)):
            found = model.score_candidates(side, relation, anchors, asked)
            expected = naive_scores(model, side, relation, anchors, candidates)
            torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
            assert found.dtype == torch.float32
            assert not found.requires_grad


@each_combination
def test_a_query_compared_with_raw_rows_orders_candidates_as_the_score(
    operator: str, comparator: str, operator_side: str
) -> None:
    model = random_model(operator, comparator, operator_side)
    anchors = torch.arange(5)
    for side, relation in itertools.product(Side, range(3)):
        spec = model.relations[relation]
        query = model.queries(side, relation, anchors)
        raw = model.entity_rows(spec.rhs if side is Side.RHS else spec.lhs)
        scores = model.score_candidates(side, relation, anchors, None)
        difference = scores - compare(comparator, query.unsqueeze(1), raw)
        is_constant = (difference - difference[:, :1]).abs().max() < 1e-4
        assert model.query_form(side, relation) == is_constant


def test_which_directions_an_index_can_serve() -> None:
    """An operator on the candidates moves to the query across a dot product, and across a distance if it is a shift."""
    for operator, comparator in itertools.product(OPERATORS, COMPARATORS):
        model = random_model(operator, comparator, "lhs")
        moves = (
            operator == "identity" or comparator == "dot" or (operator == "translation" and comparator in ("l1", "l2"))
        )
        assert model.query_form(Side.RHS, 0)
        assert model.query_form(Side.LHS, 0) == moves
        assert all(random_model(operator, comparator, "both").query_form(side, 0) for side in Side)


EDGES = {
    "lhs": torch.tensor([0, 3, 3, 8, 2, 0, 6]),
    "rel": torch.tensor([0, 0, 1, 1, 2, 0, 2]),
    "rhs": torch.tensor([5, 5, 1, 0, 7, 2, 7]),
}
SAMPLED = NegativePlan(chunk_size=3, num_in_batch=2, num_global=3, sides=(Side.LHS, Side.RHS), log_q=False)


def plan_batch(model: TwhinModel, negatives: NegativePlan = SAMPLED) -> TrainBatch:
    return BatchPlanner(model.plans(), negatives, NegativeSampler(NUM_ENTITIES, {}, 0.0), seed=0)(EDGES, step=0)


def mean_positive(model: TwhinModel) -> float:
    total = 0.0
    for lhs, rel, rhs in zip(*(column.tolist() for column in EDGES.values()), strict=True):
        total += model.score_candidates(Side.RHS, rel, torch.tensor([lhs]), torch.tensor([rhs])).item()
        total += model.score_candidates(Side.LHS, rel, torch.tensor([rhs]), torch.tensor([lhs])).item()
    return total / (2 * len(EDGES["lhs"]))


@pytest.mark.parametrize("group_queries", [False, True])
@each_combination
def test_positive_score_is_the_mean_score_of_the_edges(
    operator: str, comparator: str, operator_side: str, group_queries: bool
) -> None:
    """Training scores what evaluation scores, however its batches are laid out."""
    model = random_model(operator, comparator, operator_side, {"softmax": {"temperature": 0.5}})
    every = NegativePlan(3, 0, None, (Side.LHS, Side.RHS), log_q=False, group_queries=True)
    _, outputs = model(plan_batch(model, every if group_queries else SAMPLED))
    assert outputs["positive_score"].item() == pytest.approx(mean_positive(model), rel=1e-4, abs=1e-5)


def test_relations_start_as_the_operator_that_changes_nothing() -> None:
    for operator, operator_side in itertools.product(OPERATORS, ("lhs", "both")):
        model = make_model(model_config((operator,) * 3, operator_side=operator_side))
        for relation, side in itertools.product(range(3), Side):
            expected = OPERATORS[operator].identity_parameters(DIM)
            assert torch.equal(model.relation_parameters(relation, side), expected)


def test_relations_start_as_noise_when_asked() -> None:
    config = model_config(("linear",) * 3, operator_side="both", relation_init_scale=0.5)
    first, again = make_model(config), make_model(config)
    numbers = torch.cat([value.flatten() for value in first.named_relation_parameters().values()])
    assert numbers.numel() == 2 * 3 * DIM * DIM
    assert numbers.std().item() == pytest.approx(0.5, rel=0.15)
    assert abs(numbers.mean().item()) < 0.1
    for key, value in again.named_relation_parameters().items():
        assert torch.equal(value, first.named_relation_parameters()[key])


def test_each_direction_has_parameters_of_its_own_where_the_operator_acts_on_both_sides() -> None:
    for operator_side, keys in (("lhs", {"forward"}), ("rhs", {"forward"}), ("both", {"forward", "reverse"})):
        model = make_model(model_config(operator_side=operator_side, relation_init_scale=1.0))
        assert {key.split("/")[1] for key in model.named_relation_parameters()} == keys
        same = torch.equal(model.relation_parameters(0, Side.LHS), model.relation_parameters(0, Side.RHS))
        assert same == (operator_side != "both")


def test_a_relation_has_its_row_among_those_with_its_operator() -> None:
    config = model_config(("translation", "linear", "translation"))
    assert parameter_rows(config.relations) == (0, 0, 1)
    model = make_model(config)
    model.named_relation_parameters()["translation/forward"][1] = 5.0
    assert model.relation_parameters(2, Side.RHS).tolist() == [5.0] * DIM
    assert model.relation_parameters(0, Side.RHS).tolist() == [0.0] * DIM
    assert [(plan.operator, plan.parameter_row, plan.one_relation) for plan in model.plans()] == [
        ("translation", 0, False),
        ("linear", 0, True),
        ("translation", 1, False),
    ]


def test_edge_and_relation_weights_multiply_the_loss_of_an_edge() -> None:
    """The loss is the mean over edges of weight times loss: one edge at a time, they add up."""
    config = model_config(loss={"softmax": {}})
    every = NegativePlan(10, 0, None, (Side.LHS, Side.RHS), log_q=False)
    weights = torch.tensor([0.5, 1.0, 2.0, 0.0, 3.0, 1.5, 1.0])
    factor = {0: 1.0, 1: 4.0, 2: 0.25}
    relations = [{**r.model_dump(), "weight": factor[n]} for n, r in enumerate(config.relations)]
    model = make_model(ModelConfig.model_validate({**config.model_dump(), "relations": relations}))
    plain = make_model(config)
    sampler = NegativeSampler(NUM_ENTITIES, {}, 0.0)
    batch = BatchPlanner(model.plans(), every, sampler, seed=0)({**EDGES, "weight": weights}, step=0)
    total = 0.0
    for place, weight in enumerate(weights.tolist()):
        edge = {name: column[place : place + 1] for name, column in EDGES.items()}
        alone = plain(BatchPlanner(plain.plans(), every, sampler, seed=0)(edge, step=0))[0].item()
        total += weight * factor[int(edge["rel"])] * alone
    assert model(batch)[0].item() == pytest.approx(total / len(weights), rel=1e-5)


def test_tables_to_log_report_the_mean_norm_of_the_rows_of_the_batch() -> None:
    model = make_model(model_config(tables_to_log=["item"]))
    batch = plan_batch(model)
    _, outputs = model(batch)
    assert set(outputs) == {"positive_score", "norm/item"}
    expected = model.entity_rows("item")[batch.ids["item"]].norm(dim=1).mean()
    assert outputs["norm/item"].item() == pytest.approx(expected.item())


@pytest.mark.parametrize("data_type", ["fp16", "bf16"])
def test_tables_of_half_precision_score_in_float32(data_type: str) -> None:
    model = make_model(model_config(data_type=data_type, relation_init_scale=1.0))
    anchors, candidates = torch.arange(4), torch.arange(7)
    assert model.entity_rows("user").dtype == DTYPES[data_type]
    found = model.score_candidates(Side.RHS, 0, anchors, candidates)
    expected = naive_scores(model, Side.RHS, 0, anchors, candidates)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("data_type", ["fp16", "bf16"])
def test_gradients_of_a_large_batch_do_not_vanish_in_half_precision(data_type: str) -> None:
    """A mean over 20,000 edges of rows of 0.001 is a gradient of 3e-8, half the smallest number of fp16."""
    model = make_model(model_config(data_type=data_type), init_scale=1e-3)
    edges = {name: column[:1].repeat(20_000) for name, column in EDGES.items()}
    edges["lhs"] = torch.arange(20_000) % 9
    received: dict[str, Tensor] = {}
    for name, table in model.tables._tables.items():
        table.receive = lambda ids, gradient, name=name: received.update({name: gradient})
    planner = BatchPlanner(
        model.plans(), NegativePlan(1000, 0, 5, (Side.RHS,), False), NegativeSampler(NUM_ENTITIES, {}, 0.0), seed=0
    )
    model(planner(edges, step=0))[0].backward()
    assert received["user"].abs().median() < 6e-8
    assert (received["user"] == 0).float().mean() < 0.01


def test_amp_scores_in_half_precision_and_returns_float32() -> None:
    model = random_model("translation", "dot", "lhs")
    batch = plan_batch(model)
    exact = model(batch)[0]
    with torch.autocast("cpu", torch.bfloat16):
        half = model(batch)[0]
    assert half.dtype == torch.float32
    assert half.item() != exact.item()
    assert half.item() == pytest.approx(exact.item(), rel=0.02)


def test_tensors_hold_everything_that_was_learned() -> None:
    config = model_config(("translation", "linear", "translation"), operator_side="both", relation_init_scale=1.0)
    model, other = make_model(config), make_model(config)
    for tensor in other.tensors().values():
        tensor.zero_()
    stored = {name: tensor.clone() for name, tensor in model.tensors().items()}
    assert set(stored) == {
        "table.user",
        "table.item",
        *(f"relation.{operator}/{way}" for operator in ("translation", "linear") for way in ("forward", "reverse")),
    }
    other.load_tensors(stored)
    anchors = torch.arange(5)
    for side, relation in itertools.product(Side, range(3)):
        scores = [each.score_candidates(side, relation, anchors, None) for each in (model, other)]
        assert torch.equal(*scores)


def test_micro_batches_before_the_last_move_nothing() -> None:
    model = make_model(model_config())
    before = model.entity_rows("user").clone()
    for micro_step, still in ((0, True), (1, True), (2, False)):
        model.begin_step(0, micro_step, 3)
        model(plan_batch(model))[0].backward()
        assert torch.equal(model.entity_rows("user"), before) == still


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"bce": {"negative_weight": 2.0}}, Bce(2.0)),
        ({"softmax": {"temperature": 0.3, "log_q": True}}, Softmax(0.3)),
        ({"margin_ranking": {"margin": 0.7}}, MarginRanking(0.7)),
        ({"self_adversarial": {"margin": 6.0, "alpha": 0.5}}, SelfAdversarial(6.0, 0.5)),
    ],
)
def test_make_loss(settings: dict[str, Any], expected: object) -> None:
    assert make_loss(LossConfig.model_validate(settings)) == expected
