"""Row groups as torch tensors: what a set of files holds, and reading some of it without a loop over rows.

Files are Parquet, or files of records, whose blocks are row groups as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from rookery.data.columns import ColumnRequest, ColumnType, UnfitType, as_request, column_type
from rookery.data.convert import BadValue, convert
from rookery.data.damage import is_damage
from rookery.data.parquet import open_parquet, read_metadata
from rookery.data.record_files import DamagedBlock, RecordFile
from rookery.errors import DataError
from rookery.storage.location import Location

# Decoded at a time by each reader, or one row group: what lies beside the result. More of one column at a time is
# slower, since memory for it is asked of the system each time.
BYTES_PER_READ = 67_108_864
COLUMN_BYTES_PER_READ = 8_388_608
# Arrow decodes columns in parallel, which does not help where one column is most of a row.
READERS = 2


SourceFile: TypeAlias = "Location | RecordFile"
"""A Parquet file, or a file of records."""


class CorruptRowGroup(DataError):
    """A row group cannot be decoded, or its file is gone; the message names file, row group and column."""


def describe_row(file: SourceFile, row_group: int, row: int) -> str:
    """Where a row of a row group is, for people."""
    if isinstance(file, RecordFile):
        return f"{file}: record {file.record(row_group, row)}"
    return f"{file}: row group {row_group}, row {row}"


@dataclass(frozen=True)
class RowGroupSlice:
    """Rows ``start`` to ``stop`` (exclusive) of one row group of one file, or of those ``rows`` of it (ascending)."""

    file: SourceFile
    row_group: int
    start: int
    stop: int
    rows: np.ndarray | None = field(default=None, compare=False)

    @property
    def num_rows(self) -> int:
        return self.stop - self.start

    @property
    def parquet(self) -> Location:
        """The file, where only Parquet is read."""
        assert not isinstance(self.file, RecordFile), self.file
        return self.file

    def row_number(self, place: int) -> int:
        """The row within the row group that is at ``place`` in this slice."""
        return self.start + place if self.rows is None else int(self.rows[self.start + place])

    def of(self, table: pa.Table) -> pa.Table:
        """The rows of this slice out of all of its row group."""
        if self.rows is None:
            return table.slice(self.start, self.num_rows)
        return table.take(pa.array(self.rows[self.start : self.stop]))


@dataclass(frozen=True)
class FileFacts:
    """What is known of a file without reading its rows: columns, rows of each row group, of Parquet statistics."""

    schema: pa.Schema
    row_groups: tuple[int, ...]
    parquet: pq.FileMetaData | None = None


def file_facts(file: SourceFile) -> FileFacts:
    """``DataError`` when a file is absent or not what it should be. The first look at a file of records reads it."""
    if isinstance(file, RecordFile):
        return FileFacts(file.schema, file.blocks)
    metadata = read_footer(file)
    sizes = (metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
    return FileFacts(metadata.schema.to_arrow_schema(), tuple(sizes), metadata)


def facts_of(files: Sequence[SourceFile]) -> Iterator[tuple[SourceFile, FileFacts]]:
    """The facts of each file; those of files of records are found ahead, by several threads."""
    records = [file for file in files if isinstance(file, RecordFile)]
    with ThreadPoolExecutor(READERS, thread_name_prefix="record-counter") as counters:
        ahead = {file: counters.submit(file_facts, file) for file in records}
        try:
            for file in files:
                yield file, ahead[file].result() if isinstance(file, RecordFile) else file_facts(file)
        finally:
            for each in ahead.values():
                each.cancel()


def list_row_groups(
    files: Sequence[SourceFile], columns: Sequence[str | ColumnRequest]
) -> tuple[list[RowGroupSlice], dict[str, ColumnType]]:
    """All row groups that hold rows, in file order, and the type of each column.

    Reads only the footers, and files of records that are new. Raises ``DataError`` for a file that is absent or not
    what it should be, a column that is absent, of a type that cannot become what is requested, or that becomes another
    tensor than in the first file.
    """
    slices: list[RowGroupSlice] = []
    types: dict[str, ColumnType] = {}
    for file, facts in facts_of(files):
        for request in map(as_request, columns):
            found = _column_type(file, facts.schema, request)
            first = types.setdefault(request.key, found)
            if found != first:
                raise DataError(
                    f"{file}: column {request.name!r} is {found}, but {first} in {files[0]}; "
                    "write all files with one schema"
                )
        slices += [RowGroupSlice(file, index, 0, size) for index, size in enumerate(facts.row_groups) if size]
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


def read_rows(
    slices: Sequence[RowGroupSlice], types: dict[str, ColumnType], into: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The rows of ``slices``, in their order, as one tensor a key: ``[rows]`` or ``[rows, width]``; those of ``into``
    if they are given.

    Raises ``DataError`` naming file, row group and column where a row group cannot be decoded, and the row, too, where
    a value cannot become what was requested.
    """

    def fail(damage: CorruptRowGroup) -> None:
        raise damage

    return _read(slices, types, fail, into)[0]


