"""What travels between readers and trainers: tickets one way, batches of tensors as Arrow columns the other.

A ticket names lanes, an epoch and some of its batches, so that asking again gives the same rows. Each batch comes with
a header: its number, the rows of each lane, the digest of their numbers, and a checksum of the columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from typing_extensions import Self
from zlib_ng import zlib_ng

from rookery.data.stream import Columns
from rookery.errors import DataError

MAX_MESSAGE_BYTES = 65_536
"""Of a ticket, or of a header, which has a number for each lane."""
MAX_BATCHES = 64
"""Of one ticket."""
TICKET_BYTES = 8_388_608
"""Of the batches of one ticket, or one batch: large enough that a request costs little beside them."""

_INT32_END = 2**31


class Garbage(Exception):
    """What came is not what was asked for, or not in the form agreed upon."""


class TensorType(NamedTuple):
    """``[rows]`` of ``dtype``, or ``[rows, width]``; integers that all fit a ``narrow`` type travel as that."""

    dtype: torch.dtype
    width: int | None
    narrow: torch.dtype | None = None

    @property
    def sent(self) -> torch.dtype:
        return self.narrow or self.dtype

    @property
    def bytes_per_row(self) -> int:
        return self.sent.itemsize * (1 if self.width is None else self.width)

    def below(self, limit: int) -> TensorType:
        """The same of integers from -1 to ``limit`` (exclusive)."""
        return self._replace(narrow=torch.int32) if limit <= _INT32_END else self


TensorTypes = Mapping[str, TensorType]


def types_of(columns: Columns) -> dict[str, TensorType]:
    """The types of some tensors."""
    return {name: TensorType(each.dtype, None if each.dim() == 1 else each.shape[1]) for name, each in columns.items()}


def schema_of(types: TensorTypes, identity: str) -> pa.Schema:
    """The Arrow schema of batches of these types, of the stream with this ``identity``."""
    return pa.schema([(name, _arrow_type(each)) for name, each in types.items()], metadata={"stream": identity})


class Message(BaseModel):
    """Something small that travels as JSON, of at most ``max_bytes``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    max_bytes: ClassVar[int] = MAX_MESSAGE_BYTES

    def to_bytes(self) -> bytes:
        return self.model_dump_json().encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises ``Garbage`` for what is no such message."""
        if len(data) > cls.max_bytes:
            raise Garbage(f"a {cls.__name__.lower()} of {len(data):,} bytes; at most {cls.max_bytes:,}")
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"]))
            raise Garbage(f"{data[:80]!r} is no {cls.__name__.lower()}: {place} {problem['msg']}") from error


class Order(Message):
    """Which batches a stream has: ``batch_size`` rows of ``num_lanes`` lanes."""

    batch_size: int = Field(ge=1)
    num_lanes: int = Field(ge=1)


class Ticket(Message):
    """Batches ``first`` to ``first + count`` (exclusive) of an epoch, of lanes ``start`` to ``stop`` (exclusive).

    ``identity`` is that of the stream in this ``order``.
    """

    identity: str
    order: Order
    start: int = Field(ge=0)
    stop: int = Field(ge=1)
    epoch: int = Field(ge=0)
    first: int = Field(ge=0)
    count: int = Field(ge=1, le=MAX_BATCHES)

    @property
    def lanes(self) -> range:
        return range(self.start, self.stop)

    @property
    def batches(self) -> range:
        return range(self.first, self.first + self.count)


class Header(Message):
    """What goes with batch ``batch`` of a ticket: ``rows`` of each lane, ``digest`` and ``skipped`` as in ``Ledger``,
    ``num_rows`` that preprocessing left of them, ``checksum`` of the columns.
    """

    batch: int
    rows: tuple[int, ...]
    num_rows: int = Field(ge=0)
    digest: int
    skipped: int
    checksum: int


def encode(columns: Columns, types: TensorTypes, schema: pa.Schema) -> pa.RecordBatch:
    """The columns, without a copy of those that are sent as they are.

    Raises ``DataError`` for a number that does not fit its narrow type.
    """
    arrays = []
    for (name, each), field in zip(types.items(), schema, strict=True):
        values = _narrowed(name, columns[name], each).contiguous().numpy().reshape(-1)
        flat = pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])
        arrays.append(flat if each.width is None else pa.FixedSizeListArray.from_arrays(flat, type=field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def decode(batch: pa.RecordBatch, types: TensorTypes) -> Columns:
    """The columns, copied into memory of their own: what they came in is freed as a whole and cannot be written to."""
    columns = {}
    for (name, each), array in zip(types.items(), batch.columns, strict=True):
        if array.null_count:
            raise Garbage(f"column {name!r} has nulls")
        shape = (len(array),) if each.width is None else (len(array), each.width)
        target = torch.empty(shape, dtype=each.dtype)
        target.numpy().reshape(-1)[:] = numbers_of(array)
        columns[name] = target
    return columns


def checksum(batch: pa.RecordBatch) -> int:
    """CRC-32 of the numbers as they are sent, column after column; tens of GB/s, zlib's own takes 7."""
    total = 0
    for array in batch.columns:
        total = zlib_ng.crc32(np.ascontiguousarray(numbers_of(array)).view(np.uint8), total)
    return total


def _narrowed(name: str, column: Tensor, tensor: TensorType) -> Tensor:
    if tensor.narrow is None:
        return column
    lowest, highest = (int(bound) for bound in column.aminmax()) if column.numel() else (0, 0)
    if lowest < -_INT32_END or highest >= _INT32_END:
        wrong = lowest if lowest < -_INT32_END else highest
        raise DataError(f"column {name!r} has {wrong}, which is the row of no table; correct the data")
    return column.to(tensor.narrow)


def numbers_of(array: pa.Array) -> np.ndarray:
    """The numbers of a column, row after row."""
    numbers: np.ndarray = (array.flatten() if pa.types.is_fixed_size_list(array.type) else array).to_numpy()
    return numbers


def _arrow_type(tensor: TensorType) -> pa.DataType:
    value = pa.from_numpy_dtype(torch.empty(0, dtype=tensor.sent).numpy().dtype)
    return value if tensor.width is None else pa.list_(pa.field("item", value, nullable=False), tensor.width)
