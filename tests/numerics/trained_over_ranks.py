"""Trainings of 200 steps that any number of processes do alike, for ``run_ranks``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from planted_impressions import planted_config
from small_graph import make_config
from torch import Tensor

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.data.graph import Graph
from rookery.parallel.world import world_size
from rookery.ranker.train import train_ranker
from rookery.twhin.train import train_twhin

LANES = 12
BATCH = 48
NUM_STEPS = 200

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"sgd": {"lr": 1.0}},
    "momentum": {"sgd": {"lr": 0.2, "momentum": 0.9}},
    "adagrad": {"adagrad": {"lr": 0.05}},
    "rowwise_adagrad": {"rowwise_adagrad": {"lr": 0.05}},
    "adam": {"adam": {"lr": 0.01}},
}


def train_on_graph(graph: Path, save_dir: Path, fields: Mapping[str, Any]) -> None:
    all_fields = {
        "parallel.num_lanes": LANES,
        "train_data.per_replica_batch_size": BATCH // world_size(),
        "training.num_train_steps": NUM_STEPS,
        "training.train_log_every_n": 50,
        "training.validate_every_n": 100,
        "validation_data": {"split": "valid"},
        "train_data.negative_alpha": 0.5,
        **fields,
    }
    train_twhin(make_config(Graph.open(graph), save_dir, all_fields))


def train_on_log(log: Path, vectors: Path, save_dir: Path, changes: Mapping[str, Any]) -> None:
    fields: dict[str, Any] = {
        "parallel__num_lanes": LANES,
        "training__num_train_steps": NUM_STEPS,
        "training__train_log_every_n": 50,
        "training__validate_every_n": 100,
        "train_data__batch_size": 2 * BATCH,
        "runtime": {"device": "cpu", "num_threads": 1},
        "calibration": {"partition": "valid"},
    }
    train_ranker(planted_config(log, save_dir, vectors, **{**fields, **changes}))


def tensors(save_dir: Path) -> dict[str, Tensor]:
    """Parameters and optimizer states of a run's newest checkpoint."""
    stored = load_checkpoint(save_dir)
    return {name: tensor for group in ("model", "optimizer") for name, tensor in stored.tensors(group).items()}


def require_same_calibrations(run: Path, other: Path) -> None:
    """By the same steps, to 1e-3: a map is fitted to few labels."""
    found, expected = calibrations(run), calibrations(other)
    assert found.keys() >= expected.keys() != set()
    for name, fitted in expected.items():
        for field in ("scale", "offset"):
            assert found[name][field] == pytest.approx(fitted[field], rel=1e-3, abs=1e-3), (name, field)


def calibrations(run: Path) -> Mapping[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text()) for path in (run / "calibration").iterdir()}
