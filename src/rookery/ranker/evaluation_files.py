"""Evaluations that a run keeps: one file a checkpoint and partition, and a report of each partition.

RUN/evaluations/test/step-000001000.json   what ``rookery ranker evaluate --json`` prints
RUN/evaluations/test/report.html           the newest of them, drawn
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from rookery.checkpoint.files import write_atomically
from rookery.errors import DataError, UserError

_PREFIX = "step-"

_Number = float | None  # None: not defined


class _Stored(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Histogram(_Stored):
    low: float
    width: float
    positives: list[float]
    negatives: list[float]


class _Bin(_Stored):
    mean_prediction: float
    ctr: float
    count: float


class _Diagram(_Stored):
    reliability: list[_Bin]
    histogram: _Histogram


class _Metrics(_Stored):
    auroc: _Number
    gauc: _Number
    rce: _Number
    nrce: _Number
    logloss: _Number
    ece: _Number
    calibration: _Number
    prauc: _Number
    ctr: _Number
    mean_prediction: _Number


class _Intervals(_Stored):
    intervals: dict[str, list[_Number]]


class _Task(_Metrics, _Intervals):
    count: int
    positives: int


class _Measured(_Intervals):
    num_rows: int
    num_users: int | None
    ndcg: _Number
    mean: _Metrics
    tasks: dict[str, _Task]


class _KeptEvaluation(_Measured):
    """What is read of a kept evaluation."""

    step: int
    split: str
    strata: dict[str, _Measured]
    diagrams: dict[str, _Diagram]
    score_histogram: _Histogram

    @model_validator(mode="after")
    def _has_a_diagram_a_task(self) -> _KeptEvaluation:
        if set(self.tasks) != set(self.diagrams):
            raise ValueError(f"tasks {list(self.tasks)}, but diagrams of {list(self.diagrams)}")
        return self


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


def read_evaluation(run: Path, split: str, step: int) -> dict[str, Any]:
    """A kept evaluation. Raises ``DataError`` when the file is not one."""
    path = evaluation_path(run, split, step)
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        _KeptEvaluation.model_validate(result)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"{path}: {field}: {first['msg']}; not an evaluation that this version wrote: delete it and evaluate again"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: not the JSON that was written ({error}); delete it and evaluate again") from error
    return result


def evaluation_path(run: Path, split: str, step: int) -> Path:
    """Where the evaluation of a checkpoint lies."""
    return evaluation_folder(run, split) / f"{_PREFIX}{step:09d}.json"
