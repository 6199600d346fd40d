"""``metrics.json`` of a bundle: what was measured, as tables, curves and reliability diagrams."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

_Number: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
_Cell: TypeAlias = _Number | str | None


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class MeasuredTable(_Part):
    """Rows under their columns; of the columns ``percent`` hold shares, and ``bar`` is drawn as one."""

    title: str
    lead: str = ""
    columns: list[str]
    rows: list[list[_Cell]]
    percent: list[str] = []
    bar: str | None = None

    @model_validator(mode="after")
    def _rows_fit(self) -> MeasuredTable:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"a row has not the {len(self.columns)} cells of the columns")
        return self


class MeasuredCurve(_Part):
    """Points (step, value)."""

    name: str
    points: list[tuple[_Number, _Number]]


class MeasuredCurves(_Part):
    """Curves in one frame, of which ``log`` says whether it is logarithmic."""

    title: str
    log: bool
    curves: list[MeasuredCurve]


class MeasuredBin(_Part):
    """Rows of about the same prediction, and the share in which it happened."""

    low: _Number
    high: _Number
    mean_prediction: _Number
    ctr: _Number
    count: _Number


class MeasuredCalibration(_Part):
    """Of a task; null where it never happened."""

    calibration: _Number | None
    ece: _Number | None


class MeasuredReliability(_Part):
    """The diagram of a task."""

    model: str
    task: str
    metrics: MeasuredCalibration
    bins: list[MeasuredBin]


class Measurements(_Part):
    """All that was measured; every number is finite."""

    tables: list[MeasuredTable] = []
    training: list[MeasuredCurves] = []
    reliability: list[MeasuredReliability] = []
