"""A step whose loss was not finite, computed once more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from naive_twhin import naive_scores
from small_graph import log_lines, make_config, planted_splits, write_graph

from rookery.data.graph import Graph
from rookery.errors import DataError, RunNotFound, TrainingError
from rookery.train.loop import save_start
from rookery.train.meter import MeanMeter
from rookery.train.order import split_lanes
from rookery.train.replay import Finding, read_kept
from rookery.twhin.build import build_model, build_planner
from rookery.twhin.config import TwhinConfig
from rookery.twhin.reading import train_files
from rookery.twhin.replay import replay_step
from rookery.twhin.train import opened_job, train_twhin

SPOILED = 18
QUERIES = {
    "model__loss": {"softmax": {}},
    "train_data__global_negatives": "all",
    "train_data__in_batch_negatives": 0,
    "train_data__mask_known_positives": False,
}
"""Each distinct query is scored once, against every entity."""


def config_of(graph: Graph, run: Path, **fields: Any) -> TwhinConfig:
    """Four lanes, accumulated batches, a checkpoint a step."""
    chosen = {
        "training.num_train_steps": 4,
        "training.checkpoint_every_n": 1,
        "training.gradient_accumulation": 2,
        "parallel": {"num_lanes": 4},
    }
    return make_config(graph, run, {**chosen, **{name.replace("__", "."): value for name, value in fields.items()}})


def spoil(model, _) -> None:
    model.entity_rows("user")[SPOILED] = torch.nan


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    return write_graph(tmp_path / "graph", planted_splits())


@pytest.fixture
def spoiled(graph: Graph, tmp_path: Path) -> TwhinConfig:
    return spoiled_run(graph, tmp_path / "run")


def spoiled_run(graph: Graph, save_dir: Path, **fields: Any) -> TwhinConfig:
    """A run that begins with a user whose vector is not a number, and ends at its first step."""
    config = config_of(graph, save_dir, **fields)
    with opened_job(config, spoil) as (run, job):
        save_start(job, run, config.training, config.runtime)
    with pytest.raises(TrainingError, match=f"`rookery replay {config.training.save_dir}` tells"):
        train_twhin(config)
    return config


@pytest.mark.parametrize("fields", [{}, QUERIES])
def test_the_loss_is_that_of_the_step(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    """Same rows, lanes, negatives and weights: where it was the machine, the loss is the one of a sound run."""
    train_twhin(config_of(graph, tmp_path / "whole", **fields))
    train_twhin(config_of(graph, tmp_path / "run", **fields, training__num_train_steps=3))
    monkeypatch.setattr(MeanMeter, "is_finite", lambda self, name: False)
    with pytest.raises(TrainingError, match="the loss of step 4 "):
        train_twhin(config_of(graph, tmp_path / "run", **fields))
    replay = replay_step(tmp_path / "run")
    assert (replay.step, replay.weights_of_step, replay.weights) == (4, 3, ())
    # The first of the two micro-batches was forward when the step ended; the other is there all the same.
    assert [batch.num_rows for batch in replay.batches] == [32, 32]
    loss = sum(batch.loss for batch in replay.batches) / 2
    assert loss == pytest.approx(log_lines(tmp_path / "whole")[3]["loss"], rel=1e-6)
    assert [batch.findings for batch in replay.batches] == [(), ()]


def test_edges_and_entities_without_a_finite_loss_are_named(spoiled: TwhinConfig, graph: Graph) -> None:
    run = spoiled.training.save_dir
    replay = replay_step(run)
    assert (replay.step, replay.weights_of_step) == (1, 0)
    assert replay.weights == (Finding("weight", "table.user", 8, 20 * 8, (f"user-{SPOILED}",)),)
    name, size = replay.largest
    assert name.startswith("table.")
    assert 0 < size < 1
    kept = read_kept(run).batches[0]
    wanted = naive_lost(spoiled, graph)
    found = {finding.name: finding for finding in replay.batches[0].findings}
    for relation, name in enumerate(("likes", "follows")):
        rows = [row for row, edge in enumerate(edges_of(kept)) if edge in wanted and edge[1] == relation]
        assert 0 < len(rows) < kept.num_rows
        assert found[name].kind == "relation"
        assert found[name].count == len(rows)
        assert found[name].total == sum(edge[1] == relation for edge in edges_of(kept))
        edges = [edges_of(kept)[row] for row in rows[:10]]
        types = ("user", "item" if name == "likes" else "user")
        assert found[name].first == tuple(
            f"rank-0-0.parquet row {row}: {types[0]}-{lhs} {name} {types[1]}-{rhs}"
            for row, (lhs, _, rhs) in zip(rows[:10], edges, strict=True)
        )


def test_edges_that_answer_queries_are_named(graph: Graph, tmp_path: Path) -> None:
    """Every follow has the spoiled user among its candidates; a like meets him where he is the one who likes."""
    config = spoiled_run(graph, tmp_path / "run", **QUERIES, train_data__negative_sides=["rhs"])
    findings = replay_step(tmp_path / "run").batches[0].findings
    edges = edges_of(read_kept(config.training.save_dir).batches[0])
    likes = [row for row, (lhs, rel, _) in enumerate(edges) if rel == 0 and lhs == SPOILED]
    num_follows = sum(rel == 1 for _, rel, _ in edges)
    assert [(each.name, each.count) for each in findings] == [("likes", len(likes)), ("follows", num_follows)]
    assert likes
    assert findings[0].first[0] == f"rank-0-0.parquet row {likes[0]}: user-{SPOILED} likes item-{edges[likes[0]][2]}"


def edges_of(kept) -> list[tuple[int, int, int]]:
    return list(zip(*(kept.columns[name].tolist() for name in ("lhs", "rel", "rhs")), strict=True))


def naive_lost(config: TwhinConfig, graph: Graph) -> set[tuple[int, int, int]]:
    """Edges of the first kept micro-batch that meet the spoiled user, as themselves or as a negative that counts."""
    kept = read_kept(config.training.save_dir).batches[0]
    model = build_model(config, torch.device("cpu"))
    lanes = split_lanes(kept.columns, list(kept.lanes), list(kept.lanes.values()))
    batch = build_planner(config, graph, model, train_files(config, graph)).plan(lanes, 0, kept.total_rows)
    rows = {name: torch.zeros(len(ids), 1) for name, ids in batch.ids.items()}
    rows["user"][batch.ids["user"] == SPOILED] = torch.nan
    parameters = {("translation", "forward"): torch.zeros(2, 1)}
    lost = set()
    for group in batch.groups:
        for chunk, (start, stop) in enumerate(group.chunks):
            for edge in range(start, stop):
                for side in group.candidates:
                    positive, negatives, _ = naive_scores(group, chunk, edge, side, "rhs", "dot", rows, parameters, 1.0)
                    if not (positive.isfinite() and negatives.isfinite().all()):
                        lhs = int(batch.ids[group.lhs_table][group.lhs_start + edge])
                        rhs = int(batch.ids[group.rhs_table][group.rhs_start + edge])
                        lost.add((lhs, 0 if group.rhs_table == "item" else 1, rhs))
    return lost


def test_a_first_step_is_replayed_with_the_weights_that_the_run_began_with(graph: Graph, tmp_path: Path) -> None:
    """A learning rate that is far too large: finite weights, and scores that overflow."""
    config = make_config(graph, tmp_path / "run", {}, optimizer={"sgd": {"lr": 1e25}})
    with pytest.raises(TrainingError, match="the loss of step 2 "):
        train_twhin(config)
    replay = replay_step(tmp_path / "run")
    assert (replay.step, replay.weights_of_step, replay.weights, replay.batches[0].findings) == (2, 0, (), ())
    assert torch.tensor(replay.batches[0].loss).isfinite()
    train_twhin(make_config(graph, tmp_path / "one", {"training.num_train_steps": 1}, optimizer={"sgd": {"lr": 1e25}}))
    (tmp_path / "one" / "checkpoints").rename(tmp_path / "run" / "checkpoints")
    replay = replay_step(tmp_path / "run")
    assert (replay.weights_of_step, replay.weights) == (1, ())
    assert replay.largest[1] > 1e20
    assert not torch.tensor(replay.batches[0].loss).isfinite()
    assert {finding.kind for finding in replay.batches[0].findings} == {"relation"}


def test_what_is_not_kept_or_not_all_is_refused(spoiled: TwhinConfig, tmp_path: Path) -> None:
    run = spoiled.training.save_dir
    with pytest.raises(RunNotFound, match="no rows are kept of step 3; steps with rows: 1"):
        replay_step(run, 3)
    with pytest.raises(RunNotFound, match="no loss of this run was not finite"):
        read_kept(tmp_path / "elsewhere")
    folder = run / "not-finite" / "step-000000001"
    assert [position["num_batches"] for position in json.loads((folder / "positions.json").read_text())] == [1, 2]
    for file in folder.glob("rank-*.parquet"):
        file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"rank-0-0.parquet"):
        replay_step(run)
