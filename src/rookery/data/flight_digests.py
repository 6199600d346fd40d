"""The digests that batches must have, without reading them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache

from rookery.data.lanes import BatchLayout, EpochOrder


class BatchDigests:
    """Digests of the numbers of the rows of batches, by lane, from the order of the stream alone.

    A buffer's are computed at once, its permutation with them, and kept for the buffer in use and the next.
    """

    def __init__(self, orders: Sequence[EpochOrder], layout: BatchLayout) -> None:
        self._orders = {order.lane: order for order in orders}
        self._layout = layout
        self._of_buffer = lru_cache(maxsize=2 * len(orders))(self._compute)
        self._computing = threading.Lock()

    def of(self, lanes: Sequence[int], epoch: int, batch: int) -> int:
        """The sum over some lanes, not reduced modulo 2**64. Each buffer's first batch waits for all of its digests."""
        with self._computing:
            return sum(self._of_lane(lane, epoch, batch) for lane in lanes)

    def _of_lane(self, lane: int, epoch: int, batch: int) -> int:
        order, total = self._orders[lane], 0
        start, stop = self._layout.span(lane, batch)
        while start < stop:
            index = order.locate(epoch, start)
            first, end = order.span(epoch, index)
            total += self._of_buffer(lane, epoch, index)[batch - first // self._layout.rows_per_batch[lane]]
            start = end
        return total

    def _compute(self, lane: int, epoch: int, index: int) -> list[int]:
        order = self._orders[lane]
        return order.digests(epoch, index, order.permutation(epoch, index), self._layout.rows_per_batch[lane])
