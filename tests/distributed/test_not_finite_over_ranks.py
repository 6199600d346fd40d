"""A loss that is not finite, where one process takes longer than the other to keep its rows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from faults import Fault
from ranks import run_ranks
from small_graph import make_config, planted_splits, write_graph

from rookery.data.graph import Graph
from rookery.errors import TrainingError
from rookery.parallel.world import is_chief
from rookery.train import replay
from rookery.twhin.train import train_twhin


def train(graph: Path, save_dir: Path) -> tuple[float, float, bool]:
    """When this process had kept its rows and when it ended, and whether another one tells why."""
    write, kept = replay._write, []

    def write_slowly(*arguments: Any) -> None:
        time.sleep(0.3 * is_chief())
        write(*arguments)
        kept.append(time.monotonic())

    replay._write = write_slowly
    if not is_chief():
        Fault("loss", 3, "nan").install()
    fields = {"parallel.num_lanes": 4, "training.num_train_steps": 20}
    with pytest.raises(TrainingError, match="the loss of step 4 ") as caught:
        train_twhin(make_config(Graph.open(graph), save_dir, fields))
    return kept[0], time.monotonic(), caught.value.is_told_elsewhere


def test_none_ends_before_all_have_kept_their_rows(tmp_path: Path) -> None:
    """torchrun ends the others as soon as one has ended, the one that tells the error among them."""
    graph = write_graph(tmp_path / "graph", planted_splits(300), num_files=3, row_group_size=7).path
    (kept, _, told_elsewhere), (_, ended, other_told_elsewhere) = run_ranks(2, train, graph, tmp_path / "run")
    assert ended > kept
    assert (told_elsewhere, other_told_elsewhere) == (False, True)
    assert {file.name for file in (tmp_path / "run" / "not-finite" / "step-000000004").glob("rank-*")} == {
        "rank-0-0.parquet",
        "rank-1-0.parquet",
    }
