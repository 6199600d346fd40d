"""Reading the evaluations that a ranker's run keeps, for reports.

RUN/evaluations/test/step-000001000.json   what ``rookery ranker evaluate --json`` prints
RUN/evaluations/test/report.html           the newest of them, drawn
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from rookery.errors import DataError
from rookery.train.evaluations import evaluation_path

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
