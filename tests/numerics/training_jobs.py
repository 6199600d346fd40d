"""Training jobs that are made to fail, in processes of their own."""

from __future__ import annotations

import json
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from faults import Action, Fault, Place
from forked_commands import TIMEOUT_S, Command, end, start_commands
from planted_impressions import planted_config, planted_log, planted_settings, write_log, write_vectors
from small_graph import make_config, planted_splits, write_graph
from survived_runs import last_step

from rookery.config.loader import dump_config
from rookery.ranker.config import RankerConfig
from rookery.twhin.config import TwhinConfig

NUM_LANES = 4
GRACE_S = 30
"""What Kubernetes gives a container between SIGTERM and SIGKILL, unless told otherwise."""


@dataclass(frozen=True)
class Job:
    """``rookery MODEL train`` with a configuration file, over any number of processes; the batch is that of all."""

    model: str
    config: Path
    batch_size: int
    num_steps: int
    every_n: int
    """Steps between two checkpoints."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields that every start sets, by path with ``__`` for the dot; the untouched run was without."""

    @property
    def whole(self) -> Path:
        """The run that nothing interrupted, of one process."""
        return self.config.parent / "whole"

    def arguments(self, save_dir: Path, size: int = 1, **changes: Any) -> list[str]:
        """Of the command; ``changes`` replace fields by path, as ``settings`` do."""
        changes = {**self.settings, **changes}
        if self.model == "twhin":
            changes = {"train_data__per_replica_batch_size": self.batch_size // size, **changes}
        settings = [f"--set={name.replace('__', '.')}={value}" for name, value in changes.items()]
        return [self.model, "train", str(self.config), "--save-dir", str(save_dir), "--json", *settings]

    def start(
        self, save_dir: Path, size: int = 1, faults: Mapping[int, Fault] | None = None, **changes: Any
    ) -> list[Command]:
        return start_commands(self.arguments(save_dir, size, **changes), self.new_streams(), size, faults)

    def in_torchrec(self, kinds: Mapping[str, str]) -> Job:
        """The same with tables in torchrec, each lying over the processes as ``kinds`` says."""
        place = {"twhin": "model__embeddings", "ranker": "features"}[self.model]
        sharded = {f"{place}__backend": "torchrec", "parallel__sharding__tables": json.dumps(dict(kinds))}
        return replace(self, settings={**self.settings, **sharded})

    def new_streams(self) -> Path:
        """A folder for what processes say, not where a disk may be full."""
        return Path(tempfile.mkdtemp(prefix="streams-", dir=self.config.parent))

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
        return finish(self.start(save_dir, size, faults, **changes), codes)

    def kill_and_run(self, save_dir: Path, steps: Sequence[int]) -> None:
        """Kill at each of ``steps``, go on each time, run to the end."""
        for step in steps:
            commands = self.start(save_dir)
            stop_at(commands[0], save_dir, step, signal.SIGKILL)
            finish(commands, [-signal.SIGKILL])
        self.run(save_dir)


def fault_of(job: Job, place: Place, action: Action = "kill", gate: Path | None = None) -> Fault:
    """At the fifth checkpoint, or in the step two behind it."""
    step = 5 * job.every_n
    return Fault(place, step + 2 if place in {"step", "loss"} else step, action, gate)


def finish(commands: Sequence[Command], codes: Sequence[int] | None = None) -> list[str]:
    """Wait for the end of all, with ``codes``, 0 if none are given; what each said on stderr."""
    try:
        found = [command.wait() for command in commands]
    finally:
        end(commands)
    said = [command.err.read_text() for command in commands]
    assert found == list(codes or [0] * len(commands)), "\n".join(said)
    return said


def stop_at(command: Command, save_dir: Path, step: int, number: signal.Signals) -> None:
    """Send a signal as soon as ``step`` is logged."""
    deadline = time.monotonic() + TIMEOUT_S
    while last_step(save_dir) < step and command.is_running:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    command.send(number)


def run_whole(folder: Path, config: TwhinConfig | RankerConfig) -> Job:
    """The job of a configuration for one process, and the run of it that nothing interrupts."""
    path, training = folder / "config.yaml", config.training
    path.write_text(dump_config(config))
    assert training.num_train_steps is not None and training.checkpoint_every_n is not None
    if isinstance(config, TwhinConfig):
        model, batch_size = "twhin", config.train_data.per_replica_batch_size
    else:
        model, batch_size = "ranker", config.train_data.batch_size
    job = Job(model, path, batch_size, training.num_train_steps, training.checkpoint_every_n)
    job.run(job.whole)
    return job


TORCHREC_TABLES: dict[str, dict[str, dict[str, Any]]] = {
    "twhin": {"user": {"adagrad": {"lr": 0.05}}, "item": {"rowwise_adagrad": {"lr": 0.05}}},
    "ranker": {
        "countries": {"rowwise_adagrad": {"lr": 0.05}},
        "hours": {"adagrad": {"lr": 0.1}},
        "categories": {"sgd": {"lr": 0.1}},
        "items": {"sgd": {"lr": 0.1}},
    },
}
"""By model and table the optimizer where torchrec holds the tables: fbgemm has these."""
TORCHREC_DIM = 24
"""Columns that one, two and three processes can share."""
TORCHREC_KINDS = {
    "twhin": {"user": "column_wise", "item": "row_wise"},
    "ranker": {"countries": "row_wise", "hours": "table_wise", "categories": "column_wise", "items": "table_row_wise"},
}


def torchrec_twhin_job(folder: Path) -> Job:
    """``twhin_job`` with sharded tables, which collect no gradients; the untouched run has local ones."""
    tables = {
        f"model.embeddings.tables.{place}.{name}": value
        for place, optimizer in enumerate(TORCHREC_TABLES["twhin"].values())
        for name, value in (("optimizer", optimizer), ("embedding_dim", TORCHREC_DIM))
    }
    job = twhin_job(folder, {"training.gradient_accumulation": 1, **tables})
    return job.in_torchrec(TORCHREC_KINDS["twhin"])


def torchrec_ranker_job(folder: Path) -> Job:
    """``ranker_job`` with sharded tables; the untouched run has local ones."""
    optimizers = TORCHREC_TABLES["ranker"]
    tables = [
        {**table, "embedding_dim": TORCHREC_DIM, "dropout": 0.1, "optimizer": optimizers[table["name"]]}
        for table in planted_settings(folder, folder)["features"]["tables"]
    ]
    return ranker_job(folder, features__tables=tables).in_torchrec(TORCHREC_KINDS["ranker"])


def twhin_job(folder: Path, changes: Mapping[str, Any] | None = None) -> Job:
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
        "train_data.per_replica_batch_size": 48,
        "train_data.negative_alpha": 0.5,
        "train_data.buffer_rows": 120,
        "parallel": {"num_lanes": NUM_LANES, "timeout_s": 60},
        **(changes or {}),
    }
    return run_whole(folder, make_config(graph, folder / "unused", fields))


