"""Lanes: shares of a stream's rows, each with an order of its own, of which a rank reads some.

The number of lanes is fixed for a run, the number of ranks is not: rank r of W reads the lanes l with l * W // L == r,
one after another, so the ranks' parts of a batch, laid one after another, are the batch that one rank alone reads.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rookery.data.ledger import RowNumbers, digests_by_part
from rookery.data.row_groups import RowGroupSlice
from rookery.errors import DataError
from rookery.parallel.config import lanes_refusal

Read = Callable[[Sequence[RowGroupSlice], "dict[str, Tensor] | None"], "tuple[dict[str, Tensor], Tensor | None]"]
"""The rows of some slices, laid in the columns that are given, if any, and which of them could be decoded: booleans
``[rows]``, None for all.
"""


@dataclass(frozen=True)
class LaneShare:
    """Row groups of one lane, or parts of them, and the number of the first row of each among all of the stream."""

    number: int
    slices: Sequence[RowGroupSlice]
    first_rows: Sequence[int]

    @property
    def num_rows(self) -> int:
        return sum(piece.num_rows for piece in self.slices)


def rows_per_batch(batch_size: int, num_lanes: int) -> tuple[int, ...]:
    """How many rows each lane gives to a batch: about as many as the others."""
    share, rest = divmod(batch_size, num_lanes)
    return tuple(share + (lane < rest) for lane in range(num_lanes))


def deal(slices: Sequence[RowGroupSlice], batch_size: int, num_lanes: int) -> list[LaneShare]:
    """Neighbouring rows for each lane, of a number in proportion to what it gives to a batch: all end together.

    A row group that a boundary falls into is decoded for both lanes: cutting there keeps them even, and small files can
    be shared at all.
    """
    total = sum(piece.num_rows for piece in slices)
    given = accumulate(rows_per_batch(batch_size, num_lanes), initial=0)
    bounds = [total * rows // batch_size for rows in given]
    shares: list[tuple[list[RowGroupSlice], list[int]]] = [([], []) for _ in range(num_lanes)]
    row, lane = 0, 0
    for piece in slices:
        start = 0
        while start < piece.num_rows:
            while row == bounds[lane + 1]:
                lane += 1
            stop = min(piece.num_rows, start + bounds[lane + 1] - row)
            shares[lane][0].append(replace(piece, start=piece.start + start, stop=piece.start + stop))
            shares[lane][1].append(row)
            row, start = row + stop - start, stop
    return [LaneShare(lane, *share) for lane, share in enumerate(shares)]


def in_file_order(shares: Sequence[LaneShare]) -> list[RowGroupSlice]:
    """The row groups of several lanes."""
    return [piece for share in shares for piece in share.slices]


def lanes_of_rank(num_lanes: int, rank: int, world_size: int) -> tuple[int, ...]:
    """The lanes that a rank reads: a run of neighbours, about as many for each rank."""
    return tuple(lane for lane in range(num_lanes) if lane * world_size // num_lanes == rank)


def require_rows_for_each(batch_size: int, num_lanes: int, world_size: int) -> None:
    """Raise ``DataError`` where a lane would have no row of a batch, or a rank no lane."""
    refusal = lanes_refusal(batch_size, num_lanes, world_size)
    if refusal is not None:
        raise DataError(refusal)


class BatchLayout:
    """How many rows of each batch come from which lane. ``num_rows`` are the rows of each lane in an epoch.

    A lane gives the same number of rows to each batch, then what is left, then none until the longest one has ended.
    """

    def __init__(self, num_rows: Sequence[int], batch_size: int) -> None:
        self.num_rows = tuple(num_rows)
        self.rows_per_batch = rows_per_batch(batch_size, len(num_rows))
        self.batches_per_epoch = max(
            -(-rows // size) for rows, size in zip(self.num_rows, self.rows_per_batch, strict=True)
        )

    def span(self, lane: int, batch: int) -> tuple[int, int]:
        """The rows of the lane's epoch, from and to, that are in a batch."""
        num_rows, size = self.num_rows[lane], self.rows_per_batch[lane]
        return min(batch * size, num_rows), min((batch + 1) * size, num_rows)

    def rows(self, lane: int, batch: int) -> int:
        """Rows that a lane gives to a batch."""
        start, stop = self.span(lane, batch)
        return stop - start


class Part(NamedTuple):
    """Rows out of one buffer, the digest of their numbers, and how many more were left out as not decodable."""

    columns: dict[str, Tensor]
    num_rows: int
    digest: int
    skipped: int


