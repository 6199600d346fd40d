"""Evaluation beside training: another process waits for checkpoints and measures each one once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rookery.checkpoint.checkpointer import checkpoint_steps, load_checkpoint
from rookery.errors import CheckpointError, RunNotFound
from rookery.train.best import BestTracker
from rookery.train.config import TrainingConfig


def new_checkpoints(run: Path, *, timeout_s: float, poll_s: float = 1.0) -> Iterator[int]:
    """Steps of checkpoints as they come, each once, ascending as far as several lie there.

    The run need not exist yet. Ends when ``timeout_s`` pass without a new one; the time that the caller takes for one
    does not count.
    """
    seen: set[int] = set()
    waiting_since = time.monotonic()
    while True:
        step = next((step for step in checkpoint_steps(run) if step not in seen), None)
        if step is not None:
            seen.add(step)
            yield step
            waiting_since = time.monotonic()
            continue
        left_s = waiting_since + timeout_s - time.monotonic()
        if left_s <= 0:
            return
        time.sleep(min(poll_s, left_s))


def measured_while_there(run: Path, step: int, measure: Callable[[int], None]) -> bool:
    """Measure a checkpoint; False when training deleted it meanwhile (``training.checkpoint_max_to_keep``)."""
    try:
        measure(step)
    except (RunNotFound, CheckpointError):
        if step in checkpoint_steps(run):
            raise
        return False
    return True


def is_last(run: Path, step: int, config: TrainingConfig, num_steps: int) -> bool:
    """Whether training takes no step behind this checkpoint: all are taken, or it was stopped early.

    ``config`` is the run's own. A checkpoint that is gone was not the last.
    """
    if step >= num_steps:
        return True
    if config.keep_best is None or config.early_stopping is None or step not in checkpoint_steps(run):
        return False
    best = BestTracker(config.keep_best, config.early_stopping)
    measured = measured_while_there(run, step, lambda step: best.load_state(load_checkpoint(run, step).state["best"]))
    return measured and best.should_stop
