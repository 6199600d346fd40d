"""Rows by the value of a column: row groups that lie wholly inside or outside are told by their statistics."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta, timezone
from itertools import groupby
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rookery.data.columns import is_time
from rookery.data.row_groups import RowGroupSlice, SourceFile, file_facts, read_column, require_column
from rookery.errors import DataError

Bound = int | float | str | date
T = TypeVar("T", float, np.ndarray)

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_DAY_US = 86_400_000_000
# Physical types of old timestamps and of float16, whose statistics are bytes.
_WITHOUT_NUMBERS = {"INT96", "FIXED_LEN_BYTE_ARRAY"}


@dataclass(frozen=True)
class RowFilter:
    """Rows with ``at_least`` <= ``column`` < ``below``; either bound may be absent. Null and NaN lie outside.

    Numbers for a column of integers, floats or booleans; dates and times, or ISO 8601 strings of these (UTC unless they
    say otherwise), for a column of dates or timestamps.
    """

    column: str
    at_least: Bound | None = None
    below: Bound | None = None

    def __post_init__(self) -> None:
        assert self.at_least is not None or self.below is not None

    def __str__(self) -> str:
        bounds = {">=": self.at_least, "<": self.below}
        return " and ".join(f"{self.column} {sign} {bound}" for sign, bound in bounds.items() if bound is not None)


def filter_rows(slices: Sequence[RowGroupSlice], where: RowFilter) -> list[RowGroupSlice]:
    """What ``where`` leaves of ``slices``, which are whole row groups.

    Reads the one column, and of that the row groups alone that their statistics do not decide. Keeps 4 bytes for each
    selected row of a row group whose selected rows are no single run. Raises ``DataError`` when a file has no such
    column, or the bounds do not fit its type.
    """
    selected = []
    for file, pieces in groupby(slices, key=lambda piece: piece.file):
        of_file = _FileFilter(file, where)
        selected += [left for piece in pieces if (left := of_file.select(piece)) is not None]
    return selected


class _FileFilter:
    """The bounds in the unit of one file's column: numbers as they are, dates and times as microseconds since 1970."""

    def __init__(self, file: SourceFile, where: RowFilter) -> None:
        self._name = where.column
        facts = file_facts(file)
        self._metadata = facts.parquet
        require_column(file, facts.schema, where.column)
        self._type = facts.schema.field(where.column).type
        try:
            self._low = None if where.at_least is None else _bound(where.at_least, self._type)
            self._high = None if where.below is None else _bound(where.below, self._type)
        except ValueError as error:
            raise DataError(
                f"{file}: rows cannot be selected by {where}: the column is {self._type}; {error}"
            ) from error

    def select(self, piece: RowGroupSlice) -> RowGroupSlice | None:
        inside = self._decided(piece.row_group)
        if inside is not None:
            return piece if inside else None
        rows = np.flatnonzero(self._selected(read_column(piece, self._name))).astype(np.int32)
        if not len(rows):
            return None
        start, stop = int(rows[0]), int(rows[-1]) + 1
        if stop - start == len(rows):
            return replace(piece, start=start, stop=stop)
        return replace(piece, start=0, stop=len(rows), rows=rows)

    def _decided(self, row_group: int) -> bool | None:
        """Whether all rows lie inside (True) or outside (False); None when the statistics do not tell."""
        if self._metadata is None:
            return None
        statistics = self._metadata.row_group(row_group).column(self._place).statistics
        if statistics is None or not statistics.has_min_max or statistics.physical_type in _WITHOUT_NUMBERS:
            return None
        least, largest = _extremes(statistics, self._type)
        if not (self._reached(largest) and self._undercut(least)):
            return False
        # Statistics leave NaN out.
        known = statistics.has_null_count and statistics.null_count == 0 and not pa.types.is_floating(self._type)
        return True if known and self._reached(least) and self._undercut(largest) else None

    @functools.cached_property
    def _place(self) -> int:
        """The column among those of the file's statistics."""
        assert self._metadata is not None
        paths = (self._metadata.schema.column(index).path for index in range(self._metadata.num_columns))
        return list(paths).index(self._name)

    def _selected(self, column: pa.ChunkedArray) -> np.ndarray:
        """Booleans ``[rows]``."""
        valid: np.ndarray = column.is_valid().to_numpy()
        values = _comparable(column, self._type)
        return valid & self._reached(values) & self._undercut(values)

    def _reached(self, value: T) -> bool | T:
        """Whether the lower bound is."""
        return self._low is None or value >= self._low

    def _undercut(self, value: T) -> bool | T:
        """Whether the upper bound is."""
        return self._high is None or value < self._high


def _bound(bound: Bound, arrow_type: pa.DataType) -> float:
    """Raises ``ValueError`` with the remedy when the bound does not fit the column's type."""
    if is_time(arrow_type):
        return _microseconds(bound)
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    if not any(kind(arrow_type) for kind in kinds):
        raise ValueError("select by a column of integers, floats, dates or timestamps")
    if not isinstance(bound, (int, float)):
        raise ValueError(f"give a number in place of {bound!r}")  # noqa: TRY004
    # For integers the next whole number is the same bound, and exact.
    return bound if pa.types.is_floating(arrow_type) or math.isinf(bound) else math.ceil(bound)


def _microseconds(bound: Bound) -> int:
    if isinstance(bound, (int, float)):
        raise ValueError(f"give a date or time such as 2022-05-04 or 2022-05-04T12:00:00Z in place of {bound!r}")  # noqa: TRY004
    text = str(bound)
    try:
        moment = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no ISO 8601; write 2022-05-04 or 2022-05-04T12:00:00Z") from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _comparable(column: pa.ChunkedArray, arrow_type: pa.DataType) -> np.ndarray:
    """Numbers as they are, dates and times in microseconds; what stands under a null is 0."""
    if is_time(arrow_type):
        column = column.cast(pa.int32() if pa.types.is_date32(arrow_type) else pa.int64())
    elif pa.types.is_boolean(arrow_type):
        column = column.cast(pa.int8())
    elif pa.types.is_float16(arrow_type):
        column = column.cast(pa.float32())
    values: np.ndarray = column.fill_null(0).to_numpy()
    return _in_microseconds(values.astype(np.int64), arrow_type) if is_time(arrow_type) else values


def _extremes(statistics: pq.Statistics, arrow_type: pa.DataType) -> tuple[float, float]:
    if not is_time(arrow_type):
        return statistics.min, statistics.max
    # The raw numbers: as objects, nanoseconds need pandas.
    ticks = np.array([statistics.min_raw, statistics.max_raw], np.int64)
    least, largest = _in_microseconds(ticks, arrow_type).tolist()
    return least, largest


def _in_microseconds(ticks: np.ndarray, arrow_type: pa.DataType) -> np.ndarray:
    """Rounded down, which changes no comparison with whole microseconds."""
    if pa.types.is_date32(arrow_type):
        return ticks * _DAY_US
    unit = "ms" if pa.types.is_date64(arrow_type) else arrow_type.unit
    if unit == "ns":
        return ticks // 1_000
    result: np.ndarray = ticks * {"s": 1_000_000, "ms": 1_000, "us": 1}[unit]
    return result
