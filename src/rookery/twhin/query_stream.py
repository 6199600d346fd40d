"""The edges of a graph as a stream of queries: edges that share one lie next to each other, each direction on its own.

With a softmax over every entity the cost of a step is in the distinct queries (relation, anchor) that it scores.
FB15k-237 has 544,230 directed edges but 149,689 queries; ordered this way, an epoch scores each query about once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rookery.data.lanes import lanes_of_rank, require_rows_for_each
from rookery.data.ledger import Ledger, LedgerBook, mix
from rookery.data.stream import Columns, StreamPosition
from rookery.twhin.planner import CODE_OF_SIDE, PREDICTS
from rookery.types import Side


class QueryStream:
    """Endless batches of directed edges (a ``BatchStream``); an epoch visits each edge once in each direction.

    Queries are permuted by (seed, epoch), the edges of a query stay together. All edges are in the memory of every
    rank: 48 bytes each. ``batch_size`` is that of all ranks together: a batch is cut into ``num_lanes`` runs of rows,
    of which rank ``rank`` of ``world_size`` hands out its own.
    """

    def __init__(
        self,
        columns: Mapping[str, Tensor],
        sides: Sequence[Side],
        batch_size: int,
        *,
        seed: int,
        num_lanes: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        require_rows_for_each(batch_size, num_lanes, world_size)
        self._columns = columns
        self._batch_size = batch_size
        self._seed = seed
        self._num_lanes = num_lanes
        self._lanes = lanes_of_rank(num_lanes, rank, world_size)
        parts = [_by_query(columns, side) for side in sides]
        self._edge = torch.cat([edge for edge, _ in parts])  # [rows], query by query
        self._length = torch.cat([length for _, length in parts])  # [queries]
        self._first = self._length.cumsum(0) - self._length
        codes = torch.tensor([CODE_OF_SIDE[side] for side in sides])
        self._side = torch.repeat_interleave(codes, torch.tensor([len(edge) for edge, _ in parts]))  # [rows]
        self._order_of_epoch: tuple[int, Tensor] | None = None
        self._epoch = 0
        self._num_batches = 0
        self._book = LedgerBook(self.num_rows)

    @property
    def lanes(self) -> tuple[int, ...]:
        """The lanes that this rank reads, in the order of their rows in a batch."""
        return self._lanes

    @property
    def num_rows(self) -> int:
        """Directed edges of an epoch."""
        return len(self._edge)

    @property
    def batches_per_epoch(self) -> int:
        return -(-self.num_rows // self._batch_size)

    def __iter__(self) -> QueryStream:
        return self

    def __next__(self) -> Columns:
        if self._num_batches == self.batches_per_epoch:
            self._epoch, self._num_batches = self._epoch + 1, 0
        start = self._num_batches * self._batch_size
        self._num_batches += 1
        position = self.position()
        start += self._cut(position, self._lanes[0])
        rows = self._order(self._epoch)[start : start + sum(self.lane_rows(position))]
        self._book.count(self._epoch, len(rows), int(mix(rows.numpy()).sum()), 0)
        if self._num_batches == self.batches_per_epoch:
            self._book.finish()
        edges = self._edge[rows]
        return {**{name: column[edges] for name, column in self._columns.items()}, PREDICTS: self._side[rows]}

    def position(self) -> StreamPosition:
        """The place behind the batch that was handed out last."""
        return StreamPosition(
            self._epoch, self._num_batches, self._batch_size, self.num_rows, self._seed, self._num_lanes
        )

    def seek(self, position: StreamPosition) -> None:
        """Go on behind ``position``, with an empty ledger. ``DataError`` when it is of a stream of another order."""
        position.require_order_of(self.position())
        self._epoch, self._num_batches = position.epoch, position.num_batches
        self._book.go_to(position.epoch)

    def lane_rows(self, position: StreamPosition) -> tuple[int, ...]:
        """Rows of each of this rank's lanes in the batch behind which ``position`` stands, 0 before the first."""
        return tuple(self._cut(position, lane + 1) - self._cut(position, lane) for lane in self._lanes)

    def total_rows(self, position: StreamPosition) -> int:
        """Rows over all lanes of the batch behind which ``position`` stands, 0 before the first."""
        stop = min(position.num_batches * self._batch_size, self.num_rows)
        return stop - max(position.num_batches - 1, 0) * self._batch_size

    def ledger(self) -> Ledger:
        """What this rank handed out in the epoch of ``position()``."""
        return self._book.current

    def resume_ledger(self, ledger: Ledger) -> None:
        """Count on from ``ledger``, which was stored with the position that was sought."""
        self._book.resume(ledger)

    def expected(self) -> Ledger:
        """What the ledgers of all ranks merged must account for at the end of an epoch."""
        return self._book.expected()

    def finished(self) -> list[Ledger]:
        """What this rank handed out in each epoch that it has finished."""
        return self._book.finished

    def close(self) -> None:
        """Nothing is held but memory."""

    def _cut(self, position: StreamPosition, lane: int) -> int:
        """Where in its batch the rows of a lane begin."""
        return lane * self.total_rows(position) // self._num_lanes

    def _order(self, epoch: int) -> Tensor:
        """Rows of an epoch in order ``[rows]``."""
        if self._order_of_epoch is None or self._order_of_epoch[0] != epoch:
            generator = torch.Generator().manual_seed(self._seed + epoch)
            queries = torch.randperm(len(self._length), generator=generator)
            lengths = self._length[queries]
            shift = self._first[queries] - (lengths.cumsum(0) - lengths)
            order = torch.arange(self.num_rows) + torch.repeat_interleave(shift, lengths)
            self._order_of_epoch = epoch, order
        return self._order_of_epoch[1]


def _by_query(columns: Mapping[str, Tensor], predicts: Side) -> tuple[Tensor, Tensor]:
    """Edges sorted by the query that predicts ``predicts`` ``[E]``, and the number of edges of each query."""
    anchors = columns[predicts.other.value]
    keys, order = torch.sort(columns["rel"] * (int(anchors.max()) + 1) + anchors, stable=True)
    return order, torch.unique_consecutive(keys, return_counts=True)[1]
