"""What a run's first start reads of its rows, dealt to the processes: each reads a part, and all learn of all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate

from rookery.data.record_files import RecordFile
from rookery.data.record_index import RecordIndex
from rookery.data.row_filter import RowFilter, filter_rows
from rookery.data.row_groups import RowGroupSlice, list_row_groups, select_rows
from rookery.data.stream import ParquetStream
from rookery.errors import DataError, UserError
from rookery.parallel.world import gather_objects, on_all, rank, spread, world_size
from rookery.ranker.features_config import PartitionConfig
from rookery.ranker.files import find_files, row_filter


def own_rows(partition: PartitionConfig) -> list[RowGroupSlice]:
    """This process's part of the rows of a partition: neighbouring row groups, of about equally many rows, in order.

    The parts of all processes, one after another by rank, are all rows in file order. Of a filter, each reads the
    column of as many row groups to count, and of those that it is then given and has not counted.
    """
    pieces = on_all(lambda: list_row_groups(find_files(partition), [])[0])
    where = row_filter(partition)
    if where is None:
        selected = select_rows(pieces, partition.offset, partition.limit)
        return [selected[place] for place in own_part([piece.num_rows for piece in selected])]
    left = _Left(pieces, where)
    counted = own_part([piece.num_rows for piece in pieces])
    counts = [count for part in gather_objects(on_all(lambda: left.counts(counted))) for count in part]
    starts = list(accumulate(counts, initial=0))
    end = starts[-1] if partition.limit is None else partition.offset + partition.limit
    mine = own_part(
        [_overlap(start, count, partition.offset, end) for start, count in zip(starts, counts, strict=False)]
    )
    kept = on_all(lambda: left.rows(mine))
    before = starts[mine.start]
    return select_rows(kept, max(0, partition.offset - before), max(0, end - max(before, partition.offset)))


def own_part(sizes: Sequence[int]) -> range:
    """The places that are this process's: neighbouring ones, of about an equal part of the sum of ``sizes``."""
    total = sum(sizes)
    owners = [
        min((2 * start + size) * world_size() // (2 * total), world_size() - 1) if total else 0
        for start, size in zip(accumulate(sizes, initial=0), sizes, strict=False)
    ]
    first = sum(owner < rank() for owner in owners)
    return range(first, first + owners.count(rank()))


def seek_own_part(stream: ParquetStream, num_batches: int) -> int:
    """Go to this process's part of the first ``num_batches`` of a stream that all have whole; how many these are.

    Parts are of neighbouring batches, the first of them the chief's.
    """
    first, last = (num_batches * each // world_size() for each in (rank(), rank() + 1))
    stream.seek(replace(stream.position(), num_batches=first))
    return last - first


def count_records(partitions: Iterable[PartitionConfig]) -> None:
    """Pass over the files of records that are new: each process over some of them, of which it tells the others.

    What cannot be read is passed over: whoever lists the row groups finds it, with all else that is wrong.
    """
    if world_size() == 1:  # listing the row groups does it, in several threads
        return
    files = list(dict.fromkeys(file for partition in partitions for file in _record_files(partition)))
    for file, index in zip(files, spread(files, _index), strict=True):
        if index is not None:
            file.keep_index(index)


def _record_files(partition: PartitionConfig) -> list[RecordFile]:
    try:
        return [file for file in find_files(partition) if isinstance(file, RecordFile)]
    except UserError:
        return []


def _index(file: RecordFile) -> RecordIndex | None:
    try:
        return file.index()
    except DataError:
        return None


class _Left:
    """What a filter leaves of row groups, read once for each."""

    def __init__(self, pieces: Sequence[RowGroupSlice], where: RowFilter) -> None:
        self._pieces = pieces
        self._where = where
        self._found: dict[int, RowGroupSlice | None] = {}

    def counts(self, places: range) -> list[int]:
        """Rows that are left of each of these."""
        self._read(places)
        return [0 if (piece := self._found[place]) is None else piece.num_rows for place in places]

    def rows(self, places: range) -> list[RowGroupSlice]:
        """What is left of these."""
        self._read(places)
        return [piece for place in places if (piece := self._found[place]) is not None]

    def _read(self, places: range) -> None:
        new = [place for place in places if place not in self._found]
        left = filter_rows([self._pieces[place] for place in new], self._where)
        by_row_group = {(piece.file, piece.row_group): piece for piece in left}
        for place in new:
            self._found[place] = by_row_group.get((self._pieces[place].file, self._pieces[place].row_group))


def _overlap(start: int, count: int, first: int, end: int) -> int:
    return max(0, min(start + count, end) - max(start, first))
