"""The Parquet files of a partition, and which of their rows belong to it."""

from __future__ import annotations

import glob
from pathlib import Path

from rookery.data.row_filter import RowFilter, filter_rows
from rookery.data.row_groups import RowGroupSlice, list_row_groups, select_rows
from rookery.errors import DataError
from rookery.ranker.features_config import PartitionConfig


def find_files(partition: PartitionConfig) -> list[Path]:
    """The files, sorted within each of the inputs. ``DataError`` where an input has none."""
    files: list[Path] = []
    for place in partition.inputs:
        pattern = f"{glob.escape(place)}/*.parquet" if Path(place).is_dir() else place
        found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (absolute patterns)
        if Path(place).is_file():  # a name may have brackets in it
            found = [place]
        if not found:
            raise DataError(f"inputs: {place}: no Parquet file there; name a file, a directory or a glob")
        files += map(Path, found)
    return files


def row_filter(partition: PartitionConfig) -> RowFilter | None:
    """The rows of a partition by the values of a column, None for all."""
    rows = partition.rows
    return None if rows is None else RowFilter(rows.column, rows.at_least, rows.below)


def partition_rows(partition: PartitionConfig) -> list[RowGroupSlice]:
    """The rows of a partition, in file order."""
    slices, _ = list_row_groups(find_files(partition), [])
    where = row_filter(partition)
    return select_rows(slices if where is None else filter_rows(slices, where), partition.offset, partition.limit)