@dataclass(frozen=True)
class _Buffer:
    """Buffer ``index`` of a lane's epoch, rows ``start`` to ``stop`` of it: decoded rows in file order, which are the
    first in ``room``, their permutation, and the digest of each batch's part of them.
    """

    epoch: int
    index: int
    start: int
    stop: int
    columns: dict[str, Tensor]
    room: dict[str, Tensor]
    sound: Tensor | None
    permutation: Tensor | None
    digests: list[int]

    def has(self, epoch: int, row: int) -> bool:
        return epoch == self.epoch and self.start <= row < self.stop

    def part(self, number: int, start: int, stop: int) -> Part:
        """Part ``number`` of the buffer: rows ``start`` to ``stop`` of the epoch."""
        start, stop, digest = start - self.start, stop - self.start, self.digests[number]
        if self.sound is not None:
            rows = torch.arange(start, stop) if self.permutation is None else self.permutation[start:stop]
            left = rows[self.sound[rows]]
            return Part(_take(self.columns, left), len(left), digest, len(rows) - len(left))
        if self.permutation is None:
            columns = {name: column[start:stop] for name, column in self.columns.items()}
        else:
            columns = _take(self.columns, self.permutation[start:stop])
        return Part(columns, stop - start, digest, 0)


class Lane:
    """The rows of one lane, decoded a buffer ahead by a thread of ``loader``."""

    def __init__(self, order: EpochOrder, layout: BatchLayout, read: Read, loader: Executor, num_epochs: int | None):
        self.number = order.lane
        self._order = order
        self._layout = layout
        self._read = read
        self._loader = loader
        self._num_epochs = num_epochs
        self._whole: tuple[dict[str, Tensor], Tensor | None] | None = None
        self._loading: dict[tuple[int, int], Future[_Buffer]] = {}
        self._buffer: _Buffer | None = None
        self._rooms: deque[dict[str, Tensor]] = deque(maxlen=2)

    def begin(self, epoch: int, batch: int) -> None:
        """Start to decode what a batch needs first: those of all lanes come before what any reads ahead."""
        start, stop = self._layout.span(self.number, batch)
        if start < stop and not (self._buffer and self._buffer.has(epoch, start)):
            self._request((epoch, self._order.locate(epoch, start)))

    def parts(self, epoch: int, batch: int) -> list[Part]:
        """The lane's rows of a batch, from one buffer or several; none where its epoch has ended."""
        parts = []
        start, stop = self._layout.span(self.number, batch)
        while start < stop:
            parts.append(self._part(epoch, batch, start, stop))
            start += parts[-1].num_rows + parts[-1].skipped
        return parts

    def _part(self, epoch: int, batch: int, start: int, stop: int) -> Part:
        """What the buffer with row ``start`` of the epoch has of the rows up to ``stop``, all of one batch."""
        if self._buffer is None or not self._buffer.has(epoch, start):
            self._leave()
            self._buffer = self._move_to(epoch, self._order.locate(epoch, start))
        number = batch - self._buffer.start // self._layout.rows_per_batch[self.number]
        return self._buffer.part(number, start, min(stop, self._buffer.stop))

    def _leave(self) -> None:
        """Let go of the buffer in use; the next one is decoded into its memory, of which nobody has a view."""
        left, self._buffer = self._buffer, None
        if left is not None and left.permutation is not None and self._whole is None:
            self._loading.pop((left.epoch, left.index), None)
            self._rooms.append(left.room)

    def _move_to(self, epoch: int, index: int) -> _Buffer:
        """A decoded buffer; starts decoding the one after it and lets go of all others."""
        wanted = (epoch, index)
        following = (epoch, index + 1) if index + 1 < self._order.num_buffers(epoch) else (epoch + 1, 0)
        self._loading = {key: loading for key, loading in self._loading.items() if key in (wanted, following)}
        self._request(wanted)
        self._request(following)
        return self._loading[wanted].result()

    def _request(self, key: tuple[int, int]) -> None:
        if key not in self._loading and (self._num_epochs is None or key[0] < self._num_epochs):
            self._loading[key] = self._loader.submit(self._load, *key)

    def _load(self, epoch: int, index: int) -> _Buffer:
        order = self._order
        start, stop = order.span(epoch, index)
        permutation = order.permutation(epoch, index)
        digests = order.digests(epoch, index, permutation, self._layout.rows_per_batch[self.number])
        room = self._room(stop - start)
        into = None if room is None else {name: column[: stop - start] for name, column in room.items()}
        columns, sound = self._whole or self._read(order.slices(epoch, index), into)
        if order.num_buffers(epoch) == 1:
            self._whole = columns, sound
        return _Buffer(epoch, index, start, stop, columns, room or columns, sound, permutation, digests)

    def _room(self, num_rows: int) -> dict[str, Tensor] | None:
        """Memory of a buffer that was left, if it has room for so many rows. Blocks of this size, freed and asked for
        again among smaller ones, would leave holes: the process would grow by new pages that the system clears.
        """
        room = self._rooms.popleft() if self._rooms else None
        return room if room and len(next(iter(room.values()))) >= num_rows else None


