"""Training through losses that are not finite.

Each ends with the run that nothing touched: the same parameters (bit for bit where one process trained, else to 1e-5),
and a ledger that proves that no row was lost or read twice.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from forked_commands import start_commands
from small_graph import make_config, planted_splits, write_graph
from survived_runs import log_of, require_clean, require_survived, tensors_of
from training_jobs import NUM_LANES, Job, fault_of, finish

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.checkpoint.layout import checkpoint_steps
from rookery.config.loader import dump_config, load_config
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
    told, *others = said
    require_clean(told)
    assert f"the loss of step {spoiled.step + 1} " in told
    assert str(folder) in told
    assert not any("error" in each or "Traceback" in each for each in others), others
    assert log_of(run)[-1]["step"] == spoiled.step
    assert checkpoint_steps(run)[-1] == 5 * job.every_n
    require_same_as_whole_at(job, run, 5 * job.every_n, size)
    kept = pa.concat_tables([pq.read_table(file) for file in sorted(folder.glob("rank-*.parquet"))])
    positions = [StreamPosition(**each) for each in json.loads((folder / "positions.json").read_text())]
    if model == "twhin":
        assert sorted(map(tuple, zip(*kept.to_pydict().values(), strict=True))) == edges_behind(job, positions)
    else:
        assert kept.num_rows == job.batch_size * len(positions)
    require_replayed(run, spoiled.step + 1, kept.num_rows)
    job.run(run, size)
    require_survived(run, job.whole, to_the_bit=size == 1)


def require_replayed(run: Path, step: int, num_rows: int) -> None:
    """The kept rows, of however many processes, have a finite loss with the weights of the checkpoint."""
    out = run.with_name("replayed.json")
    with out.open("w") as stdout:
        command = [sys.executable, "-m", "rookery", "replay", str(run), "--json"]
        subprocess.run(command, stdout=stdout, check=True, timeout=120)
    replay = json.loads(out.read_text())
    weights_of_step = checkpoint_steps(run)[-1]
    assert (replay["step"], replay["weights_of_step"], replay["weights"]) == (step, weights_of_step, [])
    assert sum(batch["num_rows"] for batch in replay["batches"]) == num_rows
    assert all(batch["loss"] is not None for batch in replay["batches"])
    assert f"{step - 1 - weights_of_step} steps lie between" in replay["verdict"]


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


def rookery(folder: Path, code: int, *arguments: object) -> str:
    """A command in a process of its own that ends with ``code``; what it said."""
    (said,) = finish(start_commands([*map(str, arguments)], folder / "streams"), [code])
    return said


@pytest.mark.slow
def test_a_learning_rate_that_is_far_too_large(tmp_path: Path, run: Path) -> None:
    """Started again it stops at the same step; its rows alone bring it about again, from the weights that were kept and
    not from fresh ones. So it is neither the machine nor the data, and with another learning rate it goes well.
    """
    graph = write_graph(tmp_path / "graph", planted_splits())
    fields = {"training.num_train_steps": 20, "training.checkpoint_every_n": 1}
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(make_config(graph, run, fields, optimizer={"sgd": {"lr": 1e25}})))
    for _ in range(2):
        said = rookery(tmp_path, 1, "twhin", "train", config)
        require_clean(said)
        assert "the loss of step 2 " in said
        assert "Lower the learning rate or look at the data" in said
    assert [line["step"] for line in log_of(run) if "loss" in line] == [1]
    assert checkpoint_steps(run) == [1]
    (kept,) = (run / "not-finite" / "step-000000002").glob("*.parquet")
    assert pq.read_table(kept).num_rows == 32

    replay = ["twhin", "train", config, "--set", f"train_data.data_root={kept}", "--set", "training.num_train_steps=1"]
    from_kept = ["--set", f"training.initial_checkpoint_dir={run}", "--save-dir", tmp_path / "kept"]
    assert "the loss of step 1 " in rookery(tmp_path, 1, *replay, *from_kept)
    rookery(tmp_path, 0, *replay, "--save-dir", tmp_path / "fresh")
    lower = ["--set", "model.embeddings.tables.user.optimizer.sgd.lr=0.1"]
    lower += ["--set", "model.embeddings.tables.item.optimizer.sgd.lr=0.1"]
    rookery(tmp_path, 0, "twhin", "train", config, *lower, "--save-dir", tmp_path / "lower")
    assert checkpoint_steps(tmp_path / "lower")[-1] == 20
