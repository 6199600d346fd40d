"""One process gets no more data: all end, and what was trained is kept if its readers are the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from small_graph import make_config, planted_splits, write_graph

from rookery.checkpoint.checkpointer import checkpoint_steps, load_checkpoint
from rookery.data.graph import Graph
from rookery.data.stream import ParquetStream
from rookery.errors import DataError, PeerFailed, ReadersGone
from rookery.parallel.world import rank, world_size
from rookery.twhin.train import train_twhin


def train(graph: Path, save_dir: Path, error: type[Exception] | None = None) -> str:
    """How it ended; with an ``error`` that the last process's stream raises instead of its twelfth batch."""
    if error is not None and rank() == world_size() - 1:
        handed_out = 0
        whole = ParquetStream.__next__

        def cut_off(stream: ParquetStream) -> object:
            nonlocal handed_out
            handed_out += 1
            if handed_out == 12:
                raise error("no more")
            return whole(stream)

        ParquetStream.__next__ = cut_off  # type: ignore[method-assign,assignment]
    fields = {"parallel.num_lanes": 4, "training.num_train_steps": 20, "training.train_log_every_n": 5}
    try:
        return train_twhin(make_config(Graph.open(graph), save_dir, fields)).reason
    except (ReadersGone, DataError, PeerFailed) as problem:
        return type(problem).__name__


@pytest.mark.parametrize(
    ("error", "kept"), [(ReadersGone, [11]), (DataError, [])], ids=["readers are gone", "damaged data"]
)
def test_all_end_and_a_run_whose_readers_were_gone_goes_on(
    tmp_path: Path, error: type[Exception], kept: list[int]
) -> None:
    graph = write_graph(tmp_path / "graph", planted_splits(300), num_files=3, row_group_size=7).path
    assert run_ranks(2, train, graph, tmp_path / "run", error) == ["PeerFailed", error.__name__]
    assert checkpoint_steps(tmp_path / "run") == kept
    assert run_ranks(2, train, graph, tmp_path / "run") == ["finished"] * 2
    run_ranks(2, train, graph, tmp_path / "whole")
    ends = [load_checkpoint(tmp_path / name) for name in ("run", "whole")]
    for group in ("model", "optimizer"):
        found, expected = (dict(end.tensors(group)) for end in ends)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert ends[0].state["ledger"] == ends[1].state["ledger"]


def test_a_process_alone_keeps_what_it_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = write_graph(tmp_path / "graph", planted_splits(), row_group_size=7).path
    monkeypatch.setattr(ParquetStream, "__next__", ParquetStream.__next__)  # put back afterwards
    assert train(graph, tmp_path / "run", ReadersGone) == "ReadersGone"
    assert checkpoint_steps(tmp_path / "run") == [11]