def read_sound_rows(
    slices: Sequence[RowGroupSlice],
    types: dict[str, ColumnType],
    report: Callable[[CorruptRowGroup], None],
    into: dict[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """As ``read_rows``, but a row group that cannot be decoded is reported and its rows stay as memory was.

    The second result tells the rows that were decoded: booleans ``[rows]``, None when all were. ``report`` is called
    from several threads.
    """
    return _read(slices, types, report, into)


def _read(
    slices: Sequence[RowGroupSlice],
    types: dict[str, ColumnType],
    report: Callable[[CorruptRowGroup], None],
    into: dict[str, Tensor] | None,
) -> tuple[dict[str, Tensor], Tensor | None]:
    num_rows = sum(piece.num_rows for piece in slices)
    result = into or {key: column.allocate(num_rows) for key, column in types.items()}
    names = list(dict.fromkeys(column.request.name for column in types.values()))
    lost: list[slice] = []

    def read(pieces: Sequence[RowGroupSlice], start: int) -> None:
        try:
            table = _read_table(pieces, names)
        except CorruptRowGroup as damage:
            if len(pieces) == 1:
                report(damage)
                lost.append(slice(start, start + pieces[0].num_rows))
            for piece in pieces if len(pieces) > 1 else ():
                read([piece], start)
                start += piece.num_rows
            return
        for key, column in types.items():
            target = result[key].numpy()[start : start + table.num_rows]
            _copy_column(table.column(column.request.name), target, column, pieces)

    reads = list(_reads(slices, types))
    starts = accumulate((sum(piece.num_rows for piece in pieces) for pieces in reads), initial=0)
    with ThreadPoolExecutor(READERS, thread_name_prefix="parquet-reader") as readers:
        list(readers.map(read, reads, starts))
    return result, _sound(num_rows, lost)


def _sound(num_rows: int, lost: Sequence[slice]) -> Tensor | None:
    if not lost:
        return None
    sound = torch.ones(num_rows, dtype=torch.bool)
    for rows in lost:
        sound[rows] = False
    return sound


def read_column(piece: RowGroupSlice, column: str) -> pa.ChunkedArray:
    """One column of a slice as Arrow has it. Raises ``DataError`` when it cannot be decoded."""
    return _read_table([piece], [column]).column(column)


def bytes_per_row(types: dict[str, ColumnType]) -> int:
    return sum(column.bytes_per_row for column in types.values())


def place_of(slices: Sequence[RowGroupSlice], row: int) -> tuple[RowGroupSlice, int]:
    """The slice that holds row ``row`` of ``slices`` laid one after another, and the row within its row group."""
    for piece in slices:
        if row < piece.num_rows:
            return piece, piece.row_number(row)
        row -= piece.num_rows
    raise IndexError(row)


def column_names(file: Location) -> tuple[str, ...]:
    """The columns of a Parquet file. ``DataError`` when it is none."""
    return tuple(read_footer(file).schema.to_arrow_schema().names)


def read_footer(file: Location) -> pq.FileMetaData:
    """What a file says of itself. ``DataError`` when it is absent or no Parquet."""
    try:
        return read_metadata(file)
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file; correct the path or ingest the data again") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable Parquet file ({_one_line(error)}); write the file again") from error


def require_column(file: SourceFile, schema: pa.Schema, name: str) -> None:
    """Raise ``DataError`` where a file has no column ``name``, or several."""
    if name not in schema.names:
        raise DataError(f"{file}: no column {name!r}; the file has {', '.join(schema.names)}")
    if schema.names.count(name) > 1:
        raise DataError(f"{file}: {twice(name)}")


def twice(name: str) -> str:
    """What is said of a column that a file has more than once."""
    return f"column {name!r} is there twice; rename one of the two when the file is written"


def _column_type(file: SourceFile, schema: pa.Schema, request: ColumnRequest) -> ColumnType:
    require_column(file, schema, request.name)
    arrow_type = schema.field(request.name).type
    try:
        return column_type(request, arrow_type)
    except UnfitType as error:
        raise DataError(f"{file}: column {request.name!r} is {arrow_type}; {error}") from error


def _reads(slices: Sequence[RowGroupSlice], types: dict[str, ColumnType]) -> Iterator[list[RowGroupSlice]]:
    """Runs of slices of one file, each of no more bytes (as tensors) than are decoded at a time, or of one slice."""
    widest = max(column.bytes_per_row for column in types.values())
    most = min(BYTES_PER_READ // bytes_per_row(types), COLUMN_BYTES_PER_READ // widest)
    for _, run in groupby(slices, key=lambda piece: piece.file):
        pieces: list[RowGroupSlice] = []
        num_rows = 0
        for piece in run:
            if pieces and num_rows + piece.num_rows > most:
                yield pieces
                pieces, num_rows = [], 0
            pieces.append(piece)
            num_rows += piece.num_rows
        yield pieces


def _read_table(pieces: Sequence[RowGroupSlice], columns: list[str]) -> pa.Table:
    source = pieces[0].file
    if isinstance(source, RecordFile):
        return _read_records(source, pieces, columns)
    try:
        with open_parquet(source) as file:
            if all(piece.num_rows == file.metadata.row_group(piece.row_group).num_rows for piece in pieces):
                return file.read_row_groups([piece.row_group for piece in pieces], columns=columns)
            tables = (piece.of(file.read_row_group(piece.row_group, columns=columns)) for piece in pieces)
            return pa.concat_tables(tables)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(source, pieces, columns, error) from error


def _read_records(file: RecordFile, pieces: Sequence[RowGroupSlice], columns: list[str]) -> pa.Table:
    tables = []
    for piece in pieces:
        try:
            tables.append(piece.of(file.read(piece.row_group, columns)))
        except DamagedBlock as error:
            raise CorruptRowGroup(str(error)) from error
        if tables[-1].num_rows != piece.num_rows:
            raise DataError(f"{file}: was written anew while it was read; start again")
    return pa.concat_tables(tables)


def _unreadable(file: Location, pieces: Sequence[RowGroupSlice], columns: list[str], error: Exception) -> DataError:
    """Read one row group and column at a time to name the damaged one."""
    for piece in pieces:
        for column in columns:
            try:
                with open_parquet(file) as parquet:
                    parquet.read_row_group(piece.row_group, columns=[column])
            except (pa.ArrowException, OSError) as cause:
                what = f"{file}: row group {piece.row_group}, column {column!r} cannot be decoded ({_one_line(cause)})"
                if is_damage(cause):
                    return CorruptRowGroup(f"{what}; write the file again")
                return DataError(f"{what}; give this process more of what it lacks")
    return DataError(f"{file}: cannot be read ({_one_line(error)}); write the file again")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _copy_column(
    source: pa.ChunkedArray, target: np.ndarray, column: ColumnType, pieces: Sequence[RowGroupSlice]
) -> None:
    row = 0
    for chunk in source.chunks:
        try:
            target[row : row + len(chunk)] = convert(chunk, column)
        except BadValue as error:
            piece, number = place_of(pieces, row + error.row)
            place = describe_row(piece.file, piece.row_group, number)
            raise DataError(f"{place}, column {column.request.name!r} {error}") from error
        row += len(chunk)
