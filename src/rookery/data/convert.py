"""Arrow arrays as the numpy arrays that were requested, without a loop over rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from rookery.data.columns import ColumnType
from rookery.data.ids import MISSING_ID, NoId, encode_ids

_NULL = "is null; leave the row out or give it a value"


class BadValue(ValueError):
    """A value that cannot become what was requested: ``row`` is its place in the array, the message has the remedy."""

    def __init__(self, row: int, problem: str) -> None:
        super().__init__(problem)
        self.row = row


def convert(array: pa.Array, column: ColumnType) -> np.ndarray:
    """``[rows]`` or ``[rows, width]`` of the column's type; a view of the array where that is possible.

    Raises ``BadValue`` for a null where none is taken, a list of another length, and a number that is no id.
    """
    request = column.request
    if array.null_count and not request.takes_null:
        raise BadValue(_first(array.is_null()), _NULL)
    if request.kind == "id":
        return _ids(array)
    if column.width is None:
        return _plain(array) if request.kind == "stored" else _float32(array)
    if request.kind == "id_list":
        return _id_lists(array, column.width, request.nullable)
    return _vectors(array, column, column.width)


def _plain(array: pa.Array) -> np.ndarray:
    values: np.ndarray = array.to_numpy(zero_copy_only=True)
    return values


def _float32(array: pa.Array) -> np.ndarray:
    """Null is NaN. Integers are rounded; numbers out of range become infinite."""
    decoded = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
    if pa.types.is_decimal(decoded.type):
        decoded = decoded.cast(pa.float64())  # Arrow's own way to float32 is off by a last digit
    values: np.ndarray = decoded.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    return values


def _vectors(array: pa.Array, column: ColumnType, width: int) -> np.ndarray:
    if array.null_count:
        return _with_nan_rows(array, column, width)
    if pa.types.is_fixed_size_binary(array.type):
        start = array.offset * array.type.byte_width
        values = np.frombuffer(array.buffers()[1], _numpy_type(column).newbyteorder("<"), len(array) * width, start)
    else:
        if not pa.types.is_fixed_size_list(array.type):
            _require_length(array, width)
        values = _values(array.flatten(), column, width)
    return values.reshape(-1, width)


def _with_nan_rows(array: pa.Array, column: ColumnType, width: int) -> np.ndarray:
    missing = array.is_null().to_numpy(zero_copy_only=False)
    if not column.dtype.is_floating_point:
        raise BadValue(int(missing.argmax()), "is null, which uint8 cannot tell; write the column as float32")
    result = np.full((len(array), width), np.nan, _numpy_type(column))
    try:
        result[~missing] = _vectors(array.drop_null(), column, width)
    except BadValue as error:
        raise BadValue(int(np.flatnonzero(~missing)[error.row]), str(error)) from error
    return result


def _require_length(array: pa.Array, width: int) -> None:
    wrong = pc.not_equal(pc.list_value_length(array), width)
    if pc.any(wrong).as_py():
        row = _first(wrong)
        problem = f"has {len(array[row])} values, {width} expected"
        raise BadValue(row, f"{problem}; write lists of {width} or correct the width")


def _values(values: pa.Array, column: ColumnType, width: int) -> np.ndarray:
    """The values of lists of ``width``, of the column's type, one after another."""
    if values.null_count and not (column.request.takes_null and column.dtype.is_floating_point):
        raise BadValue(_first(values.is_null()) // width, _NULL)
    if column.request.kind == "stored":
        return _plain(values)
    if column.dtype == torch.float32:
        return _float32(values)
    narrow: np.ndarray = values.cast(pa.from_numpy_dtype(_numpy_type(column))).to_numpy(zero_copy_only=False)
    return narrow


def _ids(array: pa.Array) -> np.ndarray:
    try:
        return encode_ids(array)
    except NoId as error:
        raise BadValue(error.row, f"{error}; write ids as integers or strings") from error


def _id_lists(array: pa.Array, max_length: int, nullable: bool) -> np.ndarray:
    """The last ``max_length`` ids of each list, left-aligned."""
    ends = np.cumsum(pc.list_value_length(array).fill_null(0).to_numpy())
    values = array.flatten()  # without what stands under a null list
    if values.null_count and not nullable:
        raise BadValue(_list_of(_first(values.is_null()), ends), "has a null; leave it out of the list")
    try:
        ids = encode_ids(values)
    except NoId as error:
        problem = f"has an id that {error}; write ids as integers or strings"
        raise BadValue(_list_of(error.row, ends), problem) from error
    known = ids != MISSING_ID
    if not known.all():
        ends, ids = np.append(0, np.cumsum(known))[ends], ids[known]
    return _last_of_each(ids, ends, max_length)


def _list_of(place: int, ends: np.ndarray) -> int:
    return int(np.searchsorted(ends, place, side="right"))


def _last_of_each(values: np.ndarray, ends: np.ndarray, max_length: int) -> np.ndarray:
    """``[lists, max_length]`` of lists that lie one after another and end at ``ends``."""
    lengths = np.minimum(np.diff(ends, prepend=0), max_length)
    place = np.arange(max_length)
    filled = place < lengths[:, None]  # [lists, max_length]
    result = np.full(filled.shape, MISSING_ID, np.int64)
    result[filled] = values[((ends - lengths)[:, None] + place)[filled]]
    return result


def _numpy_type(column: ColumnType) -> np.dtype[Any]:
    return torch.empty(0, dtype=column.dtype).numpy().dtype


def _first(flags: pa.BooleanArray) -> int:
    """The place of the first true one."""
    return int(pc.index(flags, True).as_py())
