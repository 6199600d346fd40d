"""Evaluation beside training: another process waits for checkpoints and measures each one once.

A run is its folder, or the URL where it is published: then each checkpoint is fetched as it comes, into the copy of the
run on this machine, where the evaluations stay.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

from rookery.checkpoint.checkpointer import checkpoint_state
from rookery.checkpoint.fetch import local_copy, local_folder, published_steps
from rookery.checkpoint.files import DamagedCheckpoint
from rookery.checkpoint.layout import checkpoint_steps, step_folder
from rookery.errors import CheckpointError, RunNotFound
from rookery.storage.location import Location
from rookery.storage.remote import require_bucket
from rookery.train.best import BestTracker
from rookery.train.config import TrainingConfig
from rookery.train.evaluations import evaluated_steps, mark_unreadable, unmark_unreadable

logger = logging.getLogger(__name__)

_LOOK_EVERY_S, _LIST_EVERY_S = 1.0, 10.0
"""Into a folder; at a URL, where each listing is paid for."""


def new_checkpoints(run: Location, *, timeout_s: float, poll_s: float | None = None) -> Iterator[int]:
    """Steps of checkpoints as they come, each once, ascending as far as several lie there; in a folder once more where
    training, which fell back behind a damaged one, wrote it anew.

    The run need not exist yet, but a bucket must. Ends when ``timeout_s`` pass without a new one; the time that the
    caller takes for one does not count.
    """
    if poll_s is None:
        poll_s = _LOOK_EVERY_S if isinstance(run, Path) else _LIST_EVERY_S
    if not isinstance(run, Path):
        require_bucket(run)
    seen: dict[int, Hashable] = {}
    waiting_since = time.monotonic()
    while True:
        step = next((step for step in _steps(run) if step not in seen or seen[step] != _stamp(run, step)), None)
        if step is not None:
            seen[step] = _stamp(run, step)
            yield step
            waiting_since = time.monotonic()
            continue
        left_s = waiting_since + timeout_s - time.monotonic()
        if left_s <= 0:
            return
        time.sleep(min(poll_s, left_s))


def measured_while_there(run: Location, step: int, measure: Callable[[Path, int], None]) -> bool:
    """Measure a checkpoint of a run's folder; False when training deleted it meanwhile
    (``training.checkpoint_max_to_keep``).
    """
    try:
        measure(local_copy(run, step), step)
    except (RunNotFound, CheckpointError):
        if step in _steps(run):
            raise
        return False
    return True


def is_last(run: Location, step: int, training: Callable[[Path], TrainingConfig]) -> bool:
    """Whether training takes no step behind this checkpoint: all are taken, or it was stopped early.

    ``training`` reads the configuration in a run's folder. A checkpoint that is gone was not the last; of a damaged one
    only the configuration tells.
    """
    state: dict[str, Any] = {}
    try:
        is_there = step in _steps(run) and measured_while_there(
            run, step, lambda folder, step: state.update(checkpoint_state(folder, step))
        )
    except DamagedCheckpoint:
        return step >= (training(local_folder(run)).num_train_steps or math.inf)
    if not is_there:
        return False
    config = training(local_folder(run))
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
    run: Location,
    split: str,
    training: Callable[[Path], TrainingConfig],
    measure: Callable[[Path, int], None],
    *,
    timeout_s: float,
) -> dict[str, Any]:
    """Measure every checkpoint of a run in training that has no evaluation yet; stop behind its last one.

    ``training`` reads the configuration in a run's folder; ``measure`` leaves the evaluation there. Stops too when
    ``timeout_s`` pass without a new checkpoint; raises ``RunNotFound`` when not one came. A damaged one is warned of,
    marked and passed over; ``DamagedCheckpoint`` when it was the last that came. Returns the steps that were measured,
    those that are damaged, and why it ended.
    """
    evaluated: list[int] = []
    damaged: list[int] = []
    newest: int | None = None
    reason = "timeout"
    for newest in new_checkpoints(run, timeout_s=timeout_s):
        try:
            if newest not in evaluated_steps(local_folder(run), split) and measured_while_there(run, newest, measure):
                evaluated.append(newest)
                damaged = [step for step in damaged if step != newest]
                unmark_unreadable(local_folder(run), split, newest)
        except DamagedCheckpoint as damage:
            damaged.append(newest)
            _pass_over(run, split, newest, damage)
        if is_last(run, newest, training):
            reason = "finished"
            break
    if newest is None:
        raise RunNotFound(f"{run}: no checkpoint came within {timeout_s:g} s; start its training, or wait longer")
    if newest in damaged:
        raise DamagedCheckpoint(
            f"{run}: the checkpoint of step {newest}, the last that came, is damaged and was not measured; restore it "
            "from a backup, or delete it and let training go on from the one before, then start this command again: it "
            "measures what is not measured yet"
        )
    return {"run": str(run), "split": split, "evaluated": evaluated, "damaged": damaged, "reason": reason}


def _pass_over(run: Location, split: str, step: int, damage: DamagedCheckpoint) -> None:
    """Say, and note in the run, that a checkpoint was not measured because it is damaged."""
    note = mark_unreadable(local_folder(run), split, step, damage.damage)
    logger.warning(
        "DAMAGED CHECKPOINT %s; step %d of %s is not measured, which %s notes. Restore it from a backup and start this "
        "command again to have it measured",
        damage.damage, step, run, note,
    )  # fmt: skip


def _stamp(run: Location, step: int) -> Hashable:
    """Another one for a folder that was written anew; at a URL always the same."""
    if not isinstance(run, Path):
        return None
    try:
        found = step_folder(run, step).stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_ctime_ns


def _steps(run: Location) -> list[int]:
    return checkpoint_steps(run) if isinstance(run, Path) else published_steps(run)
