"""Defects of twitter/the-algorithm-ml that TwHIN must not have, each as a test of behaviour.

The published code labels negatives as positives, never trains its relation vectors, ignores a third of its
configuration, and drops or repeats edges. Each test states what it does there and shows what happens here.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from small_graph import NUM_COMMUNITIES, Triple, log_lines, make_config, planted_splits, write_graph
from survived_runs import assert_equal, final_tensors
from torch.nn.functional import softplus

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.checkpoint.layout import checkpoint_steps
from rookery.data.graph import Graph
from rookery.twhin.batch import TrainBatch
from rookery.twhin.build import build_job, build_model
from rookery.twhin.config import TwhinConfig
from rookery.twhin.evaluation import Evaluator
from rookery.twhin.model import TwhinModel
from rookery.twhin.retrieval import NeighborRequest, find_neighbors
from rookery.twhin.source import export_run, open_source
from rookery.twhin.train import load_run, train_twhin
from rookery.types import Side

CPU = torch.device("cpu")
EVERY_ENTITY = {"train_data.global_negatives": "all", "train_data.in_batch_negatives": 0}


@pytest.fixture
def planted(tmp_path: Path) -> Graph:
    return write_graph(tmp_path / "planted", planted_splits())


def batches_of(config: TwhinConfig, graph: Graph, count: int) -> tuple[TwhinModel, list[TrainBatch]]:
    """A fresh model and the first batches that its training would take."""
    model = build_model(config, CPU)
    job = build_job(config, graph, model, CPU)
    return model, [job.transform(next(job.stream), job.stream.position()) for _ in range(count)]


def mean_scores(model: TwhinModel, triples: list[Triple], relation: int) -> tuple[float, float]:
    """Mean score of the true edges of a relation, and of all other pairs."""
    lhs, rhs = (model.num_entities(table) for table in (model.relations[relation].lhs, model.relations[relation].rhs))
    scores = model.score_candidates(Side.RHS, relation, torch.arange(lhs), torch.arange(rhs))
    true = torch.zeros(lhs, rhs, dtype=torch.bool)
    for head, rel, tail in triples:
        if rel == relation:
            true[head, tail] = True
    return scores[true].mean().item(), scores[~true].mean().item()


# 1. Negatives are labelled 1 there, so training raises their scores.
@pytest.mark.parametrize("loss", ["bce", "softmax", "margin_ranking", "self_adversarial"])
def test_01_training_lowers_the_scores_of_negatives(planted: Graph, tmp_path: Path, loss: str) -> None:
    config = make_config(planted, tmp_path / "run", {"training.num_train_steps": 60, "model.loss": {loss: {}}})
    before, after = build_model(config, CPU), (train_twhin(config), load_run(tmp_path / "run").model)[1]
    triples = [triple for split in planted_splits().values() for triple in split]
    for relation in range(2):
        (positive_0, negative_0), (positive_1, negative_1) = (
            mean_scores(model, triples, relation) for model in (before, after)
        )
        assert positive_1 - negative_1 > positive_0 - negative_0 + 0.5
        if loss in ("bce", "self_adversarial"):  # the other two care for differences alone
            assert negative_1 < negative_0 - 0.2


# 2. Relation vectors are read through `.data` there and stay where they started.
def test_02_relation_vectors_learn_even_when_nothing_else_does(planted: Graph, tmp_path: Path) -> None:
    frozen = {"optimizer": {"sgd": {}, "learning_rate": {"constant": 0.0}}, "init_scale": 0.5}
    fields = {**EVERY_ENTITY, "train_data.per_replica_batch_size": 1000, "training.num_train_steps": 20}
    config = make_config(planted, tmp_path / "run", fields, **frozen)
    train_twhin(config)
    start, end = build_model(config, CPU), load_run(tmp_path / "run").model
    for table in end.table_names:
        assert torch.equal(start.entity_rows(table), end.entity_rows(table))
    moved = [end.relation_parameters(relation, Side.RHS).norm().item() for relation in range(2)]
    assert min(moved) > 0.05
    losses = [line["loss"] for line in log_lines(tmp_path / "run")]  # all edges, all negatives: one objective
    assert losses[-1] < losses[0] - 0.01
    assert losses == sorted(losses, reverse=True)


# 3. The relation vector is added to positives there, and to no negative.
@pytest.mark.parametrize("operator_side", ["lhs", "rhs"])
@pytest.mark.parametrize("predicted", list(Side))
def test_03_the_operator_acts_on_negatives_too(tmp_path: Path, operator_side: str, predicted: Side) -> None:
    graph = write_graph(
        tmp_path / "graph",
        {"train": [(0, 0, 0)]},
        relations=(("likes", "user", "item"),),
        num_entities={"user": 3, "item": 3},
    )
    fields = {**EVERY_ENTITY, "train_data.negative_sides": [predicted.value], "model.operator_side": operator_side}
    model, (batch,) = batches_of(make_config(graph, tmp_path / "run", fields, init_scale=1.0), graph, 1)
    p = torch.randn(8, generator=torch.Generator().manual_seed(1))
    model.named_relation_parameters()["translation/forward"][0] = p
    user, item = model.entity_rows("user"), model.entity_rows("item")
    scores = (user + p) @ item.T if operator_side == "lhs" else user @ (item + p).T
    negatives = scores[0, 1:] if predicted is Side.RHS else scores[1:, 0]
    loss, _ = model(batch)
    # The positive is one of the three candidates and is masked: two negatives, a mean over three.
    assert loss.item() == pytest.approx((softplus(-scores[0, 0]) + softplus(negatives).sum() / 3).item(), rel=1e-5)


# 4. Nothing is masked there: a negative may be the positive itself, or another true edge.
def test_04_an_in_batch_negative_that_is_the_positive_is_masked(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "graph", {"train": [(user, 0, 7) for user in range(6)]})
    fields = {
        "train_data.global_negatives": 0,
        "train_data.in_batch_negatives": 6,
        "train_data.negative_sides": ["rhs"],
    }
    model, (batch,) = batches_of(make_config(graph, tmp_path / "run", fields, init_scale=1.0), graph, 1)
    positive = model.score_candidates(Side.RHS, 0, torch.arange(6), torch.tensor([7])).squeeze(1)
    assert model(batch)[0].item() == pytest.approx(softplus(-positive).mean().item(), rel=1e-5)


def test_04_a_global_negative_that_is_the_positive_is_masked(tmp_path: Path) -> None:
    graph = write_graph(
        tmp_path / "graph",
        {"train": [(0, 0, 0), (1, 0, 0)]},
        relations=(("likes", "user", "item"),),
        num_entities={"user": 2, "item": 1},
    )
    fields = {"train_data.in_batch_negatives": 0, "train_data.negative_sides": ["rhs"]}  # 10 draws of the only item
    model, (batch,) = batches_of(make_config(graph, tmp_path / "run", fields, init_scale=1.0), graph, 1)
    positive = model.score_candidates(Side.RHS, 0, torch.arange(2), torch.tensor([0])).squeeze(1)
    assert model(batch)[0].item() == pytest.approx(softplus(-positive).mean().item(), rel=1e-5)


@pytest.mark.parametrize("mask_known_positives", [False, True])
def test_04_another_true_edge_is_masked_when_asked(tmp_path: Path, mask_known_positives: bool) -> None:
    graph = write_graph(tmp_path / "graph", {"train": [(3, 0, item) for item in range(5)]})
    fields = {
        "train_data.global_negatives": 0,
        "train_data.in_batch_negatives": 5,
        "train_data.negative_sides": ["rhs"],
        "train_data.mask_known_positives": mask_known_positives,
    }
    model, (batch,) = batches_of(make_config(graph, tmp_path / "run", fields, init_scale=1.0), graph, 1)
    scores = model.score_candidates(Side.RHS, 0, torch.tensor([3]), torch.arange(5))[0]
    expected = softplus(-scores).mean()
    if not mask_known_positives:  # each edge has the other four as negatives, one of five is masked
        expected = expected + (softplus(scores).sum() - softplus(scores).mean()) / 5
    assert model(batch)[0].item() == pytest.approx(expected.item(), rel=1e-5)


# 5. Parsed and ignored there: global_negatives, num_epochs, schedules, validation, metrics, retention, AMP.
@pytest.mark.parametrize("count", [0, 1, 25])
def test_05_global_negatives_are_drawn_and_moved(planted: Graph, tmp_path: Path, count: int) -> None:
    fields = {"train_data.global_negatives": count, "train_data.negative_sides": ["rhs"]}
    model, (batch,) = batches_of(make_config(planted, tmp_path / "run", fields), planted, 1)
    num_chunks = sum(len(group.chunks) for group in batch.groups)
    assert sum(ids.shape[0] for ids in batch.ids.values()) == 2 * batch.num_edges + count * num_chunks
    before = {name: rows.clone() for name, rows in model.tables.weights().items()}
    model(batch)[0].backward()
    for group in batch.groups:
        drawn = group.candidates[Side.RHS]
        rows = batch.ids[drawn.table][drawn.start : drawn.start + count * len(group.chunks)]
        assert (model.entity_rows(drawn.table)[rows] != before[drawn.table][rows]).any(dim=1).all()


def test_05_num_epochs_ends_training(planted: Graph, tmp_path: Path) -> None:
    config = make_config(planted, tmp_path / "run", {"training.num_train_steps": None, "training.num_epochs": 3})
    result = train_twhin(config)
    assert (result.step, result.reason) == (3 * 6, "finished")  # 180 edges, 32 a batch
    assert log_lines(tmp_path / "run")[-1]["epoch"] == 3.0


def test_05_schedules_move_what_they_schedule(planted: Graph, tmp_path: Path) -> None:
    def stop_at(step: int) -> dict[str, Any]:
        return {"piecewise_constant": {"learning_rate_boundaries": [step], "learning_rate_values": [0.1, 0.0]}}

    def fields(steps: int) -> dict[str, Any]:
        return {
            "training.num_train_steps": steps,
            "model.embeddings.tables.0.optimizer": {"adagrad": {"lr": 9.0}, "learning_rate": stop_at(2)},
            "model.embeddings.tables.1.optimizer": {"sgd": {"lr": 9.0}, "learning_rate": stop_at(4)},
            "model.translation_optimizer": {"adagrad": {"lr": 9.0}, "learning_rate": stop_at(3)},
        }

    after = {}
    for steps in range(1, 7):
        train_twhin(make_config(planted, tmp_path / str(steps), fields(steps)))
        after[steps] = load_checkpoint(tmp_path / str(steps)).tensors("model")
    for name, last in (("table.user", 2), ("table.item", 4), ("relation.translation/forward", 3)):
        still = [torch.equal(after[step][name], after[step + 1][name]) for step in range(1, 6)]
        assert still == [step >= last for step in range(1, 6)]
    rates = [[line[f"lr/{name}"] for name in ("user", "item", "relations")] for line in log_lines(tmp_path / "6")]
    assert rates == [[0.1 * (step < last) for last in (2, 4, 3)] for step in range(6)]


def test_05_validation_measures_the_model_of_its_step(planted: Graph, tmp_path: Path) -> None:
    fields = {
        "validation_data": {"split": "valid"},
        "training.validate_every_n": 4,
        "training.checkpoint_every_n": 4,
        "evaluation.metrics": ["link_prediction", "recommendation"],
        "evaluation.ks": [2],
    }
    config = make_config(planted, tmp_path / "run", fields)
    train_twhin(config)
    measured = {line["step"]: line for line in log_lines(tmp_path / "run") if "validation/mrr" in line}
    assert list(measured) == [4, 8, 10]
    evaluator = Evaluator.from_graph(planted, "valid", config.evaluation)
    for step, line in measured.items():
        expected = evaluator.evaluate(load_run(tmp_path / "run", step).model).metrics()
        assert {name.removeprefix("validation/") for name in line} >= {"mrr", "hits@2", "recall@2", "ndcg@2"}
        assert {name: line[f"validation/{name}"] for name in expected} == pytest.approx(expected, nan_ok=True)


def test_05_checkpoint_max_to_keep_keeps_that_many(planted: Graph, tmp_path: Path) -> None:
    fields = {"training.checkpoint_every_n": 2, "training.checkpoint_max_to_keep": 3}
    train_twhin(make_config(planted, tmp_path / "run", fields))
    assert checkpoint_steps(tmp_path / "run") == [6, 8, 10]


def test_05_amp_multiplies_in_half_precision(planted: Graph, tmp_path: Path) -> None:
    losses = {}
    for enabled in (False, True):
        fields = {"runtime.enable_amp": enabled, "training.num_train_steps": 1}
        train_twhin(make_config(planted, tmp_path / str(enabled), fields, init_scale=1.0))
        losses[enabled] = log_lines(tmp_path / str(enabled))[0]["loss"]
    assert losses[True] != losses[False]
    assert losses[True] == pytest.approx(losses[False], rel=0.01)


# 6. A batch that is not full breaks a fixed reshape there, so the last rows of every file are dropped.
def test_06_the_rows_of_batches_that_are_not_full_are_trained_on(tmp_path: Path) -> None:
    num_users = 17
    triples = [(user, 0, user % 5) for user in range(num_users)]
    graph = write_graph(
        tmp_path / "graph",
        {"train": triples},
        relations=(("likes", "user", "item"),),
        num_entities={"user": num_users, "item": 5},
        num_files=3,
    )
    fields = {
        "training.num_train_steps": None,
        "training.num_epochs": 1,
        "train_data.per_replica_batch_size": 4,
        "train_data.chunk_size": 3,
        "train_data.negative_sides": ["rhs"],  # so a user moves by the one edge that it has
    }
    config = make_config(graph, tmp_path / "run", fields)
    assert train_twhin(config).step == 5
    before, after = build_model(config, CPU).entity_rows("user"), load_run(tmp_path / "run").model.entity_rows("user")
    assert (before != after).any(dim=1).all()


# 8. A resumed run forgets schedule and data position there; checkpoints are taken on logging steps alone.
@pytest.mark.parametrize("cut", [1, 5, 6, 11])
def test_08_a_resumed_run_goes_on_with_schedule_and_position(planted: Graph, tmp_path: Path, cut: int) -> None:
    ramp = {"learning_rate": 0.2, "final_learning_rate": 0.01, "num_ramp_steps": 4, "final_num_steps": 12}
    optimizer = {"adam": {}, "learning_rate": {"linear_ramp_to_cosine": ramp}}
    for name, stops in (("whole", [14]), ("cut", [cut, 14])):
        for steps in stops:
            fields = {"training.num_train_steps": steps, "model.translation_optimizer": optimizer}
            train_twhin(make_config(planted, tmp_path / name, fields, optimizer=optimizer))
    assert_equal(final_tensors(tmp_path / "cut"), final_tensors(tmp_path / "whole"))
    steady = ("step", "loss", "epoch", "lr/user", "lr/relations")
    logs = [[[line[key] for key in steady] for line in log_lines(tmp_path / name)] for name in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_08_checkpoints_have_a_cadence_of_their_own(planted: Graph, tmp_path: Path) -> None:
    fields = {"training.train_log_every_n": 7, "training.checkpoint_every_n": 4}
    train_twhin(make_config(planted, tmp_path / "run", fields))
    assert checkpoint_steps(tmp_path / "run") == [4, 8, 10]
    assert [line["step"] for line in log_lines(tmp_path / "run")] == [7, 10]


# 11. Files are sampled with replacement there. 16. Batches end at row groups there, and a short one ends its file.
@pytest.mark.parametrize("row_group_size", [3, 50, 1000])
@pytest.mark.parametrize("num_files", [1, 4])
def test_11_and_16_an_epoch_visits_each_edge_once(tmp_path: Path, row_group_size: int, num_files: int) -> None:
    train = planted_splits()["train"]
    graph = write_graph(tmp_path / "graph", {"train": train}, num_files=num_files, row_group_size=row_group_size)
    config = make_config(graph, tmp_path / "run", {"train_data.buffer_rows": 40})
    _, batches = batches_of(config, graph, 2 * 6)
    for epoch in (batches[:6], batches[6:]):
        assert Counter(edge for batch in epoch for edge in edges_in(batch)) == Counter(train)
        assert [batch.num_edges for batch in epoch] == [32] * 5 + [20]


def edges_in(batch: TrainBatch) -> list[Triple]:
    """The edges of a batch of the planted graph, whose relations tell each other apart by their tables."""
    edges = []
    for group in batch.groups:
        stop = group.relation.shape[0]
        lhs = batch.ids[group.lhs_table][group.lhs_start : group.lhs_start + stop]
        rhs = batch.ids[group.rhs_table][group.rhs_start : group.rhs_start + stop]
        assert torch.equal(group.relation, torch.full_like(lhs, int(group.rhs_table == "user")))
        edges += list(zip(lhs.tolist(), group.relation.tolist(), rhs.tolist(), strict=True))
    return edges


# 13. No rank evaluation, export, id mapping or neighbours there.
def test_13_from_a_run_to_ranks_vectors_and_neighbours_by_id(planted: Graph, tmp_path: Path) -> None:
    fields = {"training.num_train_steps": 150, "training.train_log_every_n": 50, "model.loss": {"softmax": {}}}
    train_twhin(make_config(planted, tmp_path / "run", fields))
    source = open_source(tmp_path / "run")
    evaluation = Evaluator.from_graph(planted, "valid", load_run(tmp_path / "run").config.evaluation)
    assert evaluation.evaluate(source.embeddings).metrics()["mrr"] > 0.4  # by chance .2
    export_run(tmp_path / "run", tmp_path / "export")
    users = pq.read_table(tmp_path / "export" / "entities" / "user.parquet").to_pylist()
    assert [row["id"] for row in users] == [f"user-{row}" for row in range(20)]
    assert users[4]["vector"] == load_run(tmp_path / "run").model.entity_rows("user")[4].tolist()
    found = find_neighbors(source, NeighborRequest(ids=["user-7"], k=3, entity_type="user", relation="likes"))
    communities = [int(str(neighbor.id).split("-")[1]) % NUM_COMMUNITIES for neighbor in found.neighbors]
    assert communities.count(7 % NUM_COMMUNITIES) >= 2


# 17. The loop runs a step too many there, and the reported loss is divided in place.
@pytest.mark.parametrize("num_train_steps", [1, 6, 7])
def test_17_exactly_num_train_steps_steps(planted: Graph, tmp_path: Path, num_train_steps: int) -> None:
    fields = {"training.num_train_steps": num_train_steps, "model.translation_optimizer": {"adam": {}}}
    config = make_config(planted, tmp_path / "run", fields, optimizer={"adam": {}})
    assert train_twhin(config).step == num_train_steps
    state = load_checkpoint(tmp_path / "run").tensors("optimizer")
    assert [int(tensor) for name, tensor in state.items() if name.endswith(".step")] == [num_train_steps] * 3


def test_17_the_reported_loss_is_the_true_mean(planted: Graph, tmp_path: Path) -> None:
    for every_n in (1, 4):
        train_twhin(make_config(planted, tmp_path / str(every_n), {"training.train_log_every_n": every_n}))
    single = [line["loss"] for line in log_lines(tmp_path / "1")]
    several = [line["loss"] for line in log_lines(tmp_path / "4")]
    means = [sum(part) / len(part) for part in (single[:4], single[4:8], single[8:])]
    assert several == pytest.approx(means, rel=1e-12)
    model, (batch,) = batches_of(make_config(planted, tmp_path / "1"), planted, 1)
    assert single[0] == model(batch)[0].item()


def test_17_local_files_need_no_cloud_client() -> None:
    clients = '{"gcsfs", "s3fs", "google.cloud"}'
    code = f"import sys, rookery.twhin.train; assert {clients}.isdisjoint(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
