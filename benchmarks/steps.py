"""Steps of a training on generated data, by processes that wait for each other: what scaling.py and capacity.py share.

A ``Team`` is a run of one or more processes of one thread each on this machine. It is built once, then told to take
steps, as often as wanted: teams that are alive together can take turns, so that other work on the machine meets all
alike. A step is what the loop does: make the batch, forward, loss, backward, tables and optimizer; no log, no
validation, no checkpoint.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NUM_FEATURES, NUM_ITEMS = 256, 20_000
TASKS = ("like", "reply", "hide")
TOWER = (64, 1)
BACKBONE = (512, 256)


@dataclass(frozen=True)
class Setting:
    """One training; ``batch`` is that of all processes together."""

    model: Literal["twhin", "ranker"] = "twhin"
    batch: int = 20_000
    world_size: int = 1
    dim: int = 64
    """Of TwHIN's vectors."""
    num_entities: int = 200_000
    backend: Literal["local", "torchrec"] = "local"
    buffer_rows: int = 200_000
    looks_ahead: bool = True
    """Of several processes: the ids of the next batch travel while this one computes."""
    keeps_copy: bool = False
    """Takes the memory of the copies for checkpoints beside training."""


@dataclass(frozen=True)
class Steps:
    """Seconds a step: by the clock, and of the processors, of all processes together; the largest peak of one."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    state_bytes: int
    """Tables and optimizer state in the process with the largest part."""


class Team:
    """The processes of a setting."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        self._setting = setting
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        described = json.dumps({"setting": asdict(setting), "folder": str(folder)})
        self._processes = [
            subprocess.Popen(
                [sys.executable, __file__, described],
                env=os.environ | _environment(rank, setting.world_size, port),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(setting.world_size)
        ]
        self.steps(2)  # the first steps take memory

    def steps(self, number: int) -> Steps:
        """Take some steps; the median."""
        for process in self._processes:
            print(number, file=process.stdin, flush=True)
        reports = [json.loads(process.stdout.readline()) for process in self._processes]
        return Steps(
            wall_s=float(np.median(np.max([report["wall_s"] for report in reports], axis=0))),
            cpu_s=float(np.median(np.sum([report["cpu_s"] for report in reports], axis=0))),
            peak_bytes=max(report["peak_bytes"] for report in reports),
            state_bytes=max(report["state_bytes"] for report in reports),
        )

    def close(self) -> None:
        for process in self._processes:
            process.stdin.close()
        for process in self._processes:
            process.wait()


@contextmanager
def team(setting: Setting) -> Iterator[Team]:
    """A team on data of its own."""
    with tempfile.TemporaryDirectory() as folder:
        _write_data(setting, Path(folder))
        made = Team(setting, Path(folder))
        try:
            yield made
        finally:
            made.close()


def _environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    own = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    sizes = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    return {**own, **ranks, **sizes}


def _write_data(setting: Setting, folder: Path) -> None:
    rng = np.random.default_rng(0)
    num_rows = max(10 * setting.batch, 3 * setting.buffer_rows)  # so that one buffer is in use, one made ahead
    if setting.model == "twhin":  # heavy-tailed ends
        ends = [(rng.random(num_rows) ** 3 * setting.num_entities).astype(np.int64) for _ in range(2)]
        columns: dict[str, Any] = {"lhs": ends[0], "rel": np.zeros(num_rows, dtype=np.int64), "rhs": ends[1]}
    else:
        numbers = pa.array(rng.normal(size=num_rows * NUM_FEATURES).astype(np.float32))
        columns = {"numbers": pa.FixedSizeListArray.from_arrays(numbers, NUM_FEATURES)}
        columns["item"] = (rng.random(num_rows) ** 3 * NUM_ITEMS).astype(np.int64)
        columns |= {task: (rng.random(num_rows) < 0.1).astype(np.int8) for task in TASKS}
    pq.write_table(pa.table(columns), folder / "part-0.parquet", row_group_size=65_536)


def _common(folder: Path) -> dict[str, Any]:
    return {
        "runtime": {"device": "cpu", "num_threads": 1},
        "training": {"save_dir": str(folder / "run"), "num_train_steps": 1_000_000},
        "parallel": {"num_lanes": 2},
    }


def _twhin(setting: Setting, folder: Path) -> Any:
    from rookery.config.loader import parse_config
    from rookery.train.runtime import prepare_runtime
    from rookery.twhin.build import build_job, build_model
    from rookery.twhin.config import TwhinConfig

    table = {"name": "entity", "num_embeddings": setting.num_entities, "embedding_dim": setting.dim}
    data = {
        **_common(folder),
        "model": {
            "embeddings": {
                "tables": [{**table, "optimizer": {"rowwise_adagrad": {"lr": 0.1}}}],
                "backend": setting.backend,
            },
            "relations": [{"name": "follow", "lhs": "entity", "rhs": "entity"}],
            "translation_optimizer": {"adagrad": {"lr": 0.1}},
        },
        "train_data": {
            "data_root": str(folder),
            "in_batch_negatives": 0,
            "per_replica_batch_size": setting.batch // setting.world_size,
            "buffer_rows": setting.buffer_rows,
        },
    }
    config = parse_config(TwhinConfig, data, "the setting")
    device = prepare_runtime(config.runtime)
    return build_job(config, None, build_model(config, device), device)


def _ranker(setting: Setting, folder: Path) -> Any:
    from rookery.config.loader import parse_config
    from rookery.ranker.build import build_job, build_model, build_preprocessor
    from rookery.ranker.config import RankerConfig
    from rookery.ranker.inputs import Inputs
    from rookery.ranker.statistics import fit_featurizer
    from rookery.train.runtime import prepare_runtime

    optimizer = {"rowwise_adagrad": {"lr": 0.1}}
    table = {"name": "items", "embedding_dim": 32, "num_embeddings": NUM_ITEMS, "optimizer": optimizer}
    data = {
        **_common(folder),
        "labels": {task: {} for task in TASKS},
        "features": {
            "continuous": [{"name": "numbers", "width": NUM_FEATURES}],
            "discrete": [{"name": "item", "table": "items"}],
            "tables": [table],
        },
        "train_data": {
            "inputs": [str(folder)],
            "batch_size": setting.batch,  # of all processes
            "buffer_rows": setting.buffer_rows,
        },
        "model": {
            "backbone": {"mlp_config": {"layer_sizes": BACKBONE}},
            "tasks": {task: {"mlp_config": {"layer_sizes": TOWER}} for task in TASKS},
        },
        "optimizer": {"adam": {}, "single_task_learning_rate": {"constant": 0.001}},
    }
    config = parse_config(RankerConfig, data, "the setting")
    device = prepare_runtime(config.runtime)
    inputs = Inputs.build(config)
    preprocessor = build_preprocessor(config, inputs)
    model = build_model(config, preprocessor, inputs, device, config.features.backend)
    fit_featurizer(config, preprocessor, model.network.featurizer)
    return build_job(config, preprocessor, model, device)


def _work(setting: Setting, folder: Path) -> None:
    """One process: a line of numbers in, a line of measures out."""
    import torch

    from rookery.checkpoint.checkpointer import Checkpointer
    from rookery.data.prefetch import prepare
    from rookery.parallel.gradients import SummedGradients
    from rookery.parallel.world import join_world

    join_world(torch.device("cpu"), 600.0)
    job = _twhin(setting, folder) if setting.model == "twhin" else _ranker(setting, folder)
    tensors = {group: each.tensors() for group, each in job.state.items()}
    checkpointer = Checkpointer(folder / "run", asynchronous=setting.keeps_copy)
    checkpointer.reserve(tensors)
    state_bytes = sum(_local_bytes(tensor) for named in tensors.values() for tensor in named.values())
    model, batches = SummedGradients(job.model), prepare(job.stream, job.transform)
    job.model.train()
    step, looks_ahead = 0, setting.looks_ahead and setting.world_size > 1
    batch = next(batches).batch
    for line in sys.stdin:
        wall, cpu = [], []
        for _ in range(int(line)):
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            following = next(batches).batch
            if looks_ahead:
                job.model.expect(following)
            _step(job, model, batch, step)
            batch = following
            wall.append(time.perf_counter() - wall_start)
            cpu.append(time.process_time() - cpu_start)
            step += 1
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"wall_s": wall, "cpu_s": cpu, "peak_bytes": peak, "state_bytes": state_bytes}), flush=True)


def _local_bytes(tensor: Any) -> int:
    from rookery.checkpoint.shards import shards_of

    return sum(shard.nbytes for shard in shards_of(tensor).held.values())


def _step(job: Any, model: Any, batch: Any, step: int) -> None:
    for rate in job.learning_rates:
        rate.apply(rate.schedule(step))
    job.model.begin_step(step, 0, 1)
    with model.collecting(False):
        loss, _ = model(batch)
        loss.backward()
    for optimizer in job.optimizers:
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    _work(Setting(**told["setting"]), Path(told["folder"]))