def ranker_job(folder: Path, num_steps: int = 48, **changes: Any) -> Job:
    """Tables of every kind, joined vectors, batch normalisation, dropout, down-sampling, learned task weights, averaged
    weights; 1,800 rows in 21 row groups.
    """
    log = planted_log()
    write_log(folder / "log", log, num_files=3, row_group_rows=90)
    ramp = {"learning_rate": 0.01, "final_learning_rate": 0, "num_ramp_steps": 10, "final_num_steps": num_steps}
    config = planted_config(
        folder / "log",
        folder / "unused",
        write_vectors(folder / "vectors", log),
        training__num_train_steps=num_steps,
        training__train_log_every_n=1,
        training__checkpoint_every_n=num_steps // 12,
        training__checkpoint_max_to_keep=3,
        training__validate_every_n=num_steps // 2,
        training__keep_best={"metric": "valid/mean/logloss", "mode": "min"},
        train_data__batch_size=96,
        train_data__buffer_rows=500,
        preprocess__downsample_negatives={"batch_multiplier": 3, "engagements_list": ["like", "share"]},
        model__featurization_config={"log1p_abs_config": {}},
        model__backbone={"mlp_config": {"layer_sizes": [16, 16], "dropout": {"rate": 0.2}}},
        loss={"grad_norm": {}},
        optimizer__average={"decay": 0.9},
        optimizer__single_task_learning_rate={"linear_ramp_to_cosine": ramp},
        parallel={"num_lanes": NUM_LANES, "timeout_s": 60},
        runtime={"device": "cpu", "num_threads": 1},
        **changes,
    )
    return run_whole(folder, config)