class EpochOrder:
    """Which rows of a lane each buffer of an epoch holds, and their permutation: functions of (seed, epoch, lane)."""

    def __init__(self, share: LaneShare, seed: int, shuffle: bool, buffer_rows: int) -> None:
        self.lane = share.number
        self._share = share
        self._seed = seed
        self._shuffle = shuffle
        self._buffer_rows = buffer_rows
        # Two epochs: the one being read and, at its end, the one decoded ahead.
        self._plan = lru_cache(maxsize=2)(self._make_plan)

    def num_buffers(self, epoch: int) -> int:
        return len(self._plan(epoch)[0])

    def slices(self, epoch: int, index: int) -> list[RowGroupSlice]:
        """In file order: the disk is read forwards, and a sole buffer is the same in every epoch."""
        return [self._share.slices[number] for number in self._numbers(epoch, index)]

    def row_numbers(self, epoch: int, index: int) -> RowNumbers:
        """The numbers among all rows of the stream of the rows of a buffer, in file order."""
        pieces = self._numbers(epoch, index)
        return RowNumbers(
            [self._share.first_rows[piece] for piece in pieces],
            [self._share.slices[piece].num_rows for piece in pieces],
        )

    def digests(self, epoch: int, index: int, permutation: Tensor | None, rows_per_batch: int) -> list[int]:
        """The digest of what each batch has of a buffer, whose rows come in the order of ``permutation``."""
        start, stop = self.span(epoch, index)
        starts = np.arange(start // rows_per_batch * rows_per_batch, stop, rows_per_batch) - start
        order = None if permutation is None else permutation.numpy()
        return digests_by_part(self.row_numbers(epoch, index), order, np.maximum(starts, 0))

    def locate(self, epoch: int, row: int) -> int:
        """The buffer that holds row ``row`` of the epoch."""
        return bisect_right(self._plan(epoch)[1], row)

    def span(self, epoch: int, index: int) -> tuple[int, int]:
        """The rows of the epoch, from and to, that a buffer holds."""
        ends = self._plan(epoch)[1]
        return ends[index - 1] if index else 0, ends[index]

    def permutation(self, epoch: int, index: int) -> Tensor | None:
        """Row numbers ``[rows]`` (int32 where they fit) within the buffer, None for file order."""
        if not self._shuffle:
            return None
        start, stop = self.span(epoch, index)
        # Half the memory, and the same numbers in two thirds of the time: drawing them is bound by the cache.
        dtype = torch.int32 if stop - start < 2**31 else torch.int64
        generator = _generator(self._seed, epoch, 1 + index, self.lane)
        return torch.randperm(stop - start, generator=generator, dtype=dtype)

    def _numbers(self, epoch: int, index: int) -> list[int]:
        return sorted(self._plan(epoch)[0][index])

    def _make_plan(self, epoch: int) -> tuple[list[list[int]], list[int]]:
        """Slice numbers by buffer, and the row of the epoch at which each buffer ends."""
        slices = self._share.slices
        numbers = torch.randperm(len(slices), generator=_generator(self._seed, epoch, 0, self.lane)).tolist()
        buffers: list[list[int]] = []
        sizes: list[int] = []
        for number in numbers if self._shuffle else range(len(slices)):
            num_rows = slices[number].num_rows
            if not buffers or sizes[-1] + num_rows > self._buffer_rows:
                buffers.append([])
                sizes.append(0)
            buffers[-1].append(number)
            sizes[-1] += num_rows
        return buffers, list(accumulate(sizes))


def _generator(*key: int) -> torch.Generator:
    """A generator whose seed depends on every number of ``key``; zeros behind the first two count for nothing.

    They are cut off because numbers of more than 128 bits together are mixed in another way: lane 0 keeps the order
    that a stream had before there were lanes, whatever its seed.
    """
    numbers = list(key)
    while len(numbers) > 2 and not numbers[-1]:
        numbers.pop()
    return torch.Generator().manual_seed(mixed_seed(*numbers))


def mixed_seed(*key: int) -> int:
    """64 bits that depend on every number of ``key``, and look unrelated where keys are alike."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def _take(columns: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    return {name: _take_column(column, rows) for name, column in columns.items()}


def _take_column(column: Tensor, rows: Tensor) -> Tensor:
    # One column at a time: 4 to 8 times as fast as indexing or a gather of interleaved columns.
    if column.dim() == 1:
        return column.index_select(0, rows)
    # index_select would share the copying of long rows among torch's threads, which the model needs: on two busy cores
    # it then waits for them and takes 10 times as long.
    return torch.from_numpy(column.numpy().take(rows.numpy(), axis=0))
