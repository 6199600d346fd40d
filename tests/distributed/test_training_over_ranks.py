"""Several processes train what one does: same batches, same parameters, same evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from small_graph import log_lines, make_config, planted_splits, write_graph
from torch import Tensor

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.data.graph import Graph
from rookery.parallel.world import world_size
from rookery.twhin.train import train_twhin

LANES = 12
BATCH = 48

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"sgd": {"lr": 1.0, "momentum": 0.9}},
    "adagrad": {"adagrad": {"lr": 0.05}},
    "rowwise_adagrad": {"rowwise_adagrad": {"lr": 0.05}},
    "adam": {"adam": {"lr": 0.01}},
}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    folder = tmp_path_factory.mktemp("data") / "graph"
    return write_graph(folder, planted_splits(300), num_files=3, row_group_size=7)


def train(graph: Path, save_dir: Path, optimizer: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    all_fields = {
        "parallel.num_lanes": LANES,
        "train_data.per_replica_batch_size": BATCH // world_size(),
        "training.num_train_steps": 200,
        "training.train_log_every_n": 50,
        "training.validate_every_n": 100,
        "validation_data": {"split": "valid"},
        "train_data.negative_alpha": 0.5,
        **fields,
    }
    train_twhin(make_config(Graph.open(graph), save_dir, all_fields, optimizer=dict(optimizer)))


def tensors(save_dir: Path) -> dict[str, Tensor]:
    stored = load_checkpoint(save_dir)
    return {name: tensor for group in ("model", "optimizer") for name, tensor in stored.tensors(group).items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_any_number_of_processes_trains_the_same_twhin(graph: Graph, tmp_path: Path, optimizer: str) -> None:
    for size in (1, 2, 3, 4):
        run_ranks(size, train, graph.path, tmp_path / str(size), OPTIMIZERS[optimizer], {})
    whole = tensors(tmp_path / "1")
    for size in (2, 3, 4):
        torch.testing.assert_close(tensors(tmp_path / str(size)), whole, rtol=1e-5, atol=1e-5)
        lines = [log_lines(tmp_path / run) for run in ("1", str(size))]
        for alone, together in zip(*lines, strict=True):
            for name in set(alone) & set(together):
                if not name.startswith(("time/", "edges_per_s")):
                    assert together[name] == pytest.approx(alone[name], rel=1e-5), name
