"""The edges of a graph as a stream of queries: edges that share one lie next to each other, each direction on its own.

With a softmax over every entity the cost of a step is in the distinct queries (relation, anchor) that it scores.
FB15k-237 has 544,230 directed edges but 149,689 queries; ordered this way, an epoch scores each query about once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rookery.data.stream import Columns, StreamPosition
from rookery.errors import DataError
from rookery.twhin.planner import CODE_OF_SIDE, PREDICTS
from rookery.types import Side


class QueryStream:
    """Endless batches of directed edges (a ``BatchStream``); an epoch visits each edge once in each direction.

    Queries are permuted by (seed, epoch), the edges of a query stay together. All edges are in memory: 48 bytes each.
    """

    def __init__(self, columns: Mapping[str, Tensor], sides: Sequence[Side], batch_size: int, *, seed: int) -> None:
        self._columns = columns
        self._batch_size = batch_size
        self._seed = seed
        parts = [_by_query(columns, side) for side in sides]
        self._edge = torch.cat([edge for edge, _ in parts])  # [rows], query by query
        self._length = torch.cat([length for _, length in parts])  # [queries]
        self._first = self._length.cumsum(0) - self._length
        codes = torch.tensor([CODE_OF_SIDE[side] for side in sides])
        self._side = torch.repeat_interleave(codes, torch.tensor([len(edge) for edge, _ in parts]))  # [rows]
        self._order_of_epoch: tuple[int, Tensor] | None = None
        self._epoch = 0
        self._num_batches = 0

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
        rows = self._order(self._epoch)[start : start + self._batch_size]
        self._num_batches += 1
        edges = self._edge[rows]
        return {**{name: column[edges] for name, column in self._columns.items()}, PREDICTS: self._side[rows]}

    def position(self) -> StreamPosition:
        """The place behind the batch that was handed out last."""
        return StreamPosition(self._epoch, self._num_batches, self._batch_size, self.num_rows, self._seed)

    def seek(self, position: StreamPosition) -> None:
        """Go on behind ``position``. ``DataError`` when it was taken in a stream of another order."""
        here = self.position()
        for name in ("batch_size", "num_rows", "seed"):
            if getattr(position, name) != getattr(here, name):
                raise DataError(
                    f"the position to resume at was taken with {name}={getattr(position, name)}, the stream now has "
                    f"{getattr(here, name)}; restore it, or start a new run from the old one's weights"
                )
        self._epoch, self._num_batches = position.epoch, position.num_batches

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
