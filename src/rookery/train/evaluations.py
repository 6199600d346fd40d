"""Evaluations that a run keeps, one file a checkpoint and partition: what is measured already is not measured again.

RUN/evaluations/test/step-000001000.json
RUN/evaluations/test/step-000002000.damaged      of a checkpoint that could not be read: what is wrong with it
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rookery.checkpoint.files import write_atomically
from rookery.errors import UserError

_PREFIX = "step-"


def evaluation_folder(run: Path, split: str) -> Path:
    """Where the evaluations of a partition lie."""
    return run / "evaluations" / split


def write_evaluation(run: Path, split: str, step: int, result: Mapping[str, Any]) -> Path:
    """Keep the evaluation of a checkpoint; an earlier one of the same step is replaced.

    Raises ``UserError`` where the run cannot be written.
    """
    path = evaluation_path(run, split, step)
    write_text(path, json.dumps(result, indent=1, allow_nan=False) + "\n", IN_RUN)
    return path


IN_RUN = "give the run's folder the permission, or copy the run to one that has it"
"""The remedy where a file of the run cannot be written."""


def require_writable(path: Path, remedy: str) -> None:
    """Raise ``UserError`` where ``path`` is a folder, or lies where no file can be made; makes nothing itself."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; {remedy}")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        tempfile.TemporaryFile(dir=above).close()  # permissions alone do not tell: a file system may be read-only
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({above}: {error.strerror or error}); {remedy}") from error


def write_text(path: Path, text: str, remedy: str) -> None:
    """Write a file and the folders above it, whole or not at all. Raises ``UserError`` where that is refused."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); {remedy}") from error


def evaluated_steps(run: Path, split: str) -> list[int]:
    """Steps whose evaluation is kept, ascending."""
    names = (path.stem.removeprefix(_PREFIX) for path in evaluation_folder(run, split).glob(f"{_PREFIX}*.json"))
    return sorted(int(name) for name in names if name.isdecimal())


def mark_unreadable(run: Path, split: str, step: int, problem: str) -> Path:
    """Note beside the evaluations what is wrong with a checkpoint. ``UserError`` where the run cannot be written."""
    path = _mark_path(run, split, step)
    write_text(path, problem + "\n", IN_RUN)
    return path


def unmark_unreadable(run: Path, split: str, step: int) -> None:
    """A checkpoint that could not be read was restored, and measured."""
    _mark_path(run, split, step).unlink(missing_ok=True)


def _mark_path(run: Path, split: str, step: int) -> Path:
    return evaluation_path(run, split, step).with_suffix(".damaged")


def evaluation_path(run: Path, split: str, step: int) -> Path:
    """Where the evaluation of a checkpoint lies."""
    return evaluation_folder(run, split) / f"{_PREFIX}{step:09d}.json"
