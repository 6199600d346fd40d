"""The checkpoints of one run: when to save, which to keep, which to load."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from time import monotonic
from typing import Literal

from filelock import FileLock, Timeout
from torch import Tensor

from rookery.checkpoint.background import Background, Staging
from rookery.checkpoint.files import (
    STATE,
    Checkpoint,
    DamagedCheckpoint,
    State,
    is_checkpoint,
    read_checkpoint,
    write_atomically,
)
from rookery.checkpoint.layout import (
    BEST,
    CHECKPOINTS,
    PREFIX,
    best_step,
    checkpoint_steps,
    expired,
    listed,
    step_folder,
)
from rookery.checkpoint.publish import Publisher
from rookery.checkpoint.shards import Groups, held_of
from rookery.checkpoint.write import write_groups
from rookery.errors import CheckpointError, RunNotFound, UserError
from rookery.parallel.world import is_chief, on_all, own_group, rank, share_object, world_size

logger = logging.getLogger(__name__)


class Checkpointer:
    """The one owner of "is it time to save", and the one writer of a run's checkpoints.

    ``every_n`` None: only when told to (the loop saves at the end). ``max_to_keep`` None: all are kept; the best one is
    kept in addition. ``asynchronous``: ``save`` returns once the tensors are copied, and a thread writes the copy.
    ``publisher``, which the chief alone has, uploads each checkpoint that is written.

    Several processes make one each, at the same time, and call its methods together; the chief alone prunes and marks.
    What goes wrong on one of them is raised on all.
    """

    def __init__(
        self,
        save_dir: Path,
        every_n: int | None = None,
        max_to_keep: int | None = None,
        *,
        asynchronous: bool = False,
        publisher: Publisher | None = None,
    ) -> None:
        self._save_dir = save_dir
        self._every_n = every_n
        self._max_to_keep = max_to_keep
        self._publisher = publisher
        # Of its own: the thread of a write must not mix with the step's collectives.
        self._process_group = own_group("gloo") if world_size() > 1 else None
        self._staging = Staging()
        self._background = Background() if asynchronous else None

    def due(self, step: int) -> bool:
        """Whether a checkpoint belongs behind ``step`` steps."""
        return self._every_n is not None and step % self._every_n == 0

    def reserve(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take the memory that copies of ``tensors`` need, which else the first ``save`` does while the step waits."""
        if self._background is not None:
            self._staging.copy(held_of(tensors))

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: State) -> Path:
        """Write the checkpoint of ``step``, then delete what is no longer to be kept; return where it will be.

        Checkpoints of later steps go as well: they are damaged ones that the run fell back from. Waits for a write that
        is still under way. Raises ``CheckpointError`` when this one, or that one, could not be written.
        """
        self.wait()
        folder = step_folder(self._save_dir, step)
        groups = held_of(tensors)
        if self._background is not None:
            groups, state = self._staging.copy(groups), deepcopy(state)
        self._do(lambda: self._write(folder, step, groups, state))
        return folder

    def mark_best(self, step: int, metric: str, value: float) -> None:
        """Point ``best.json`` to the checkpoint of ``step``; it is kept until another one is the best.

        Nothing happens when that checkpoint is no longer there. Comes after a write that is under way.
        """
        self._do(lambda: self._mark(step, json.dumps({"step": step, "metric": metric, "value": value})))

    def wait(self) -> None:
        """Return when all that was saved is on disk. Raises ``CheckpointError`` when it is not."""
        background = self._background
        if background is None or not background.is_awaited:
            return
        was_idle, since = background.is_idle, monotonic()
        on_all(background.wait)
        if not was_idle:
            logger.info("waited %.1f s for the checkpoint before to be written", monotonic() - since)

    def finish(self) -> None:
        """Return when all that was saved is on disk, and published. Raises ``CheckpointError`` when it is not."""
        self.wait()
        if self._publisher is not None:
            on_all(self._publisher.finish)
        else:
            on_all(lambda: None)

    def _do(self, work: Callable[[], None]) -> None:
        if self._background is None:
            on_all(work)
        else:
            self._background.give(work)

    def _write(self, folder: Path, step: int, groups: Groups, state: State) -> None:
        write_groups(folder, step, groups, state, self._process_group)
        if is_chief():
            with _told(self._save_dir / CHECKPOINTS, "old checkpoints could not be deleted"):
                self._prune(step)
            if self._publisher is not None:
                self._publisher.publish(step)

    def _mark(self, step: int, pointer: str) -> None:
        if is_chief() and step_folder(self._save_dir, step).exists():
            file = self._save_dir / CHECKPOINTS / BEST
            with _told(file, "the best checkpoint could not be marked"):
                write_atomically(file, pointer)
            if self._publisher is not None:
                self._publisher.mark_best()

    def _prune(self, newest: int) -> None:
        best = best_step(self._save_dir)
        for old in expired(checkpoint_steps(self._save_dir), newest, self._max_to_keep, best):
            shutil.rmtree(step_folder(self._save_dir, old))
        for left in (self._save_dir / CHECKPOINTS).glob(f".{PREFIX}*.writing"):  # of a writer that was killed
            shutil.rmtree(left)


