from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Sequence

import pytest

from rookery.serve.batching import Batcher
from rookery.serve.config import Batching
from rookery.serve.metrics import ServiceMetrics


class Squares:
    """Squares numbers in batches and remembers them; a batch takes ``batch_s``; negative numbers are errors."""

    def __init__(self, batch_s: float = 0.0) -> None:
        self.batch_s = batch_s
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()

    def __call__(self, items: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(items))
        self.threads.add(threading.get_ident())
        time.sleep(self.batch_s)
        return [item**2 if item >= 0 else ValueError(item) for item in items]


def run(work, serve, **config):
    async def main():
        batcher = Batcher(serve, Batching(**config), ServiceMetrics())
        batcher.start()
        try:
            return await work(batcher)
        finally:
            await batcher.stop()

    return asyncio.run(main())


def test_what_comes_together_is_served_together():
    squares = Squares()
    results = run(lambda b: asyncio.gather(*(b.submit(n, 10) for n in range(8))), squares, wait_ms=20)
    assert results == [n**2 for n in range(8)]
    assert squares.batches == [list(range(8))]
    assert threading.get_ident() not in squares.threads


def test_a_batch_has_so_many_rows_and_keeps_the_order():
    squares = Squares()
    sizes = [40, 40, 40, 250, 10, 90, 1]
    run(lambda b: asyncio.gather(*(b.submit(n, size) for n, size in enumerate(sizes))), squares, wait_ms=20, rows=100)
    assert squares.batches == [[0, 1], [2], [3], [4, 5], [6]]


def test_a_full_batch_does_not_wait():
    async def work(batcher):
        start = time.perf_counter()
        await asyncio.gather(*(batcher.submit(n, 50) for n in range(2)))
        return time.perf_counter() - start

    assert run(work, Squares(), wait_ms=1_000, rows=100) < 0.5


def test_items_gather_while_the_thread_is_busy():
    async def work(batcher):
        first = asyncio.create_task(batcher.submit(0, 1))
        await asyncio.sleep(0.05)
        return await asyncio.gather(first, *(batcher.submit(n, 1) for n in range(1, 6)))

    squares = Squares(batch_s=0.2)
    assert run(work, squares, wait_ms=0) == [0, 1, 4, 9, 16, 25]
    assert squares.batches == [[0], [1, 2, 3, 4, 5]]


def test_an_error_is_raised_to_its_sender_alone():
    async def work(batcher):
        return await asyncio.gather(*(batcher.submit(n, 1) for n in (2, -3, 4)), return_exceptions=True)

    first, error, last = run(work, Squares(), wait_ms=20)
    assert (first, last) == (4, 16)
    assert isinstance(error, ValueError) and error.args == (-3,)


def test_a_batch_that_fails_as_a_whole_fails_for_all_and_the_next_is_served():
    fails = [True]

    def serve(items):
        if fails.pop() if fails else False:
            raise RuntimeError("out of order")
        return items

    async def work(batcher):
        first = await asyncio.gather(*(batcher.submit(n, 1) for n in range(3)), return_exceptions=True)
        return first, await batcher.submit(7, 1)

    first, second = run(work, serve, wait_ms=20)
    assert [type(each) for each in first] == [RuntimeError] * 3
    assert second == 7


def test_who_has_left_is_not_served():
    async def work(batcher):
        busy = asyncio.create_task(batcher.submit(0, 1))
        await asyncio.sleep(0.05)
        left = asyncio.create_task(batcher.submit(1, 1))
        stays = asyncio.create_task(batcher.submit(2, 1))
        await asyncio.sleep(0.02)
        left.cancel()
        await asyncio.gather(busy, stays)
        with pytest.raises(asyncio.CancelledError):
            await left

    squares = Squares(batch_s=0.15)
    run(work, squares, wait_ms=0)
    assert squares.batches == [[0], [2]]


def test_nothing_of_a_batch_stays_until_the_next_one():
    class Asked:
        """Something that can be seen to be gone."""

    async def work(batcher):
        item = Asked()
        gone = weakref.ref(item)
        await batcher.submit(item, 1)
        del item
        for _ in range(20):  # the thread lets go of its work a moment after its result is known
            await asyncio.sleep(0.01)
        return gone()

    assert run(work, lambda items: [None] * len(items)) is None
