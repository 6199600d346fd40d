"""The digests that batches must have, without reading them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from rookery.data.lanes import BatchLayout, EpochOrder


class BatchDigests:
    """Digests of the numbers of the rows of batches, by lane, from the order of the stream alone.

    A buffer's are computed at once, its permutation with them, a buffer ahead of the batches that are asked for.
    """

    def __init__(self, orders: Sequence[EpochOrder], layout: BatchLayout) -> None:
        self._orders = {order.lane: order for order in orders}
        self._layout = layout
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="digests")
        self._of_buffers: dict[tuple[int, int, int], Future[list[int]]] = {}
        self._lock = threading.Lock()

    def of(self, lanes: Sequence[int], epoch: int, batch: int) -> int:
        """The sum over some lanes, not reduced modulo 2**64."""
        return sum(self._of_lane(lane, epoch, batch) for lane in lanes)

    def close(self) -> None:
        """Compute nothing more."""
        self._computing.shutdown(wait=False, cancel_futures=True)

    def _of_lane(self, lane: int, epoch: int, batch: int) -> int:
        order, total = self._orders[lane], 0
        start, stop = self._layout.span(lane, batch)
        while start < stop:
            index = order.locate(epoch, start)
            first, end = order.span(epoch, index)
            total += self._of_buffer(lane, epoch, index)[batch - first // self._layout.rows_per_batch[lane]]
            start = end
        return total

    def _of_buffer(self, lane: int, epoch: int, index: int) -> list[int]:
        has_next = index + 1 < self._orders[lane].num_buffers(epoch)
        following = (lane, epoch, index + 1) if has_next else (lane, epoch + 1, 0)
        with self._lock:
            asked = self._request(lane, epoch, index)
            self._request(*following)
            # Beside these two the one before: tickets overtake each other.
            for key in [key for key in self._of_buffers if key[0] == lane][:-3]:
                del self._of_buffers[key]
        return asked.result()

    def _request(self, lane: int, epoch: int, index: int) -> Future[list[int]]:
        """What was asked for last stands last."""
        key = lane, epoch, index
        known = self._of_buffers.pop(key, None)
        self._of_buffers[key] = known or self._computing.submit(self._compute, lane, epoch, index)
        return self._of_buffers[key]

    def _compute(self, lane: int, epoch: int, index: int) -> list[int]:
        order = self._orders[lane]
        return order.digests(epoch, index, order.permutation(epoch, index), self._layout.rows_per_batch[lane])
