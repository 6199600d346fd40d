"""Micro-batches: requests that wait at the same time are served together, by one thread."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from rookery.serve.config import Batching
from rookery.serve.metrics import ServiceMetrics

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    num_rows: int
    answer: asyncio.Future[Result]
    since_s: float


class Batcher(Generic[Item, Result]):
    """Hands batches of items to ``serve`` in a thread of its own, in the order in which they came.

    ``serve`` returns a result for each item, in order; an exception among the results is raised to whoever sent that
    item, and one that ``serve`` raises to all of the batch. While the thread works, items gather; an item that finds it
    idle waits ``wait_ms`` for others. An item whose sender has left (timed out, say) is dropped before its turn.
    """

    def __init__(
        self, serve: Callable[[Sequence[Item]], Sequence[Result | Exception]], config: Batching, metrics: ServiceMetrics
    ) -> None:
        self._serve, self._config, self._metrics = serve, config, metrics
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ranking")
        self._loop_task: asyncio.Task[None] | None = None

    async def submit(self, item: Item, num_rows: int) -> Result:
        """The result for ``item``, which is ``num_rows`` posts of work."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting[Item, Result](item, num_rows, loop.create_future(), loop.time())
        self._waiting.append(waiting)
        self._arrived.set()
        return await waiting.answer

    def start(self) -> None:
        """Serve from now on, on the running event loop."""
        self._loop_task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Wait for the thread's last batch. For when nobody waits for an answer any more: what is left is cancelled."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        for waiting in self._waiting:
            waiting.answer.cancel()
        await asyncio.to_thread(self._thread.shutdown)

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            await self._gather()
            # Under no name: it would live until the next batch comes, and with it the bundle that it was asked of.
            await self._serve_batch(self._next_batch())

    async def _gather(self) -> None:
        """Wait for a full batch, or as long as the first request may wait."""
        loop = asyncio.get_running_loop()
        end = self._waiting[0].since_s + self._config.wait_ms / 1e3
        while sum(each.num_rows for each in self._waiting) < self._config.rows and (left := end - loop.time()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except asyncio.TimeoutError:
                return

    def _next_batch(self) -> list[_Waiting[Item, Result]]:
        """The first items that are still wanted, ``rows`` at most or a single one."""
        batch: list[_Waiting[Item, Result]] = []
        num_rows = 0
        while self._waiting:
            first = self._waiting[0]
            if not first.answer.done():
                if batch and num_rows + first.num_rows > self._config.rows:
                    break
                batch.append(first)
                num_rows += first.num_rows
            self._waiting.popleft()
        if not self._waiting:
            self._arrived.clear()
        return batch

    async def _serve_batch(self, batch: Sequence[_Waiting[Item, Result]]) -> None:
        if not batch:  # all of them have left
            return
        self._metrics.batch_requests.observe(len(batch))
        self._metrics.batch_rows.observe(sum(each.num_rows for each in batch))
        start = time.perf_counter()
        items = [each.item for each in batch]
        try:
            loop = asyncio.get_running_loop()
            results: Sequence[Result | Exception] = await loop.run_in_executor(self._thread, self._serve, items)
        except Exception as error:  # noqa: BLE001  each sender gets it
            results = [error] * len(batch)
        finally:
            self._metrics.batch_seconds.observe(time.perf_counter() - start)
        for waiting, result in zip(batch, results, strict=True):
            _settle(waiting.answer, result)


def _settle(answer: asyncio.Future[Result], result: Result | Exception) -> None:
    if answer.done():  # the sender has left meanwhile
        return
    if isinstance(result, Exception):
        answer.set_exception(result)
    else:
        answer.set_result(result)
