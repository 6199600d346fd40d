"""What the routes share: the bundle of now, the batches of the network, threads for the rest, and the deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from rookery.errors import UserError
from rookery.serve.batching import Batcher
from rookery.serve.bundle import BundleHolder, keep_reloading
from rookery.serve.config import ServeConfig
from rookery.serve.failures import Refused
from rookery.serve.metrics import ServiceMetrics
from rookery.serve.served import Served
from rookery.timeline.posts import Query

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Asked:
    served: Served
    query: Query


Posts = Sequence[object]


class Service:
    """Serves queries while ``running``."""

    def __init__(self, holder: BundleHolder[Served], config: ServeConfig, metrics: ServiceMetrics) -> None:
        self._holder, self._config, self._metrics = holder, config, metrics
        self._lookups = ThreadPoolExecutor(config.lookup_threads, thread_name_prefix="lookup")
        self._batcher = Batcher[_Asked, Posts](_answer, config.batching, metrics)

    @property
    def served(self) -> Served:
        """What is served now. A request takes it once, so that all of its answer comes from one bundle."""
        return self._holder.current

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer, and watch for a newer bundle, within the context."""
        self._metrics.serving(self.served.version)
        self._batcher.start()
        watching = asyncio.create_task(
            keep_reloading(self._holder, self._config.reload_every_s, self._metrics, lambda served: served.version)
        )
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await self._batcher.stop()
            await asyncio.to_thread(self._lookups.shutdown)

    async def posts(self, served: Served, query: Query) -> Posts:
        """The posts of a query, ranked in a batch with others. Raises its ``UserError``."""
        return await self._batcher.submit(_Asked(served, query), served.num_rows(query))

    async def look_up(self, work: Callable[[], Result]) -> Result:
        """``work`` done in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._lookups, work)

    async def in_time(self, work: Awaitable[Result]) -> Result:
        """The result of ``work``. Raises ``Refused`` (504) when it takes longer than ``deadline_s``."""
        deadline_s = self._config.limits.deadline_s
        try:
            return await asyncio.wait_for(work, deadline_s)
        except asyncio.TimeoutError:
            raise Refused(504, "deadline", f"the answer took longer than {deadline_s:g} s") from None


def _answer(batch: Sequence[_Asked]) -> Sequence[Posts | Exception]:
    """Queries of one bundle together; behind a reload a batch may have two."""
    results: dict[int, Posts | UserError] = {}
    for served in {id(asked.served): asked.served for asked in batch}.values():
        places = [place for place, asked in enumerate(batch) if asked.served is served]
        results.update(zip(places, served.answer([batch[place].query for place in places]), strict=True))
    return [results[place] for place in range(len(batch))]
