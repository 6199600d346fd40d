"""The Parquet files of a partition, and which of their rows belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from rookery.data import parquet
from rookery.data.row_filter import RowFilter, filter_rows
from rookery.data.row_groups import RowGroupSlice, list_row_groups, select_rows
from rookery.data.stream import OnCorrupt
from rookery.errors import DataError
from rookery.ranker.features_config import PartitionConfig, TrainPartition
from rookery.storage.location import Location


def find_files(partition: PartitionConfig) -> list[Location]:
    """The files, sorted within each of the inputs. ``DataError`` where an input has none."""
    files: list[Location] = []
    for place in partition.inputs:
        found = parquet.find_files(place)
        if not found:
            raise DataError(f"inputs: {place}: no Parquet file there; name a file, a directory or a glob")
        files += found
    return files


def row_filter(partition: PartitionConfig) -> RowFilter | None:
    """The rows of a partition by the values of a column, None for all."""
    rows = partition.rows
    return None if rows is None else RowFilter(rows.column, rows.at_least, rows.below)


def on_corrupt(partition: PartitionConfig) -> OnCorrupt:
    """What becomes of a row group that cannot be decoded: only training goes on without it."""
    return partition.on_corrupt if isinstance(partition, TrainPartition) else "fail"


def partition_rows(partition: PartitionConfig) -> list[RowGroupSlice]:
    """The rows of a partition, in file order."""
    slices, _ = list_row_groups(find_files(partition), [])
    where = row_filter(partition)
    return select_rows(slices if where is None else filter_rows(slices, where), partition.offset, partition.limit)


def require_rows(partitions: Mapping[str, PartitionConfig]) -> None:
    """Raise ``DataError`` with a line for each partition, by its field, that has no row.

    Footers tell, and of a filter the files as far as the first row that it leaves.
    """
    problems = [
        f"{field}: {_shortage(partition)}" for field, partition in partitions.items() if not _has_rows(partition)
    ]
    if problems:
        raise DataError("\n".join(problems))


def _has_rows(partition: PartitionConfig) -> bool:
    slices, _ = list_row_groups(find_files(partition), [])
    where, num_rows = row_filter(partition), 0
    for _, of_file in groupby(slices, key=lambda piece: piece.file):
        pieces = list(of_file)
        num_rows += sum(piece.num_rows for piece in (pieces if where is None else filter_rows(pieces, where)))
        if num_rows > partition.offset:
            return True
    return False


def _shortage(partition: PartitionConfig) -> str:
    files = find_files(partition)
    slices, _ = list_row_groups(files, [])
    place = f"{files[0]}{f' and {len(files) - 1} more' if len(files) > 1 else ''}"
    selections = [f"rows {row_filter(partition)}"] if partition.rows is not None else []
    selections += [f"offset {partition.offset}"] if partition.offset else []
    num_rows = sum(piece.num_rows for piece in slices)
    if not num_rows:
        return f"{place}: no rows; name other files"
    return f"{place}: none of {num_rows:,} rows is left by {' and '.join(selections)}; correct the selection"
