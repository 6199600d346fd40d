"""Faults of a real kind at an exact place of a training process: it kills itself, waits there, or has no disk left."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Place = Literal["step", "file", "sums", "rename", "renamed", "pruning", "loss"]
Action = Literal["kill", "hold", "full", "nan"]


class Killed(BaseException):
    """Stands for kill -9 inside of a process: nothing after it runs but the interpreter's own unwinding."""


@dataclass(frozen=True)
class Fault:
    """What happens where, once ``step`` steps are done.

    Places: ``step`` before the next step begins; of the checkpoint of ``step``, ``file`` when half of its first file
    is written, ``sums`` when all tensors are, ``rename`` and ``renamed`` just before it appears and just after,
    ``pruning`` when half of an old one is deleted; ``loss`` in the forward pass behind ``step``.
    Actions: ``kill`` sends SIGKILL to the process itself, ``hold`` waits until ``gate`` exists and says so in a file
    beside it, ``full`` lets no file of the checkpoint grow past 64 bytes, ``nan`` spoils the loss.
    """

    place: Place
    step: int
    action: Action
    gate: Path | None = None

    @property
    def reached(self) -> Path:
        """Exists once the place was reached, of the action ``hold``."""
        assert self.gate is not None
        return self.gate.with_suffix(".reached")

    def install(self) -> None:
        """Let it happen in this process."""
        _PLACES[self.place](self)

    def act(self) -> None:
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            assert self.gate is not None
            self.reached.touch()
            while not self.gate.exists():
                time.sleep(0.002)

    def is_of(self, folder: Path) -> bool:
        """Whether a folder is that of the checkpoint, or of its draft."""
        return folder.name.strip(".").removesuffix(".writing") == f"step-{self.step:09d}"


def _before_step(fault: Fault) -> None:
    from rookery.train.loop import _Loop

    step = _Loop._step

    def faulty(self: Any, batches: Any) -> None:
        if self._step_number == fault.step:
            fault.act()
        step(self, batches)

    _replace(_Loop, "_step", faulty)


def _in_forward(fault: Fault) -> None:
    from rookery.train.loop import _Loop

    step = _Loop._step

    def faulty(self: Any, batches: Any) -> None:
        model = self._model
        if self._step_number == fault.step:
            self._model = _Spoiled(model)
        step(self, batches)
        self._model = model

    _replace(_Loop, "_step", faulty)


class _Spoiled:
    """A model whose loss is not a number."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, batch: Any) -> Any:
        loss, outputs = self._model(batch)
        return loss * float("nan"), outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _in_file(fault: Fault) -> None:
    from rookery.checkpoint.draft import Draft

    write = Draft.write

    def faulty(self: Any, name: str, *arguments: Any) -> Any:
        if not fault.is_of(self._folder):
            return write(self, name, *arguments)
        if fault.action == "full":
            with _no_room():
                return write(self, name, *arguments)
        sums = write(self, name, *arguments)
        if fault.action == "kill":
            os.truncate(self._beside / name, int(sums["bytes"]) // 2)
        fault.act()
        return sums

    _replace(Draft, "write", faulty)


@contextmanager
def _no_room() -> Iterator[None]:
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


def _before_sums(fault: Fault) -> None:
    from rookery.checkpoint.draft import Draft

    publish = Draft.publish

    def faulty(self: Any, sums: Any) -> None:
        if fault.is_of(self._folder):
            fault.act()
        publish(self, sums)

    _replace(Draft, "publish", faulty)


def _around_rename(fault: Fault) -> None:
    rename = Path.rename

    def faulty(self: Path, target: Path) -> Path:
        if not (fault.is_of(self) and self.name.endswith(".writing")):
            return rename(self, target)
        if fault.place == "rename":
            fault.act()
        moved = rename(self, target)
        if fault.place == "renamed":
            fault.act()
        return moved

    _replace(Path, "rename", faulty)


def _in_pruning(fault: Fault) -> None:
    rmtree = shutil.rmtree

    def faulty(path: Path, *arguments: Any, **settings: Any) -> None:
        is_old = path.name.startswith("step-") and not fault.is_of(path)
        if is_old and (path.parent / f"step-{fault.step:09d}").exists():
            first = next(each for each in path.iterdir() if each.suffix != ".json")
            rmtree(first) if first.is_dir() else first.unlink()
            fault.act()
        rmtree(path, *arguments, **settings)

    _replace(shutil, "rmtree", faulty)


def _replace(owner: Any, name: str, function: Callable[..., Any]) -> None:
    setattr(owner, name, function)


_PLACES: dict[str, Callable[[Fault], None]] = {
    "step": _before_step,
    "loss": _in_forward,
    "file": _in_file,
    "sums": _before_sums,
    "rename": _around_rename,
    "renamed": _around_rename,
    "pruning": _in_pruning,
}
