"""What travels between readers and trainers: tickets one way, batches of tensors as Arrow columns the other.

A ticket names lanes, an epoch and some of its batches, so that asking again gives the same rows. Each batch comes with
a header: its number, the rows of each lane, the digest of their numbers, and a checksum of the columns.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import Self

from rookery.data.stream import Columns

MAX_MESSAGE_BYTES = 65_536
"""Of a ticket, or of a header, which has a number for each lane."""
MAX_BATCHES = 64
"""Of one ticket."""
TICKET_BYTES = 8_388_608
"""Of the batches of one ticket, or one batch: large enough that a request costs little beside them."""


class Garbage(Exception):
    """What came is not what was asked for, or not in the form agreed upon."""


class TensorType(NamedTuple):
    """``[rows]`` of ``dtype``, or ``[rows, width]``."""

    dtype: torch.dtype
    width: int | None

    @property
    def bytes_per_row(self) -> int:
        return self.dtype.itemsize * (1 if self.width is None else self.width)


TensorTypes = Mapping[str, TensorType]


def types_of(columns: Columns) -> dict[str, TensorType]:
    """The types of some tensors."""
    return {name: TensorType(each.dtype, None if each.dim() == 1 else each.shape[1]) for name, each in columns.items()}


def schema_of(types: TensorTypes, identity: str) -> pa.Schema:
    """The Arrow schema of batches of these types, of the stream with this ``identity``."""
    return pa.schema([(name, _arrow_type(each)) for name, each in types.items()], metadata={"stream": identity})


class Message(BaseModel):
    """Something small that travels as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def to_bytes(self) -> bytes:
        return self.model_dump_json().encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises ``Garbage`` for what is no such message."""
        if len(data) > MAX_MESSAGE_BYTES:
            raise Garbage(f"a {cls.__name__.lower()} of {len(data):,} bytes; at most {MAX_MESSAGE_BYTES:,}")
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
    ``checksum`` of the columns.
    """

    batch: int
    rows: tuple[int, ...]
    digest: int
    skipped: int
    checksum: int


def encode(columns: Columns, types: TensorTypes, schema: pa.Schema) -> pa.RecordBatch:
    """The columns without a copy of them."""
    arrays = []
    for (name, each), field in zip(types.items(), schema, strict=True):
        values = columns[name].contiguous().numpy().reshape(-1)
        flat = pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])
        arrays.append(flat if each.width is None else pa.FixedSizeListArray.from_arrays(flat, type=field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def decode(batch: pa.RecordBatch, types: TensorTypes) -> Columns:
    """The columns, copied into memory of their own: what they came in is freed as a whole and cannot be written to."""
    columns = {}
    for (name, each), array in zip(types.items(), batch.columns, strict=True):
        if array.null_count:
            raise Garbage(f"column {name!r} has nulls")
        values = (array if each.width is None else array.flatten()).to_numpy()
        shape = (len(array),) if each.width is None else (len(array), each.width)
        columns[name] = torch.from_numpy(np.array(values).reshape(shape))
    return columns


def checksum(columns: Columns) -> int:
    """CRC-32 of the numbers, column after column; 7 GB/s."""
    total = 0
    for column in columns.values():
        values = column.contiguous().numpy().reshape(-1).view(np.uint8)
        total = zlib.crc32(values, total)  # type: ignore[arg-type]
    return total


def _arrow_type(tensor: TensorType) -> pa.DataType:
    value = pa.from_numpy_dtype(torch.empty(0, dtype=tensor.dtype).numpy().dtype)
    return value if tensor.width is None else pa.list_(pa.field("item", value, nullable=False), tensor.width)
