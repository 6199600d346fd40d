"""Evaluation beside training: another process waits for checkpoints and measures each one once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rookery.checkpoint.checkpointer import checkpoint_state
from rookery.checkpoint.layout import checkpoint_steps
from rookery.errors import CheckpointError, RunNotFound
from rookery.train.best import BestTracker
from rookery.train.config import TrainingConfig
from rookery.train.evaluations import evaluated_steps


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


def is_last(run: Path, step: int, config: TrainingConfig) -> bool:
    """Whether training takes no step behind this checkpoint: all are taken, or it was stopped early.

    ``config`` is the run's own. A checkpoint that is gone was not the last.
    """
    if step not in checkpoint_steps(run):
        return False
    state: dict[str, Any] = {}
    if not measured_while_there(run, step, lambda step: state.update(checkpoint_state(run, step))):
        return False
    ends = state.get("ends", {})  # an earlier version did not tell
    as_planned = all(ends.get(name) == getattr(config, name) for name in ("num_train_steps", "num_epochs"))
    if as_planned and step >= ends.get("num_steps", math.inf):
        return True
    if config.keep_best is None or config.early_stopping is None:
        return False
    best = BestTracker(config.keep_best, config.early_stopping)
    best.load_state(state["best"])
    return best.should_stop


def follow(
    run: Path,
    split: str,
    training: Callable[[], TrainingConfig],
    measure: Callable[[int], None],
    *,
    timeout_s: float,
) -> dict[str, Any]:
    """Measure every checkpoint of a run in training that has no evaluation yet; stop behind its last one.

    ``training`` reads the run's configuration, once there is a checkpoint; ``measure`` leaves the evaluation in the
    run. Stops too when ``timeout_s`` pass without a new checkpoint; raises ``RunNotFound`` when not one came. Returns
    the steps that were measured, and why it ended.
    """
    evaluated: list[int] = []
    came = False
    for step in new_checkpoints(run, timeout_s=timeout_s):
        came = True
        if step not in evaluated_steps(run, split) and measured_while_there(run, step, measure):
            evaluated.append(step)
        if is_last(run, step, training()):
            return {"run": str(run), "split": split, "evaluated": evaluated, "reason": "finished"}
    if not came:
        raise RunNotFound(f"{run}: no checkpoint came within {timeout_s:g} s; start its training, or wait longer")
    return {"run": str(run), "split": split, "evaluated": evaluated, "reason": "timeout"}
