"""Parquet row groups as torch tensors: what a set of files holds, and reading some of it without a loop over rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from rookery.errors import DataError

# Rows decoded at a time: bounds the memory beside the result to 8 MB a column of int64.
ROWS_PER_READ = 1_048_576

_DTYPES: dict[pa.DataType, torch.dtype] = {
    pa.int8(): torch.int8,
    pa.uint8(): torch.uint8,
    pa.int16(): torch.int16,
    pa.int32(): torch.int32,
    pa.int64(): torch.int64,
    pa.float16(): torch.float16,
    pa.float32(): torch.float32,
    pa.float64(): torch.float64,
}


@dataclass(frozen=True)
class RowGroupSlice:
    """Rows ``start`` to ``stop`` (exclusive) of one row group of one file."""

    file: Path
    row_group: int
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class ColumnType:
    """What a Parquet column becomes: ``[rows]``, or ``[rows, width]`` for fixed-size lists."""

    dtype: torch.dtype
    width: int | None

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return name if self.width is None else f"a list of {self.width} {name}"

    def allocate(self, num_rows: int) -> Tensor:
        shape = (num_rows,) if self.width is None else (num_rows, self.width)
        return torch.empty(shape, dtype=self.dtype)


def list_row_groups(files: Sequence[Path], columns: Sequence[str]) -> tuple[list[RowGroupSlice], dict[str, ColumnType]]:
    """All row groups that hold rows, in file order, and the type of each column.

    Reads only the footers. Raises ``DataError`` for a file that is absent or no Parquet, a column that is absent, of a
    type without a tensor, or of another type than in the first file.
    """
    slices: list[RowGroupSlice] = []
    types: dict[str, ColumnType] = {}
    for file in files:
        metadata = _footer(file)
        schema = metadata.schema.to_arrow_schema()
        for column in columns:
            found = _column_type(file, schema, column)
            first = types.setdefault(column, found)
            if found != first:
                raise DataError(
                    f"{file}: column {column!r} is {found}, but {first} in {files[0]}; write all files with one schema"
                )
        sizes = (metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
        slices += [RowGroupSlice(file, index, 0, size) for index, size in enumerate(sizes) if size]
    return slices, types


def select_rows(slices: Sequence[RowGroupSlice], offset: int, limit: int | None) -> list[RowGroupSlice]:
    """Leave out the first ``offset`` rows in file order and keep at most ``limit`` of the rest."""
    selected, row = [], 0
    end = None if limit is None else offset + limit
    for piece in slices:
        start = max(piece.start, piece.start + offset - row)
        stop = piece.stop if end is None else min(piece.stop, piece.start + end - row)
        if start < stop:
            selected.append(replace(piece, start=start, stop=stop))
        row += piece.num_rows
    return selected


def read_rows(slices: Sequence[RowGroupSlice], types: dict[str, ColumnType]) -> dict[str, Tensor]:
    """The rows of ``slices``, in their order, as one tensor a column: ``[rows]`` or ``[rows, width]``.

    Raises ``DataError`` naming file, row group and column where a row group cannot be decoded or holds a null.
    """
    num_rows = sum(piece.num_rows for piece in slices)
    result = {name: column.allocate(num_rows) for name, column in types.items()}
    row = 0
    for pieces in _reads(slices):
        table = _read_table(pieces, list(types))
        for name, column in types.items():
            _copy_column(table.column(name), result[name].numpy()[row : row + table.num_rows], column, pieces, name)
        row += table.num_rows
    return result


def column_names(file: Path) -> tuple[str, ...]:
    """The columns of a Parquet file. ``DataError`` when it is none."""
    return tuple(_footer(file).schema.to_arrow_schema().names)


def _footer(file: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(file)
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file; correct the path or ingest the data again") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable Parquet file ({_one_line(error)}); write the file again") from error


def _column_type(file: Path, schema: pa.Schema, column: str) -> ColumnType:
    if column not in schema.names:
        raise DataError(f"{file}: no column {column!r}; the file has {', '.join(schema.names)}")
    arrow_type = schema.field(column).type
    is_list = pa.types.is_fixed_size_list(arrow_type)
    dtype = _DTYPES.get(arrow_type.value_type if is_list else arrow_type)
    if dtype is None:
        raise DataError(
            f"{file}: column {column!r} is {arrow_type}; write it as an integer, a float, or a fixed-size list of these"
        )
    return ColumnType(dtype, arrow_type.list_size if is_list else None)


def _reads(slices: Sequence[RowGroupSlice]) -> Iterator[list[RowGroupSlice]]:
    """Runs of slices of one file, each of at most ``ROWS_PER_READ`` rows (or one row group)."""
    for _, run in groupby(slices, key=lambda piece: piece.file):
        pieces: list[RowGroupSlice] = []
        num_rows = 0
        for piece in run:
            if pieces and num_rows + piece.num_rows > ROWS_PER_READ:
                yield pieces
                pieces, num_rows = [], 0
            pieces.append(piece)
            num_rows += piece.num_rows
        yield pieces


def _read_table(pieces: Sequence[RowGroupSlice], columns: list[str]) -> pa.Table:
    try:
        with pq.ParquetFile(pieces[0].file, page_checksum_verification=True) as file:
            if all(piece.num_rows == file.metadata.row_group(piece.row_group).num_rows for piece in pieces):
                return file.read_row_groups([piece.row_group for piece in pieces], columns=columns)
            tables = (
                file.read_row_group(piece.row_group, columns=columns).slice(piece.start, piece.num_rows)
                for piece in pieces
            )
            return pa.concat_tables(tables)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(pieces, columns, error) from error


def _unreadable(pieces: Sequence[RowGroupSlice], columns: list[str], error: Exception) -> DataError:
    """Read one row group and column at a time to name the damaged one."""
    file = pieces[0].file
    for piece in pieces:
        for column in columns:
            try:
                with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
                    parquet.read_row_group(piece.row_group, columns=[column])
            except (pa.ArrowException, OSError) as cause:
                return DataError(
                    f"{file}: row group {piece.row_group}, column {column!r} cannot be decoded ({_one_line(cause)}); "
                    "write the file again"
                )
    return DataError(f"{file}: cannot be read ({_one_line(error)}); write the file again")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _copy_column(
    source: pa.ChunkedArray, target: np.ndarray, column: ColumnType, pieces: Sequence[RowGroupSlice], name: str
) -> None:
    row = 0
    for chunk in source.chunks:
        values = chunk if column.width is None else chunk.flatten()
        if chunk.null_count or values.null_count:
            raise _null(source, pieces, name)
        numbers = values.to_numpy(zero_copy_only=True)
        target[row : row + len(chunk)] = numbers if column.width is None else numbers.reshape(-1, column.width)
        row += len(chunk)


def _null(source: pa.ChunkedArray, pieces: Sequence[RowGroupSlice], name: str) -> DataError:
    lists_without_null = pa.types.is_fixed_size_list(source.type) and not source.null_count
    values = pc.list_flatten(source) if lists_without_null else source
    row = pc.index(pc.is_null(values), True).as_py() // (source.type.list_size if lists_without_null else 1)
    for piece in pieces:
        if row < piece.num_rows:
            break
        row -= piece.num_rows
    return DataError(
        f"{piece.file}: row group {piece.row_group}, row {piece.start + row}, column {name!r} is null; "
        "leave the row out or give it a value"
    )
