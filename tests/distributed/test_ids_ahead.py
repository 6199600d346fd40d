"""Ids of sharded tables travel while the step before computes: same bits as one after the other, however it ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from planted_impressions import planted_config, planted_log, write_log, write_vectors
from ranks import run_ranks
from small_graph import log_lines, make_config, planted_splits, write_graph
from torch import Tensor, nn

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.data.graph import Graph
from rookery.errors import PeerFailed, TrainingError
from rookery.parallel.world import leave_world, rank, world_size
from rookery.ranker.train import train_ranker
from rookery.train.loop import _Loop
from rookery.twhin.train import train_twhin

pytest.importorskip("fbgemm_gpu", reason="needs the cluster extra")
pytest.importorskip("torchrec", reason="needs the cluster extra")

BATCH, BATCHES_PER_EPOCH = 48, 6
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "row_wise": {"rowwise_adagrad": {"lr": 0.05}},
    "table_wise": {"adagrad": {"lr": 0.05}},
    "column_wise": {"sgd": {"lr": 1.0}},
    "table_row_wise": {"adagrad": {"lr": 0.05}},
    "data_parallel": {"adam": {"lr": 0.01}},
    "auto": {"rowwise_adagrad": {"lr": 0.05}},
}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """270 edges in uneven lanes."""
    folder = tmp_path_factory.mktemp("data") / "graph"
    return write_graph(folder, planted_splits(300), num_files=3, row_group_size=7).path


def train(graph: Path, save_dir: Path, kinds: tuple[str, str], **training: Any) -> str:
    """Why it ended; three epochs, validated and saved in between."""
    fields = {
        "model.embeddings.backend": "torchrec",
        "parallel.sharding.tables": dict(zip(("user", "item"), kinds, strict=True)),
        "parallel.num_lanes": 12,
        "train_data.per_replica_batch_size": BATCH // world_size(),
        "train_data.negative_alpha": 0.5,
        "training.num_train_steps": None,
        "training.num_epochs": 3,
        "training.train_log_every_n": 1,
        "training.validate_every_n": 5,
        "training.checkpoint_every_n": 4,
        "training.checkpoint_max_to_keep": 2,
        "validation_data": {"split": "valid"},
        **{f"training.{name}": value for name, value in training.items()},
        **{f"model.embeddings.tables.{place}.optimizer": OPTIMIZERS[kind] for place, kind in enumerate(kinds)},
        **{f"model.embeddings.tables.{place}.embedding_dim": 24 for place in (0, 1)},
    }
    return train_twhin(make_config(Graph.open(graph), save_dir, fields)).reason


@contextmanager
def counted() -> Iterator[list[int]]:
    """How many exchanges of ids there are, and how many of them begin before their lookup."""
    from rookery.tables.torchrec_ids import IdExchange

    counts, begin, submit = [0, 0], IdExchange.begin, IdExchange._submit

    def submitted(self: IdExchange, ids: Mapping[str, Tensor]) -> Any:
        counts[0] += 1
        return submit(self, ids)

    def begun(self: IdExchange, ids: Mapping[str, Tensor]) -> None:
        counts[1] += 1
        begin(self, ids)

    with patch.object(IdExchange, "_submit", submitted), patch.object(IdExchange, "begin", begun):
        yield counts


def both_ways(function: Callable[..., Any], save_dir: Path, *arguments: Any) -> list[list[int]]:
    """Train with ids ahead and without; the exchanges of each."""
    counts = []
    for name, look_ahead in (("ahead", _Loop._look_ahead), ("in turn", lambda *_: None)):
        with patch.object(_Loop, "_look_ahead", look_ahead), counted() as exchanges:
            function(save_dir / name, *arguments)
        counts.append(exchanges)
    return counts


def tensors(save_dir: Path) -> dict[str, Tensor]:
    stored = load_checkpoint(save_dir)
    return {name: tensor for group in ("model", "optimizer") for name, tensor in stored.tensors(group).items()}


def require_same_bits(save_dir: Path, other: Path) -> None:
    torch.testing.assert_close(tensors(save_dir), tensors(other), rtol=0, atol=0)
    assert load_checkpoint(save_dir).state["ledger"] == load_checkpoint(other).state["ledger"]
    found, expected = (
        [
            {name: value for name, value in line.items() if name == "loss" or name.startswith("validation/")}
            for line in log
        ]
        for log in (log_lines(save_dir), log_lines(other))
    )
    assert found == expected
    assert sum("loss" in line for line in found) == sum("loss" in line for line in expected) > 0


def twhin_both_ways(save_dir: Path, graph: Path, kinds: tuple[str, str]) -> list[list[int]]:
    return both_ways(lambda folder: train(graph, folder, kinds), save_dir)


@pytest.mark.parametrize(
    ("size", "kinds"),
    [
        (2, ("row_wise", "table_wise")),
        (3, ("column_wise", "data_parallel")),
        pytest.param(3, ("row_wise", "table_wise"), marks=pytest.mark.long),
        pytest.param(2, ("column_wise", "data_parallel"), marks=pytest.mark.long),
        pytest.param(2, ("table_row_wise", "auto"), marks=pytest.mark.long),
        pytest.param(3, ("table_row_wise", "auto"), marks=pytest.mark.long),
    ],
)
def test_twhin_is_trained_to_the_same_bits(graph: Path, tmp_path: Path, size: int, kinds: tuple[str, str]) -> None:
    num_steps = 3 * BATCHES_PER_EPOCH
    counts = [[1 + num_steps, num_steps - 1], [1 + num_steps, 0]]  # one is of nothing, when tables are made
    assert run_ranks(size, twhin_both_ways, tmp_path, graph, kinds) == [counts] * size
    require_same_bits(tmp_path / "ahead", tmp_path / "in turn")


def train_on(save_dir: Path, log: Path, vectors: Path, dropout: float) -> None:
    optimizer = {"rowwise_adagrad": {"lr": 0.05}}
    tables = [
        {"name": "countries", "embedding_dim": 4, "vocabulary": {"min_count": 2}, "dropout": 0.2},
        {"name": "hours", "embedding_dim": 4, "num_embeddings": 24, "optimizer": {"adagrad": {"lr": 0.1}}},
        {
            "name": "categories",
            "embedding_dim": 4,
            "values": list(range(7)),
            "dropout": dropout,
            "optimizer": optimizer,
        },
        {"name": "items", "embedding_dim": 4, "hash_buckets": 64, "optimizer": optimizer},
    ]
    changes = {
        "features__tables": tables,
        "features__backend": "torchrec",
        "parallel__num_lanes": 4,
        "training__num_train_steps": 20,
        "training__train_log_every_n": 1,
        "training__validate_every_n": 8,
        "train_data__batch_size": 96,
        "runtime": {"device": "cpu", "num_threads": 1},
    }
    train_ranker(planted_config(log, save_dir, vectors, **changes))


def ranker_both_ways(save_dir: Path, log: Path, vectors: Path) -> list[list[list[int]]]:
    return [both_ways(train_on, save_dir / str(dropout), log, vectors, dropout) for dropout in (0.0, 0.3)]


def test_a_ranker_is_trained_to_the_same_bits(tmp_path: Path) -> None:
    """Those that dropout makes unknown are known ahead too."""
    log = planted_log()
    write_log(tmp_path / "log", log, num_files=3, row_group_rows=90)
    vectors = write_vectors(tmp_path / "vectors", log)
    counts = [[[21, 19], [21, 0]]] * 2
    assert run_ranks(2, ranker_both_ways, tmp_path, tmp_path / "log", vectors) == [counts] * 2
    for dropout in ("0.0", "0.3"):
        require_same_bits(tmp_path / dropout / "ahead", tmp_path / dropout / "in turn")


KINDS = ("row_wise", "table_wise")


@contextmanager
def at_step(step: int, number: int, happens: Callable[[_Loop[Any]], None]) -> Iterator[None]:
    """Before a step, in one process, when the ids of the next one travel already."""
    take = _Loop._step

    def faulty(self: _Loop[Any], batches: Any) -> None:
        if (self._step_number, rank()) == (step, number):
            happens(self)
        take(self, batches)

    with patch.object(_Loop, "_step", faulty):
        yield


def told_to_stop(loop: _Loop[Any]) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def spoiled(loop: _Loop[Any]) -> None:
    model = loop._job.model
    assert isinstance(model, nn.Module)
    model.register_forward_hook(lambda module, batch, result: (result[0] * float("nan"), result[1]))


def ends_early(graph: Path, folder: Path) -> list[str]:
    """By a signal, by its last step, by a loss; each time it goes on in the same processes."""
    run = folder / "run"
    with at_step(6, 1, told_to_stop):
        reasons = [train(graph, run, KINDS)]
    reasons.append(train(graph, run, KINDS, num_train_steps=9))
    with at_step(13, 0, spoiled):
        try:
            train(graph, run, KINDS)
        except TrainingError as error:
            reasons.append(str(error)[:28])
    reasons.append(train(graph, run, KINDS))
    train(graph, folder / "whole", KINDS)
    return reasons


def test_a_batch_that_is_never_trained_keeps_nobody_waiting(graph: Path, tmp_path: Path) -> None:
    reasons = ["interrupted", "finished", "the loss of step 14 (or of o", "finished"]
    assert run_ranks(2, ends_early, graph, tmp_path) == [reasons] * 2
    torch.testing.assert_close(tensors(tmp_path / "run"), tensors(tmp_path / "whole"), rtol=0, atol=0)
    ledgers = [load_checkpoint(tmp_path / name).state["ledger"] for name in ("run", "whole")]
    assert ledgers[0] == ledgers[1]
    assert ledgers[0]["epochs_proved"] == 3


def left_alone(graph: Path, folder: Path) -> tuple[str, float]:
    began = time.monotonic()

    def leaves(loop: _Loop[Any]) -> None:
        nonlocal began
        began = time.monotonic()
        raise KeyboardInterrupt

    try:
        with at_step(6, 1, leaves):
            train(graph, folder, KINDS)
    except KeyboardInterrupt:
        leave_world()
        return "left", 0.0
    except (TrainingError, PeerFailed) as error:
        return str(error), time.monotonic() - began
    raise AssertionError("it trained on")


def test_whoever_is_left_alone_ends_and_says_in_which_step(graph: Path, tmp_path: Path) -> None:
    (said, took_s), left = run_ranks(2, left_alone, graph, tmp_path / "run")
    assert left == ("left", 0.0)
    assert "rank 0 waited in vain for the others" in said
    assert "rank 0: in " in said
    assert "of step 7 for" in said
    assert took_s < 40  # of the 60 that it waits for a process that is there
