"""Whether a reader and a trainer mean the same stream: what each says of it, compared field by field."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import rookery
from rookery.config.fields import leaves
from rookery.data.flight_wire import TensorTypes
from rookery.data.record_files import RecordFile
from rookery.data.row_groups import RowGroupSlice, SourceFile
from rookery.data.stream import ParquetStream

Description = dict[str, Any]
"""Numbers and strings by dotted field."""

_FOOTER_END_BYTES = 8


@dataclass(frozen=True)
class Served:
    """What readers make of the rows of a stream: ``types`` of the columns, ``meaning`` of the fields that decide over
    them (as JSON has them), and whether a batch has all rows that were read (``whole``).
    """

    types: TensorTypes
    meaning: Mapping[str, Any]
    whole: bool


def describe(stream: ParquetStream, meaning: Mapping[str, Any]) -> Description:
    """What makes the batches of a ``stream`` of all lanes what they are, and ``meaning``: fields, as JSON has
    them, that decide what becomes of its rows.

    Files are known by name, size and footer, which has the sizes and extremes of their columns, not by their folders:
    these may differ from one machine to another.
    """
    files = {file: number for number, file in enumerate(dict.fromkeys(piece.file for piece in stream.slices))}
    here: Description = {
        "version of rookery": rookery.__version__,
        "batch_size": stream.batch_size,
        "num_lanes": stream.num_lanes,
        "seed": stream.seed,
        "shuffle": stream.shuffle,
        "buffer_rows": stream.buffer_rows,
        "on_corrupt": stream.on_corrupt,
        "files": len(files),
        "rows": stream.num_rows,
        "content of the files": _sum(_footer(file) for file in files),
        "selected rows": _sum(_place(piece, files[piece.file]) for piece in stream.slices),
        **{f"column {name}": str(found) for name, found in stream.types.items()},
    }
    return here | dict(leaves(meaning))


def identity_of(description: Description) -> str:
    """A short name for all of it."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:32]


def differences(theirs: Description, ours: Description) -> list[str]:
    """A line for each field in which a reader (``theirs``) and this trainer do not agree."""
    names = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
    return [f"{name}: the reader has {theirs.get(name)}, this trainer {ours.get(name)}" for name in names]


def _sum(parts: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()[:16]


def _footer(file: SourceFile) -> bytes:
    """Name, size and footer of a Parquet file; of one of records its sums, and what is read of it."""
    if isinstance(file, RecordFile):
        return file.identity().encode()
    with file.open("rb") as opened:
        size = opened.seek(-_FOOTER_END_BYTES, 2) + _FOOTER_END_BYTES
        length = int.from_bytes(opened.read(4), "little")
        opened.seek(size - _FOOTER_END_BYTES - length)
        return f"{file.name} {size} ".encode() + opened.read(length)


def _place(piece: RowGroupSlice, file: int) -> bytes:
    rows = b"" if piece.rows is None else piece.rows.tobytes()
    return f"{file} {piece.row_group} {piece.start} {piece.stop} ".encode() + rows
