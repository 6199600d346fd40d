"""Training through losses that are not finite.

Each ends with the run that nothing touched: the same parameters (bit for bit where one process trained, else to 1e-5),
and a ledger that proves that no row was lost or read twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from survived_runs import log_of, require_clean, require_survived, tensors_of
from training_jobs import NUM_LANES, Job, fault_of

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.checkpoint.layout import checkpoint_steps
from rookery.config.loader import load_config
from rookery.data.graph import Graph
from rookery.data.stream import StreamPosition
from rookery.train.order import StreamOrder
from rookery.twhin.config import TwhinConfig
from rookery.twhin.reading import open_edges


@pytest.mark.slow
@pytest.mark.parametrize(("model", "size", "rank"), [("twhin", 1, 0), ("twhin", 2, 1), ("ranker", 1, 0)])
def test_a_loss_that_is_not_finite(jobs: Callable[[str], Job], run: Path, model: str, size: int, rank: int) -> None:
    """The run stops before the step, with the rows of it on disk. Where it was the machine's fault, it goes on."""
    job = jobs(model)
    spoiled = fault_of(job, "loss", "nan")
    said = job.run(run, size, {rank: spoiled}, codes=[1] * size)
    folder = run / "not-finite" / f"step-{spoiled.step + 1:09d}"
    for each in said:
        require_clean(each)
        assert f"the loss of step {spoiled.step + 1} " in each
        assert str(folder) in each
    assert log_of(run)[-1]["step"] == spoiled.step
    assert checkpoint_steps(run)[-1] == 5 * job.every_n
    require_same_as_whole_at(job, run, 5 * job.every_n, size)
    kept = pa.concat_tables([pq.read_table(file) for file in sorted(folder.glob("rank-*.parquet"))])
    positions = [StreamPosition(**each) for each in json.loads((folder / "positions.json").read_text())]
    if model == "twhin":
        assert sorted(map(tuple, zip(*kept.to_pydict().values(), strict=True))) == edges_behind(job, positions)
    else:
        assert kept.num_rows == job.batch_size * len(positions)
    job.run(run, size)
    require_survived(run, job.whole, to_the_bit=size == 1)


def edges_behind(job: Job, positions: list[StreamPosition]) -> list[tuple[int, int, int]]:
    """The edges of some batches, sorted."""
    config = load_config(TwhinConfig, job.config)
    files = Graph.open(job.config.parent / "graph").split_files("train")
    stream = open_edges(config, files, StreamOrder(job.batch_size, NUM_LANES))
    edges: list[tuple[int, int, int]] = []
    for position in positions:
        stream.seek(replace(position, num_batches=position.num_batches - 1))
        batch = next(stream)
        edges += zip(*(batch[name].tolist() for name in ("lhs", "rel", "rhs")), strict=True)
    return sorted(edges)


def require_same_as_whole_at(job: Job, run: Path, step: int, size: int) -> None:
    """The newest checkpoint is what a run that ends there leaves."""
    until = run.with_name("until") / "run"
    job.run(until, size, training__num_train_steps=step)
    ours, theirs = (tensors_of(load_checkpoint(each)) for each in (run, until))
    torch.testing.assert_close(ours, theirs, rtol=1e-5 if size > 1 else 0, atol=1e-5 if size > 1 else 0)
