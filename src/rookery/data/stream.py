"""Parquet files, or files of records, as an endless, shuffled, resumable stream of batches of tensors.

Order: row groups are dealt into lanes (``lanes.py``). In each epoch the row groups of a lane are permuted and gathered
into buffers, in all lanes together of about ``buffer_rows`` rows, fewer where these would take more than
``buffer_bytes``; within a buffer every row is permuted. Both permutations are functions of (seed, epoch, lane) alone,
so a position is three numbers and a seek reads one buffer a lane.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from typing_extensions import Self

from rookery.data.columns import ColumnRequest, ColumnType
from rookery.data.lanes import (
    BatchLayout,
    EpochOrder,
    Lane,
    deal,
    in_file_order,
    lanes_of_rank,
    require_rows_for_each,
)
from rookery.data.ledger import Ledger, LedgerBook
from rookery.data.row_filter import RowFilter, filter_rows
from rookery.data.row_groups import (
    CorruptRowGroup,
    RowGroupSlice,
    SourceFile,
    bytes_per_row,
    list_row_groups,
    read_rows,
    read_sound_rows,
    select_rows,
)
from rookery.errors import DataError

logger = logging.getLogger(__name__)

Columns = dict[str, Tensor]
OnCorrupt = Literal["fail", "skip"]


@dataclass(frozen=True)
class StreamPosition:
    """``num_batches`` batches of epoch ``epoch`` have been handed out, in the order that the other fields fix.

    The same on all ranks, whatever their number; ``num_rows`` are those of all lanes.
    """

    epoch: int
    num_batches: int
    batch_size: int
    num_rows: int
    seed: int
    num_lanes: int = 1

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    def require_order_of(self, here: StreamPosition) -> None:
        """Raise ``DataError`` unless a stream that is at ``here`` has the order that this position was taken in."""
        for name in ("batch_size", "num_rows", "seed", "num_lanes"):
            then, now = getattr(self, name), getattr(here, name)
            if then != now:
                raise DataError(
                    f"the position to resume at was taken with {name}={then}, the stream now has {name}={now}; "
                    f"restore {name}={then}, or start a new run from the old one's weights"
                )


class BatchStream(Protocol):
    """A stream of batches whose place can be stored and found again: of each batch the part of this rank."""

    @property
    def batches_per_epoch(self) -> int:
        """The same on all ranks."""
        ...

    @property
    def lanes(self) -> tuple[int, ...]:
        """The lanes that this rank reads, in the order of their rows in a batch."""
        ...

    def __iter__(self) -> BatchStream: ...

    def __next__(self) -> Columns: ...

    def position(self) -> StreamPosition:
        """The place behind the batch that was handed out last."""
        ...

    def seek(self, position: StreamPosition) -> None:
        """Go on behind ``position``, with an empty ledger. ``DataError`` when it is of a stream of another order."""
        ...

    def lane_rows(self, position: StreamPosition) -> tuple[int, ...]:
        """Rows of each of this rank's lanes in the batch behind which ``position`` stands, 0 before the first."""
        ...

    def total_rows(self, position: StreamPosition) -> int:
        """Rows over all lanes of the batch behind which ``position`` stands, the same on all ranks."""
        ...

    def ledger(self) -> Ledger:
        """What this rank handed out in the epoch of ``position()``."""
        ...

    def resume_ledger(self, ledger: Ledger) -> None:
        """Count on from ``ledger``, which was stored with the position that was sought: on one rank alone the merged
        ledger of all, the others count from nothing.
        """
        ...

    def expected(self) -> Ledger:
        """What the ledgers of all ranks merged must account for at the end of an epoch."""
        ...

    def finished(self) -> list[Ledger]:
        """What this rank handed out in each epoch that it has finished."""
        ...

    def close(self) -> None:
        """Let go of connections and of threads that wait for others."""
        ...


class LaneRows(NamedTuple):
    """Rows of some lanes of one batch: columns lane after lane, the number of rows of each lane, the digest of their
    numbers, and how many more were left out as not decodable.
    """

    columns: Columns
    rows: tuple[int, ...]
    digest: int
    skipped: int


