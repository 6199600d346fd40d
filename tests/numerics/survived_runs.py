"""Training jobs that are made to fail, and the proof that what went on after it is the run that nothing touched."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from faults import Fault
from forked_commands import Command, end, start_commands
from interrupted_runs import assert_same_run, last_step
from planted_impressions import planted_config, planted_log, write_log, write_vectors
from small_graph import make_config, planted_splits, write_graph
from torch import Tensor

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.checkpoint.files import Checkpoint
from rookery.config.loader import dump_config

NUM_LANES = 4
GROUPS = ("model", "optimizer")


@dataclass(frozen=True)
class Job:
    """``rookery MODEL train`` with a configuration file, over any number of processes; the batch is that of all."""

    model: str
    config: Path
    batch_size: int
    num_steps: int
    every_n: int
    """Steps between two checkpoints."""

    @property
    def whole(self) -> Path:
        """The run that nothing interrupted, of one process."""
        return self.config.parent / "whole"

    def arguments(self, save_dir: Path, size: int = 1, **changes: Any) -> list[str]:
        """Of the command; ``changes`` replace fields by path, with ``__`` for the dot."""
        fields = {f"parallel__{name}": value for name, value in {"num_lanes": NUM_LANES, "timeout_s": 60}.items()}
        if self.model == "twhin":
            fields["train_data__per_replica_batch_size"] = self.batch_size // size
        settings = [f"--set={name.replace('__', '.')}={value}" for name, value in {**fields, **changes}.items()]
        return [self.model, "train", str(self.config), "--save-dir", str(save_dir), "--json", *settings]

    def start(
        self, save_dir: Path, size: int = 1, faults: Mapping[int, Fault] | None = None, **changes: Any
    ) -> list[Command]:
        streams = Path(tempfile.mkdtemp(prefix="streams-", dir=self.config.parent))  # not where a disk may be full
        return start_commands(self.arguments(save_dir, size, **changes), streams, size, faults)

    def run(
        self,
        save_dir: Path,
        size: int = 1,
        faults: Mapping[int, Fault] | None = None,
        *,
        codes: Sequence[int] | None = None,
        **changes: Any,
    ) -> list[str]:
        """Run until every process ends, by rank with ``codes``, 0 if none are given; what each said on stderr."""
        commands = self.start(save_dir, size, faults, **changes)
        try:
            found = [command.wait() for command in commands]
        finally:
            end(commands)
        said = [command.err.read_text() for command in commands]
        assert found == list(codes or [0] * size), "\n".join(said)
        return said


def twhin_job(folder: Path) -> Job:
    """Moments, a schedule, accumulated batches, the best validation, drawn negatives; 270 edges in 39 row groups."""
    graph = write_graph(folder / "graph", planted_splits(300), num_files=3, row_group_size=7)
    num_steps = 90
    ramp = {"learning_rate": 0.02, "final_learning_rate": 0.001, "num_ramp_steps": 30, "final_num_steps": num_steps}
    schedule = {"linear_ramp_to_cosine": ramp}
    fields = {
        "training.num_train_steps": num_steps,
        "training.checkpoint_every_n": 6,
        "training.checkpoint_max_to_keep": 3,
        "training.gradient_accumulation": 2,
        "training.validate_every_n": 30,
        "training.keep_best": {"metric": "mrr"},
        "validation_data": {"split": "valid"},
        "model.translation_optimizer": {"adam": {}, "learning_rate": schedule},
        "model.embeddings.tables.0.optimizer": {"adam": {}, "learning_rate": schedule},
        "train_data.negative_alpha": 0.5,
        "train_data.buffer_rows": 120,
    }
    config = folder / "config.yaml"
    config.write_text(dump_config(make_config(graph, folder / "unused", fields)))
    job = Job("twhin", config, 48, num_steps, 6)
    job.run(job.whole)
    return job


def ranker_job(folder: Path) -> Job:
    """Tables of every kind, joined vectors, batch normalisation, down-sampling, learned task weights, averaged weights;
    1,800 rows in 21 row groups.
    """
    log = planted_log()
    write_log(folder / "log", log, num_files=3, row_group_rows=90)
    num_steps = 48
    ramp = {"learning_rate": 0.01, "final_learning_rate": 0, "num_ramp_steps": 10, "final_num_steps": num_steps}
    config = planted_config(
        folder / "log",
        folder / "unused",
        write_vectors(folder / "vectors", log),
        training__num_train_steps=num_steps,
        training__train_log_every_n=1,
        training__checkpoint_every_n=4,
        training__checkpoint_max_to_keep=3,
        training__validate_every_n=24,
        training__keep_best={"metric": "valid/mean/logloss", "mode": "min"},
        train_data__batch_size=96,
        train_data__buffer_rows=500,
        preprocess__downsample_negatives={"batch_multiplier": 3, "engagements_list": ["like", "share"]},
        model__featurization_config={"log1p_abs_config": {}},
        model__position_debias_config__drop_probability=0.0,
        loss={"grad_norm": {}},
        optimizer__average={"decay": 0.9},
        optimizer__single_task_learning_rate={"linear_ramp_to_cosine": ramp},
        runtime={"device": "cpu", "num_threads": 1},
    )
    path = folder / "config.yaml"
    path.write_text(dump_config(config))
    job = Job("ranker", path, 96, num_steps, 4)
    job.run(job.whole)
    return job


def require_survived(run: Path, job: Job, *, to_the_bit: bool) -> None:
    """The run ended where the untouched one did: same parameters and states, and the same rows were read.

    To the bit, with every line of the log and the random state, or to 1e-5.
    """
    ours, theirs = load_checkpoint(run), load_checkpoint(job.whole)
    assert ours.step == theirs.step == job.num_steps
    if to_the_bit:
        assert_same_run(run, job.whole)
    torch.testing.assert_close(tensors_of(ours), tensors_of(theirs), rtol=1e-5, atol=1e-5)
    require_all_rows(ours, theirs)
    assert last_step(run) == job.num_steps


def tensors_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """What was learned, and the state of what learns it."""
    return {f"{group}/{name}": tensor for group in GROUPS for name, tensor in checkpoint.tensors(group).items()}


def require_all_rows(ours: Checkpoint, theirs: Checkpoint) -> None:
    """No row was lost or doubled: each finished epoch was proved by the run, the last one as far as it went is that of
    the untouched run.
    """
    place, ledger = ours.state["stream"], ours.state["ledger"]
    is_finished = ledger["current"]["rows"] + ledger["current"]["skipped"] == place["num_rows"]
    assert place == theirs.state["stream"]
    assert ledger["since"] == 0
    assert ledger["epochs_proved"] == place["epoch"] + is_finished > 1
    assert ledger == theirs.state["ledger"]


def checkpoint_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:09d}"


def log_of(run: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's log."""
    complete = (run / "metrics.jsonl").read_text().rpartition("\n")[0].splitlines()
    return [json.loads(line) for line in complete]
