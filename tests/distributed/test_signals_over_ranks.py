"""One process is sent a signal while it, or another one, waits: all end, with one checkpoint."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from small_graph import log_lines, make_config, planted_splits, write_graph

from rookery.checkpoint.checkpointer import checkpoint_steps, load_checkpoint
from rookery.data.graph import Graph
from rookery.data.stream import ParquetStream
from rookery.errors import TrainingError
from rookery.parallel.world import rank, spread, world_size
from rookery.twhin import link_prediction
from rookery.twhin.train import train_twhin

FIELDS = {
    "parallel.num_lanes": 4,
    "training.num_train_steps": 20,
    "training.train_log_every_n": 5,
    "training.validate_every_n": 10,
}


def told() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def hold_back(told_rank: int | None) -> None:
    """Let the last process's twelfth batch never come; ``told_rank`` is sent a signal meanwhile."""
    if rank() == world_size() - 1:
        handed_out = 0
        whole = ParquetStream.__next__
        closed = threading.Event()

        def held_back(stream: ParquetStream) -> object:
            nonlocal handed_out
            handed_out += 1
            if handed_out == 12:
                closed.wait()
            return whole(stream)

        ParquetStream.__next__ = held_back  # type: ignore[method-assign,assignment]
        ParquetStream.close = lambda stream: closed.set()  # type: ignore[method-assign]
    if rank() == told_rank:
        threading.Timer(2.0, told).start()


def tell_in_validation(told_rank: int | None) -> None:
    """Send ``told_rank`` a signal when the first validation begins, also where it has no part in it."""
    if rank() == told_rank:

        def tell_and_spread(items: Any, function: Any, is_unwanted: Any) -> Any:
            link_prediction.spread = spread  # type: ignore[attr-defined]
            told()
            return spread(items, function, is_unwanted)

        link_prediction.spread = tell_and_spread  # type: ignore[attr-defined]


def train(graph: Path, save_dir: Path, wait: str = "", told_rank: int | None = None) -> object:
    """How it ended: reason, step, the signal."""
    if wait:
        {"data": hold_back, "validation": tell_in_validation}[wait](told_rank)
    fields = {**FIELDS, "validation_data": {"split": "valid"}, "evaluation.chunk_memory_mib": 1}
    try:
        result = train_twhin(make_config(Graph.open(graph), save_dir, fields))
    except TrainingError as problem:
        return str(problem)
    return result.reason, result.step, result.signal


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_graph(
        tmp_path_factory.mktemp("graph") / "graph", planted_splits(300), num_files=3, row_group_size=7
    ).path


@pytest.fixture(scope="module")
def whole(graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    assert run_ranks(2, train, graph, run) == [("finished", 20, None)] * 2
    return run


@pytest.mark.parametrize("told_rank", [0, 1])
@pytest.mark.parametrize(("wait", "step"), [("data", 11), ("validation", 10)])
def test_all_end_with_a_checkpoint_and_go_on(
    graph: Path, whole: Path, tmp_path: Path, wait: str, step: int, told_rank: int
) -> None:
    run = tmp_path / "run"
    began = time.monotonic()
    assert run_ranks(2, train, graph, run, wait, told_rank) == [("interrupted", step, "SIGTERM")] * 2
    assert time.monotonic() - began < 30
    assert checkpoint_steps(run) == [step]
    assert load_checkpoint(run).state["owes_validation"] is (wait == "validation")
    assert run_ranks(2, train, graph, run) == [("finished", 20, None)] * 2
    ends = [load_checkpoint(folder) for folder in (run, whole)]
    for group in ("model", "optimizer"):
        found, expected = (dict(end.tensors(group)) for end in ends)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert ends[0].state["ledger"] == ends[1].state["ledger"]
    assert measured(run) == measured(whole)


def measured(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["validation/mrr"]) for line in log_lines(run) if "validation/mrr" in line]