class LaneStream(ABC):
    """A stream of lanes, wherever their rows come from: its place, its ledger, the sizes of its batches."""

    def __init__(
        self, layout: BatchLayout, lanes: tuple[int, ...], batch_size: int, seed: int, num_epochs: int | None
    ) -> None:
        self.layout = layout
        self.lanes = lanes
        self.batch_size = batch_size
        self.num_rows = sum(layout.num_rows)
        self.num_lanes = len(layout.num_rows)
        self.num_epochs = num_epochs
        self.seed = seed
        self._epoch = 0
        self._num_batches = 0
        self._book = LedgerBook(self.num_rows)
        self._short: dict[tuple[int, int], tuple[int, ...]] = {}

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch, the last partial ones included: the same on all ranks."""
        return self.layout.batches_per_epoch

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Columns:
        epoch, batch = self._epoch, self._num_batches
        if batch == self.batches_per_epoch:
            epoch, batch = epoch + 1, 0
        if self.num_epochs is not None and epoch >= self.num_epochs:
            raise StopIteration
        read = self._read(epoch, batch)
        self._epoch, self._num_batches = epoch, batch + 1
        self._enter(read)
        return read.columns

    @abstractmethod
    def _read(self, epoch: int, batch: int) -> LaneRows:
        """The rows of ``lanes`` in batch ``batch`` of an epoch, from 0."""

    def position(self) -> StreamPosition:
        """The place behind the batch that was handed out last."""
        return StreamPosition(self._epoch, self._num_batches, self.batch_size, self.num_rows, self.seed, self.num_lanes)

    def seek(self, position: StreamPosition) -> None:
        """Go on behind ``position``, with an empty ledger; the next batch reads the one buffer a lane that it needs.

        Raises ``DataError`` when the position was taken with another batch size, seed or number of rows or lanes.
        """
        position.require_order_of(self.position())
        self._epoch, self._num_batches = position.epoch, position.num_batches
        self._book.go_to(position.epoch)
        self._short.clear()

    def lane_rows(self, position: StreamPosition) -> tuple[int, ...]:
        """Rows of each of this rank's lanes in the batch behind which ``position`` stands, 0 before the first.

        Rows that were left out as not decodable do not count, in the batches of this epoch and the one before.
        """
        if position.num_batches == 0:
            return (0,) * len(self.lanes)
        short = self._short.get((position.epoch, position.num_batches))
        return short or tuple(self.layout.rows(lane, position.num_batches - 1) for lane in self.lanes)

    def total_rows(self, position: StreamPosition) -> int:
        """Rows over all lanes of the batch behind which ``position`` stands, the same on all ranks; 0 before the first.

        Rows that were left out as not decodable count: other ranks do not know of them.
        """
        if position.num_batches == 0:
            return 0
        return sum(self.layout.rows(lane, position.num_batches - 1) for lane in range(self.num_lanes))

    def ledger(self) -> Ledger:
        """What this rank handed out in the epoch of ``position()``."""
        return self._book.current

    def resume_ledger(self, ledger: Ledger) -> None:
        """Count on from ``ledger``, which was stored with the position that was sought.

        One rank does so with the merged ledger of all; the others count from nothing.
        """
        self._book.resume(ledger)

    def expected(self) -> Ledger:
        """What the ledgers of all ranks merged must account for at the end of an epoch. The first call takes some
        nanoseconds a row.
        """
        return self._book.expected()

    def finished(self) -> list[Ledger]:
        """What this rank handed out in each epoch that it has finished."""
        return self._book.finished

    def _enter(self, read: LaneRows) -> None:
        """Count a batch behind which the stream now stands."""
        self._book.count(self._epoch, sum(read.rows), read.digest, read.skipped)
        if read.skipped:
            self._short = {key: short for key, short in self._short.items() if key[0] >= self._epoch - 1}
            self._short[self._epoch, self._num_batches] = read.rows
        if self._num_batches == self.batches_per_epoch:
            self._book.finish()


class ParquetStream(LaneStream):
    """Batches ``{column: tensor}`` of the rows of some files; an epoch hands out every row once.

    Columns of integers or floats become ``[batch]``, fixed-size lists ``[batch, width]``; a ``ColumnRequest`` asks for
    more. The last batches of an epoch may be smaller. ``where`` selects rows by the values of a column, ``offset`` and
    ``limit`` by their place among these in file order. ``num_epochs`` None: without end. Unshuffled batches are views
    of a shared buffer: read them only.

    ``batch_size`` is that of all ranks together. A batch has rows of each of ``num_lanes`` lanes, one after another;
    rank ``rank`` of ``world_size`` decodes and hands out those of its own lanes, empty tensors when they have ended
    before the epoch has. The order depends on the number of lanes, not on that of the ranks.

    ``on_corrupt`` "skip": the rows of a row group that cannot be decoded are left out of their batches, counted in the
    ledger and warned of once; "fail": ``DataError``.

    Memory: two buffers a lane at most, the one in use and the one being decoded ahead. A buffer holds at least one row
    group, and otherwise no more than its lane's share of ``buffer_rows`` rows and ``buffer_bytes``. A lane that fits
    one buffer is decoded once and stays.
    """

    def __init__(  # noqa: PLR0913 - each is a choice of its own, named at the call
        self,
        files: Sequence[SourceFile],
        columns: Sequence[str | ColumnRequest],
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        buffer_rows: int = 4_194_304,
        buffer_bytes: int | None = 536_870_912,
        num_lanes: int = 1,
        rank: int = 0,
        world_size: int = 1,
        limit: int | None = None,
        offset: int = 0,
        where: RowFilter | None = None,
        num_epochs: int | None = None,
        on_corrupt: OnCorrupt = "fail",
    ) -> None:
        require_rows_for_each(batch_size, num_lanes, world_size)
        slices, self._types = list_row_groups(files, columns)
        selected = select_rows(slices if where is None else filter_rows(slices, where), offset, limit)
        num_rows = sum(piece.num_rows for piece in selected)
        if num_rows < num_lanes:
            place = f"{_place(files)} with offset={offset}, limit={limit}" + (f", {where}" if where else "")
            raise DataError(_too_little_to_read(place, num_rows, num_lanes))
        shares = deal(selected, batch_size, num_lanes)
        layout = BatchLayout([share.num_rows for share in shares], batch_size)
        lanes = lanes_of_rank(num_lanes, rank, world_size)
        super().__init__(layout, lanes, batch_size, seed, num_epochs)
        mine = [shares[lane] for lane in lanes]
        self._slices = in_file_order(mine)
        if buffer_bytes is not None:
            buffer_rows = min(buffer_rows, buffer_bytes // bytes_per_row(self._types))
        self.shuffle = shuffle
        self.buffer_rows = buffer_rows
        self.on_corrupt = on_corrupt
        self.orders = [EpochOrder(share, seed, shuffle, buffer_rows // num_lanes) for share in mine]
        reader = _Reader(self._types, on_corrupt)
        loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="parquet-stream")
        self._lanes = {order.lane: Lane(order, layout, reader, loader, num_epochs) for order in self.orders}

    @property
    def slices(self) -> Sequence[RowGroupSlice]:
        """What this rank reads, in file order."""
        return self._slices

    @property
    def types(self) -> Mapping[str, ColumnType]:
        """What each column became."""
        return self._types

    def read(self, lanes: Sequence[int], epoch: int, batch: int) -> LaneRows:
        """The rows of some of this rank's lanes in a batch, wherever the stream stands.

        Not from two threads at once for one lane.
        """
        chosen = [self._lanes[lane] for lane in lanes]
        if len(chosen) > 1:
            for lane in chosen:
                lane.begin(epoch, batch)
        parts = [lane.parts(epoch, batch) for lane in chosen]
        digest = skipped = 0
        rows = [0] * len(parts)
        for place, of_lane in enumerate(parts):
            for part in of_lane:
                rows[place] += part.num_rows
                digest += part.digest
                skipped += part.skipped
        columns = self._joined([part.columns for of_lane in parts for part in of_lane])
        return LaneRows(columns, tuple(rows), digest, skipped)

    def close(self) -> None:
        """Nothing is held but memory."""

    def _read(self, epoch: int, batch: int) -> LaneRows:
        return self.read(self.lanes, epoch, batch)

    def _joined(self, parts: Sequence[Columns]) -> Columns:
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return {name: column.allocate(0) for name, column in self._types.items()}
        return {name: torch.cat([part[name] for part in parts]) for name in self._types}


class _Reader:
    """Decodes row groups; what cannot be decoded is an error, or is warned of once."""

    def __init__(self, types: dict[str, ColumnType], on_corrupt: OnCorrupt) -> None:
        self._types = types
        self._on_corrupt = on_corrupt
        self._warned: set[str] = set()

    def __call__(self, slices: Sequence[RowGroupSlice], into: Columns | None) -> tuple[Columns, Tensor | None]:
        if self._on_corrupt == "fail":
            return read_rows(slices, self._types, into), None
        return read_sound_rows(slices, self._types, self._warn, into)

    def _warn(self, damage: CorruptRowGroup) -> None:
        message = str(damage)
        if message not in self._warned:
            self._warned.add(message)
            logger.warning("%s. Its rows are left out of all batches (on_corrupt is skip)", message)


def _too_little_to_read(place: str, num_rows: int, num_lanes: int) -> str:
    if num_rows == 0:
        return f"no rows to read in {place}; correct the path or the selection"
    return f"{num_rows} rows, fewer than the num_lanes={num_lanes} that share them, in {place}; use fewer lanes"


def _place(files: Sequence[SourceFile]) -> str:
    return f"{len(files)} files, first {files[0]}" if files else "no files"
