"""The bundle that is served, and its replacement by a newer one while requests go on."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from rookery.errors import RookeryError
from rookery.serve.metrics import ServiceMetrics

logger = logging.getLogger(__name__)

MANIFEST = "bundle.json"
METRICS = "metrics.json"  # may be attached later

Served = TypeVar("Served")

Signature = tuple[object, ...] | None


class BundleHolder(Generic[Served]):
    """What ``bundle`` (a folder, or a link to one) holds now, as ``opener`` makes it.

    ``refresh`` brings that folder up to date before it is looked at, where it is a copy of something elsewhere.
    ``current`` is replaced as a whole: a request keeps what it took at its beginning, and the old one is freed with the
    last request that uses it.
    """

    def __init__(
        self, bundle: Path, opener: Callable[[Path], Served], refresh: Callable[[], None] = lambda: None
    ) -> None:
        self._bundle, self._opener, self._refresh = bundle, opener, refresh
        self._tried = self._signature()
        self.current = opener(bundle.resolve())

    def is_newer(self) -> bool:
        """Whether a bundle lies there that was not tried yet. Raises what ``refresh`` raises."""
        self._refresh()
        signature = self._signature()
        return signature is not None and signature != self._tried

    def reload(self) -> None:
        """Open what lies there now, beside the current one, and replace that; raise what the opener raises."""
        self._tried = self._signature()
        # Resolved once: a link that turns meanwhile must not mix two bundles.
        self.current = self._opener(self._bundle.resolve())

    def _signature(self) -> Signature:
        """Changes when another manifest lies there, or other metrics; None while there is no manifest."""
        try:
            folder = self._bundle.resolve()
        except (OSError, RuntimeError):  # the latter: links that lead in a circle
            return None
        manifest = _written(folder / MANIFEST)
        return None if manifest is None else (folder, manifest, _written(folder / METRICS))


def _written(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def set_aside_what_stays() -> None:
    """Let Python's search for cycles skip everything that is there now.

    It would look through all of it every few dozen rankings, with every thread stopped: 0.2 s for the 270,000 objects
    of the libraries alone. What was set aside before is looked through once more, so that an old bundle goes.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


async def keep_reloading(
    holder: BundleHolder[Served], every_s: float, metrics: ServiceMetrics, version: Callable[[Served], str]
) -> None:
    """Look for a newer bundle for ever. One that cannot be opened is logged, and the old one stays."""
    # One thread for all of them: each thread that ever opened a bundle keeps the memory that opening took.
    thread = ThreadPoolExecutor(1, thread_name_prefix="reloading")
    run = partial(asyncio.get_running_loop().run_in_executor, thread)
    try:
        while True:
            await asyncio.sleep(every_s)
            try:
                if not await run(holder.is_newer):
                    continue
                await run(holder.reload)
            except Exception as error:  # noqa: BLE001  whatever is wrong with a new bundle, the old one serves on
                _tell_failed(error, metrics)
            else:
                set_aside_what_stays()
                metrics.reloads.labels("done").inc()
                metrics.serving(version(holder.current))
                logger.info("serving the new bundle %s", version(holder.current))
    finally:
        thread.shutdown(wait=False)


def _tell_failed(error: Exception, metrics: ServiceMetrics) -> None:
    metrics.reloads.labels("failed").inc()
    says_it_all = isinstance(error, RookeryError)
    message = "the new bundle cannot be fetched or opened, the old one stays: %s"
    logger.log(logging.ERROR, message, error, exc_info=None if says_it_all else error)
