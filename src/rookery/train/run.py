"""A run directory: locked while training, with everything a run leaves.

RUN/config.yaml          the resolved configuration
RUN/environment.json     versions, commit, hardware of the latest start
RUN/metrics.jsonl        a line a log and a validation
RUN/tensorboard/         the same as events
RUN/checkpoints/         see rookery.checkpoint
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rookery.checkpoint.checkpointer import Checkpointer, latest_checkpoint, run_lock
from rookery.checkpoint.files import Checkpoint, write_atomically
from rookery.train.config import TrainingConfig
from rookery.train.environment import describe_environment
from rookery.train.sinks import JsonLines, MetricSink, TensorBoard


@dataclass(frozen=True)
class Run:
    """An open run: its checkpoint writer, its sinks, and the checkpoint to go on from (None for a new run)."""

    save_dir: Path
    checkpointer: Checkpointer
    sinks: Sequence[MetricSink]
    resume_from: Checkpoint | None


@contextmanager
def open_run(config: TrainingConfig, config_yaml: str) -> Iterator[Run]:
    """Take ``config.save_dir`` for this process, find its newest checkpoint, and write what describes the run.

    Raises ``UserError`` when another process trains there, ``CheckpointError`` when every checkpoint is damaged.
    """
    save_dir = config.save_dir
    with run_lock(save_dir):
        resume_from = latest_checkpoint(save_dir)
        write_atomically(save_dir / "config.yaml", config_yaml)
        write_atomically(save_dir / "environment.json", json.dumps(describe_environment(), indent=1) + "\n")
        sinks = (JsonLines(save_dir / "metrics.jsonl"), TensorBoard(save_dir / "tensorboard"))
        checkpointer = Checkpointer(save_dir, config.checkpoint_every_n, config.checkpoint_max_to_keep)
        yield Run(save_dir, checkpointer, sinks, resume_from)