@contextmanager
def run_lock(
    save_dir: Path, *, named: str = "training.save_dir", chosen: str = "in the configuration or with --save-dir"
) -> Iterator[None]:
    """Hold the run directory alone. The system frees the lock of a process that died.

    Raises ``UserError`` when another process trains there, and when the directory cannot be made or written; ``named``
    and ``chosen`` say in both what the directory is called and how another is chosen.
    """
    lock = FileLock(save_dir / ".lock", timeout=0)
    try:
        save_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{save_dir}: another process is training there; wait for it, stop it, or use another {named}"
        ) from error
    except OSError as error:
        raise UserError(
            f"{named}={save_dir}: no run can be kept there ({error.strerror or error}); name a folder that "
            f"can be made and written, {chosen}"
        ) from error
    try:
        yield
    finally:
        lock.release()


def latest_checkpoint(save_dir: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint of a run, None when it has none at all.

    Several processes call this together: they share the work and come to the same one. Each damaged newer one is
    reported as a warning. Raises ``DamagedCheckpoint`` when all are.
    """
    return _newest_whole(save_dir, share_object(checkpoint_steps(save_dir)), _read_together)


def _newest_whole(save_dir: Path, steps: Sequence[int], read: Callable[[Path], Checkpoint]) -> Checkpoint | None:
    damages: list[DamagedCheckpoint] = []
    for step in reversed(steps):
        try:
            checkpoint = read(step_folder(save_dir, step))
        except DamagedCheckpoint as damage:
            damages.append(damage)
            continue
        for passed_over in damages if is_chief() else ():
            logger.warning("DAMAGED CHECKPOINT %s; going back to step %d", passed_over, step)
        return checkpoint
    if damages:
        listed = "\n".join(f"  {each}" for each in damages)
        raise DamagedCheckpoint(
            f"{save_dir}: every checkpoint is damaged:\n{listed}\n"
            "restore one from a backup, or start again in another training.save_dir"
        )
    return None


def checkpoint_state(save_dir: Path, step: int) -> State:
    """What a checkpoint of a run holds besides tensors; its sums are not compared.

    Raises ``RunNotFound`` when there is no such checkpoint, ``DamagedCheckpoint`` when its state cannot be read.
    """
    file = step_folder(save_dir, step) / STATE
    try:
        state: State = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise RunNotFound(f"{file}: there is no checkpoint of step {step}") from error
    except ValueError as error:
        raise DamagedCheckpoint(f"{file}: not the JSON that was written ({error})") from error
    return state


def load_checkpoint(source: Path, which: Literal["latest", "best"] | int = "latest") -> Checkpoint:
    """A checkpoint of a run directory, or ``source`` itself when it is the directory of one checkpoint.

    Each process that calls this reads for itself. Raises ``RunNotFound`` when there is none such, ``DamagedCheckpoint``
    when it is damaged (for ``latest``: all are).
    """
    if is_checkpoint(source):
        return _read(source, "restore it from a backup, or name another one")
    steps = checkpoint_steps(source)
    if not steps:
        remedy = "it holds no checkpoint yet" if source.exists() else "no such directory"
        raise RunNotFound(f"{source}: {remedy}; name the save_dir of a training run")
    step = best_step(source) if which == "best" else which
    if step == "latest":
        latest = _newest_whole(source, steps, read_checkpoint)
        assert latest is not None
        return latest
    if step not in steps:
        wanted = "a best checkpoint (training.keep_best)" if step is None else f"step {step}"
        raise RunNotFound(f"{source}: {wanted} was not kept; kept steps: {listed(steps)}")
    others = [other for other in steps if other != step]
    other = f"name another one with --checkpoint: {listed(others)}" if others else "train again: there is no other"
    return _read(step_folder(source, int(step)), f"restore it from a backup, or {other}")


def _read_together(folder: Path) -> Checkpoint:
    """Each process compares the sums of its part of the files; what one finds damaged is damaged for all."""
    return on_all(lambda: read_checkpoint(folder, rank(), world_size()))


@contextmanager
def _told(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: {what} ({error}); make room or permission there and start again") from error


def _read(folder: Path, remedy: str) -> Checkpoint:
    try:
        return read_checkpoint(folder)
    except DamagedCheckpoint as damage:
        raise DamagedCheckpoint(damage.damage, f"this checkpoint is damaged: {remedy}") from damage
