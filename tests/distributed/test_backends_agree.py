"""The two table back ends train the same TwHIN model: one process, 200 steps, every optimizer that both have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_graph import log_lines, make_config, one_thread, planted_splits, write_graph
from torch import Tensor

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.data.graph import Graph
from rookery.twhin.train import load_run, train_twhin
from rookery.types import Side

pytest.importorskip("fbgemm_gpu", reason="needs the cluster extra")
pytest.importorskip("torchrec", reason="needs the cluster extra")

BACKENDS = ("local", "torchrec")
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"sgd": {"lr": 1.0}},
    "adagrad": {"adagrad": {"lr": 0.05}},
    "rowwise_adagrad": {"rowwise_adagrad": {"lr": 0.05}},
}
RAMP = {"learning_rate": 1.0, "final_learning_rate": 0.1, "num_ramp_steps": 20, "final_num_steps": 150}
SCHEDULED = {"sgd": {}, "learning_rate": {"linear_ramp_to_cosine": RAMP}}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    return write_graph(tmp_path / "graph", planted_splits())


def tensors(save_dir: Path) -> dict[str, Tensor]:
    stored = load_checkpoint(save_dir)
    return {name: tensor for group in ("model", "optimizer") for name, tensor in stored.tensors(group).items()}


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS.values(), SCHEDULED], ids=[*OPTIMIZERS, "scheduled"])
def test_200_steps_end_within_a_millionth(graph: Graph, tmp_path: Path, optimizer: dict[str, Any]) -> None:
    for backend in BACKENDS:
        fields = {
            "model.embeddings.backend": backend,
            "model.loss": {"softmax": {}},
            "model.regularizer": {"l2": 0.01},
            "training.num_train_steps": 200,
            "train_data.negative_alpha": 0.5,
        }
        train_twhin(make_config(graph, tmp_path / backend, fields, optimizer=optimizer))
    local, torchrec = (tensors(tmp_path / backend) for backend in BACKENDS)
    torch.testing.assert_close(torchrec, local, rtol=1e-6, atol=1e-6)
    losses = [[line["loss"] for line in log_lines(tmp_path / backend)] for backend in BACKENDS]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert sum(losses[0][-20:]) < 0.8 * sum(losses[0][:20])


@pytest.mark.parametrize("first", BACKENDS)
def test_a_run_goes_on_in_the_other_back_end(graph: Graph, tmp_path: Path, first: str) -> None:
    second = BACKENDS[1 - BACKENDS.index(first)]
    for name, stops in (("whole", [(first, 40)]), ("moved", [(first, 15), (second, 40)])):
        for backend, steps in stops:
            fields = {"model.embeddings.backend": backend, "training.num_train_steps": steps}
            train_twhin(make_config(graph, tmp_path / name, fields))
    torch.testing.assert_close(tensors(tmp_path / "moved"), tensors(tmp_path / "whole"), rtol=1e-6, atol=1e-6)


def test_a_run_is_evaluated_alike(graph: Graph, tmp_path: Path) -> None:
    fields = {"model.embeddings.backend": "torchrec", "training.num_train_steps": 5}
    config = make_config(graph, tmp_path / "run", fields)
    train_twhin(config)
    model = load_run(tmp_path / "run").model
    weights = tensors(tmp_path / "run")
    scores = model.score_candidates(Side.RHS, 0, torch.arange(20), None)
    p = weights["relation.translation/forward"][0]
    torch.testing.assert_close(scores, (weights["table.user"] + p) @ weights["table.item"].T, rtol=1e-5, atol=1e-6)
