"""Vocabularies: the values that training rows have, counted, the most frequent first."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from rookery.data.columns import is_text
from rookery.data.ids import NoId, encode_ids
from rookery.data.row_groups import CorruptRowGroup, RowGroupSlice, describe_row, read_column
from rookery.data.stream import OnCorrupt
from rookery.errors import DataError
from rookery.parallel.world import on_all, share_object, world_size
from rookery.ranker.features_config import FeaturesConfig, TableConfig, VocabularyConfig

_MERGE_ROWS = 4_194_304  # counts that wait to be merged: bounds the memory beside the distinct values


@dataclass(frozen=True)
class Vocabulary:
    """Values of a table in the order of its rows, and how often each was seen.

    ``table`` has the columns value (string, bytes or int64) and count (int64).
    """

    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @functools.cached_property
    def ids(self) -> Tensor:
        """Int64 ``[n]``, what a stream makes of the values."""
        return torch.from_numpy(encode_ids(self.table.column("value")))


def count_vocabularies(
    config: FeaturesConfig,
    tables: Sequence[TableConfig],
    slices: Sequence[RowGroupSlice],
    on_corrupt: OnCorrupt = "fail",
) -> dict[str, Vocabulary]:
    """A vocabulary for each of ``tables``, of all values of its features in the rows of ``slices``.

    Of several processes all call it, each with rows of its own, and come to the same vocabularies of the rows of all.
    All elements of lists count, those beyond ``max_length`` too. The most frequent first, equally frequent ones by
    value: numbers by size, strings by bytes. With ``on_corrupt`` "skip", columns of row groups that cannot be decoded
    are left out. Holds the distinct values of all rows in memory, those of one process's rows beside them, and one row
    group of one column.
    """
    return {
        table.name: _count(table.vocabulary, _columns(config, table), slices, on_corrupt)
        for table in tables
        if table.vocabulary is not None
    }


def inline_vocabulary(table: TableConfig) -> Vocabulary:
    """The values that a table lists itself, uncounted."""
    assert table.values is not None
    values = pa.array(table.values)
    return Vocabulary(pa.table({"value": values, "count": pa.array([0] * len(values), pa.int64())}))


def _columns(config: FeaturesConfig, table: TableConfig) -> list[str]:
    return list(dict.fromkeys(feature.source for feature in config.looked_up if feature.table == table.name))


def _count(
    config: VocabularyConfig, columns: Sequence[str], slices: Sequence[RowGroupSlice], on_corrupt: OnCorrupt
) -> Vocabulary:
    counted = _over_processes(on_all(lambda: _counted(columns, slices, on_corrupt)))
    return on_all(lambda: _most_frequent(config, columns[0], counted))


def _counted(columns: Sequence[str], slices: Sequence[RowGroupSlice], on_corrupt: OnCorrupt) -> pa.Table | None:
    """How often each value is there; None where there is no row group that can be decoded."""
    waiting: list[pa.Table] = []
    for counts in _counts(columns, slices, on_corrupt):
        waiting.append(counts)
        if len(waiting) > 1 and sum(table.num_rows for table in waiting) > _MERGE_ROWS:
            waiting = [_merged(waiting)]
    return _merged(waiting) if waiting else None


def _over_processes(mine: pa.Table | None) -> pa.Table | None:
    """The counts of all processes, one more at a time: together they may be many times the distinct values."""
    total: pa.Table | None = None
    for sender in range(world_size()):
        counts = share_object(mine, sender)
        total = counts if total is None else total if counts is None else _merged([total, counts])
    return total


def _most_frequent(config: VocabularyConfig, column: str, counted: pa.Table | None) -> Vocabulary:
    if counted is None:
        raise DataError(f"column {column!r}: no row group of the training rows can be decoded; write the files again")
    kept = counted.filter(pc.greater_equal(counted.column("count"), config.min_count))
    ordered = kept.sort_by([("count", "descending"), ("value", "ascending")])
    return Vocabulary(ordered.slice(0, config.max_size).combine_chunks())


def _counts(columns: Sequence[str], slices: Sequence[RowGroupSlice], on_corrupt: OnCorrupt) -> Iterator[pa.Table]:
    for piece in slices:
        for column in columns:
            try:
                yield _counts_in(piece, column)
            except CorruptRowGroup:
                if on_corrupt == "fail":
                    raise


def _merged(tables: Sequence[pa.Table]) -> pa.Table:
    summed = pa.concat_tables(tables).group_by("value").aggregate([("count", "sum")])
    return pa.table({"value": summed.column("value"), "count": summed.column("count_sum")})


def _counts_in(piece: RowGroupSlice, column: str) -> pa.Table:
    values = _values(piece, column)
    counted = pc.value_counts(values.drop_null())
    return pa.table({"value": counted.field("values"), "count": counted.field("counts").cast(pa.int64())})


def _values(piece: RowGroupSlice, column: str) -> pa.Array:
    """The values of a column, or of its lists, one after another: strings and bytes as they are, all else as int64."""
    array = read_column(piece, column).combine_chunks()
    rows = None
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        rows, array = pc.list_parent_indices(array), pc.list_flatten(array)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if is_text(array.type):
        return array.cast(pa.large_string() if _is_string(array.type) else pa.large_binary())
    try:
        ids = encode_ids(array)
    except NoId as error:
        row = piece.row_number(error.row if rows is None else rows[error.row].as_py())
        raise DataError(
            f"{describe_row(piece.file, piece.row_group, row)}, column {column!r} {error}; write ids as integers or "
            "strings"
        ) from error
    return pa.array(ids, mask=array.is_null().to_numpy(zero_copy_only=False))


def _is_string(arrow_type: pa.DataType) -> bool:
    return bool(pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type))
