"""What may be asked of a Parquet column, and the tensor that it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

Kind = Literal["stored", "number", "vector", "id", "id_list", "label"]

_STORED: dict[pa.DataType, torch.dtype] = {
    pa.int8(): torch.int8,
    pa.uint8(): torch.uint8,
    pa.int16(): torch.int16,
    pa.int32(): torch.int32,
    pa.int64(): torch.int64,
    pa.float16(): torch.float16,
    pa.float32(): torch.float32,
    pa.float64(): torch.float64,
}
# Vectors of these stay what they are, for half or a quarter of the memory; all others become float32.
_NARROW: dict[pa.DataType, torch.dtype] = {
    pa.float16(): torch.float16,
    pa.uint8(): torch.uint8,
    pa.bool_(): torch.uint8,
}
# Bytes of a value in a fixed-size binary column, little-endian.
_PACKED: dict[int, torch.dtype] = {4: torch.float32, 2: torch.float16, 1: torch.uint8}


@dataclass(frozen=True)
class ColumnRequest:
    """A column and what it shall become.

    ``stored``: ``[rows]`` of the file's own type, ``[rows, width]`` for fixed-size lists; what a plain name asks for.
    ``number``: float32 ``[rows]``; null becomes NaN.
    ``vector``: ``[rows, width]``, float32, or float16 and uint8 where the file has these; ``width`` None takes that of
    the file's fixed-size list. A null row or value becomes NaN.
    ``id``: int64 ``[rows]``, see ``rookery.data.ids``; null becomes ``MISSING_ID``.
    ``id_list``: int64 ``[rows, max_length]``, the last ``max_length`` ids of each list, padded behind with
    ``MISSING_ID``; a null in a list is left out, a null list is empty.
    ``label``: float32 ``[rows]``; null is an error.

    With ``nullable`` False a null is an error for every kind. ``key`` is the name in the batch, where a column is asked
    for in two ways.
    """

    name: str
    kind: Kind = "stored"
    width: int | None = None
    max_length: int | None = None
    nullable: bool = True
    key: str = ""

    def __post_init__(self) -> None:
        assert self.width is None or (self.kind == "vector" and self.width > 0), self
        assert (self.max_length is not None and self.max_length > 0) == (self.kind == "id_list"), self
        if not self.key:
            object.__setattr__(self, "key", self.name)

    @property
    def takes_null(self) -> bool:
        return self.nullable and self.kind not in {"stored", "label"}


@dataclass(frozen=True)
class ColumnType:
    """What a Parquet column becomes: ``[rows]``, or ``[rows, width]``."""

    dtype: torch.dtype
    width: int | None
    request: ColumnRequest

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return name if self.width is None else f"a list of {self.width} {name}"

    @property
    def bytes_per_row(self) -> int:
        return self.dtype.itemsize * (1 if self.width is None else self.width)

    def allocate(self, num_rows: int) -> Tensor:
        """Uninitialised. By numpy, which asks for huge pages: the first touch of 512 MB takes .04 s in place of .2."""
        shape = (num_rows,) if self.width is None else (num_rows, self.width)
        return torch.from_numpy(np.empty(shape, torch.empty(0, dtype=self.dtype).numpy().dtype))


class UnfitType(Exception):
    """A column's Arrow type cannot become what was requested; the message is the remedy."""


def as_request(column: str | ColumnRequest) -> ColumnRequest:
    return ColumnRequest(column) if isinstance(column, str) else column


def column_type(request: ColumnRequest, arrow_type: pa.DataType) -> ColumnType:
    """The tensor that a column of ``arrow_type`` becomes. Raises ``UnfitType``."""
    if request.kind == "stored":
        dtype, width = _stored(arrow_type)
    elif request.kind == "vector":
        dtype, width = _vector(request, arrow_type)
    elif request.kind == "id_list":
        dtype, width = _id_list(arrow_type), request.max_length
    else:
        dtype, width = _id(arrow_type) if request.kind == "id" else _number(request.kind, arrow_type), None
    return ColumnType(dtype, width, request)


def _stored(arrow_type: pa.DataType) -> tuple[torch.dtype, int | None]:
    is_list = pa.types.is_fixed_size_list(arrow_type)
    dtype = _STORED.get(arrow_type.value_type if is_list else arrow_type)
    if dtype is None:
        raise UnfitType("write it as an integer, a float, or a fixed-size list of these")
    return dtype, arrow_type.list_size if is_list else None


def _number(kind: Kind, arrow_type: pa.DataType) -> torch.dtype:
    if not is_number(_decoded(arrow_type)):
        raise UnfitType(f"a {kind} is an integer, a float, a decimal or a boolean; write it as one of these")
    return torch.float32


def _vector(request: ColumnRequest, arrow_type: pa.DataType) -> tuple[torch.dtype, int]:
    if pa.types.is_fixed_size_binary(arrow_type):
        return _packed_vector(request, arrow_type.byte_width)
    if not _is_list(arrow_type) or not is_number(arrow_type.value_type):
        raise UnfitType("a vector is a list of numbers; write it as a fixed-size list of float32")
    width: int | None = arrow_type.list_size if pa.types.is_fixed_size_list(arrow_type) else request.width
    if width is None:
        raise UnfitType("its lists may differ in length; say which width they have, or write fixed-size lists")
    if request.width not in {None, width}:
        raise UnfitType(f"the width asked for is {request.width}; correct the one or the other")
    return _NARROW.get(arrow_type.value_type, torch.float32), width


def _packed_vector(request: ColumnRequest, byte_width: int) -> tuple[torch.dtype, int]:
    if request.width is None:
        raise UnfitType("its bytes do not tell the width of the vector; say which width it has")
    size, rest = divmod(byte_width, request.width)
    if rest or size not in _PACKED:
        raise UnfitType(
            f"{request.width} values take {4 * request.width} bytes as float32, {2 * request.width} as float16 and "
            f"{request.width} as uint8; correct the width or write the vectors so"
        )
    return _PACKED[size], request.width


def _id(arrow_type: pa.DataType) -> torch.dtype:
    if not is_id(arrow_type):
        raise UnfitType("an id is an integer, a string, bytes, a boolean, a date or a time; write it as one of these")
    return torch.int64


def _id_list(arrow_type: pa.DataType) -> torch.dtype:
    if not _is_list(arrow_type) or not is_id(arrow_type.value_type):
        raise UnfitType("a list of ids is a list of integers or strings; write it as one of these")
    return torch.int64


def is_number(arrow_type: pa.DataType) -> bool:
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
    return any(kind(arrow_type) for kind in kinds)


def is_time(arrow_type: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(arrow_type) or pa.types.is_date(arrow_type))


def is_text(arrow_type: pa.DataType) -> bool:
    """Strings and bytes."""
    kinds = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    )
    return any(kind(arrow_type) for kind in kinds)


def is_id(arrow_type: pa.DataType) -> bool:
    decoded = _decoded(arrow_type)
    return is_number(decoded) or is_time(decoded) or is_text(decoded)


def _decoded(arrow_type: pa.DataType) -> pa.DataType:
    return arrow_type.value_type if pa.types.is_dictionary(arrow_type) else arrow_type


def _is_list(arrow_type: pa.DataType) -> bool:
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(kind(arrow_type) for kind in kinds)
