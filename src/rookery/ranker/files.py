"""The files of a partition, and which of their rows belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from rookery.data import parquet
from rookery.data.dated_files import files_of_days, files_of_hours
from rookery.data.record_files import ENDINGS, record_files
from rookery.data.row_filter import RowFilter, filter_rows
from rookery.data.row_groups import RowGroupSlice, SourceFile, list_row_groups, select_rows
from rookery.data.stream import OnCorrupt
from rookery.errors import DataError
from rookery.ranker.features_config import PartitionConfig, TrainPartition
from rookery.storage.location import Location


def find_files(partition: PartitionConfig) -> list[SourceFile]:
    """The files of a partition, in its order. ``DataError`` where an input has none, ``ConfigError`` for a schema."""
    places = find_places(partition)
    if partition.records is None:
        return list(places)
    return list(record_files(places, partition.records, skip_damage=on_corrupt(partition) == "skip"))


def find_places(partition: PartitionConfig) -> list[Location]:
    """Where the files lie, sorted within each of the inputs, or by time. ``DataError`` where an input has none."""
    places = _given(partition) if partition.inputs is not None else _dated(partition)
    return places[: partition.num_files_to_keep]


def _given(partition: PartitionConfig) -> list[Location]:
    kind = "Parquet file" if partition.records is None else "file of records"
    files: list[Location] = []
    for place in partition.inputs or ():
        found = parquet.find_files(place, _endings(partition))
        if not found:
            raise DataError(f"inputs: {place}: no {kind} there; name a file, a directory or a glob")
        files += found
    return files


def _dated(partition: PartitionConfig) -> list[Location]:
    days, hours = partition.explicit_date_inputs, partition.explicit_datetime_inputs
    if days is not None:
        return files_of_days(days, _endings(partition))
    assert hours is not None
    return files_of_hours(hours, _endings(partition))


def _endings(partition: PartitionConfig) -> tuple[str, ...]:
    return (".parquet",) if partition.records is None else ENDINGS


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


def missing_files(partitions: Mapping[str, PartitionConfig]) -> dict[str, str]:
    """For each partition, by its field, whose files are not all there: what is amiss, and the override that mends it.

    Partitions with the same fault share one message.
    """
    faults: dict[str, str] = {}
    for field, partition in partitions.items():
        try:
            find_places(partition)
        except DataError as error:
            faults[field] = str(error)
    messages = {}
    for field, fault in faults.items():
        alike = [other for other, same in faults.items() if same == fault]
        wanted = _override(partitions[alike[0]])
        remedy = f"--set '{alike[0]}.{wanted}'"
        if len(alike) > 1:
            remedy += f" --set 'validation_data.*.{wanted}' ({len(alike)} partitions have this fault)"
        messages[field] = f"{alike[0]}.{fault}: {remedy}"
    return messages


def _override(partition: PartitionConfig) -> str:
    if partition.inputs is not None:
        return "inputs=[PATH]"
    kind = "explicit_date_inputs" if partition.explicit_date_inputs is not None else "explicit_datetime_inputs"
    return f"{kind}.data_root=PATH"


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
