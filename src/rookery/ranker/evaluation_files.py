"""Evaluations that a run keeps: one file a checkpoint and partition, and a report of each partition.

RUN/evaluations/test/step-000001000.json   what ``rookery ranker evaluate --json`` prints
RUN/evaluations/test/report.html           the newest of them, drawn
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rookery.checkpoint.files import write_atomically
from rookery.errors import DataError, UserError

_PREFIX = "step-"


def evaluation_folder(run: Path, split: str) -> Path:
    """Where the evaluations of a partition lie."""
    return run / "evaluations" / split


def write_evaluation(run: Path, split: str, step: int, result: Mapping[str, Any]) -> Path:
    """Keep the evaluation of a checkpoint; an earlier one of the same step is replaced.

    Raises ``UserError`` where the run cannot be written.
    """
    path = _path(run, split, step)
    write_text(path, json.dumps(result, indent=1, allow_nan=False) + "\n")
    return path


def write_text(path: Path, text: str) -> None:
    """Write a file and the folders above it, whole or not at all. Raises ``UserError`` where that is refused."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); give the run's folder the permission, or copy the "
            "run to one that has it"
        ) from error


def evaluated_steps(run: Path, split: str) -> list[int]:
    """Steps whose evaluation is kept, ascending."""
    names = (path.stem.removeprefix(_PREFIX) for path in evaluation_folder(run, split).glob(f"{_PREFIX}*.json"))
    return sorted(int(name) for name in names if name.isdecimal())


def read_evaluation(run: Path, split: str, step: int) -> dict[str, Any]:
    """A kept evaluation. Raises ``DataError`` when the file is not one."""
    path = _path(run, split, step)
    try:
        result: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path}: not the JSON that was written ({error}); delete it and evaluate again") from error
    return result


def _path(run: Path, split: str, step: int) -> Path:
    return evaluation_folder(run, split) / f"{_PREFIX}{step:09d}.json"
