"""Batches made ready by a background thread while the model works on earlier ones."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from rookery.data.ledger import Ledger
from rookery.data.stream import BatchStream, Columns, StreamPosition

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Transform = Callable[[Columns, StreamPosition], T]
"""Columns of a batch, and the stream's position behind it, to what the model takes.

Runs ahead of the model in another thread: randomness must come from a generator seeded by the position.
"""


@dataclass(frozen=True)
class Prepared(Generic[T]):
    """A batch ready for the model, the number of rows that it was made of, and the stream's position and ledger behind
    it: the stream itself may be further on.
    """

    batch: T
    position: StreamPosition
    num_rows: int
    ledger: Ledger


def prepare(stream: BatchStream, transform: Transform[T]) -> Iterator[Prepared[T]]:
    """The stream's batches, transformed, each with its position and ledger."""
    for columns in stream:
        position, ledger = stream.position(), stream.ledger()
        num_rows = sum(stream.lane_rows(position))
        yield Prepared(transform(columns, position), position, num_rows, ledger)


class Batches(Protocol[T_co]):
    """An iterator that may be waited for in turns."""

    def __iter__(self) -> Iterator[T_co]: ...

    def __next__(self) -> T_co: ...

    def wait(self, timeout_s: float) -> bool:
        """Whether ``next`` has its answer, after ``timeout_s`` at most."""
        ...


class Unprefetched(Generic[T]):
    """Iterate over ``source`` in the thread that asks; nothing is made ahead."""

    def __init__(self, source: Iterator[T]) -> None:
        self._source = source

    def __iter__(self) -> Unprefetched[T]:
        return self

    def __next__(self) -> T:
        return next(self._source)

    def wait(self, timeout_s: float) -> bool:
        """True: ``next`` makes the item itself."""
        return True


class Prefetcher(Generic[T]):
    """Iterate over ``source`` in a background thread, at most ``depth`` items ahead of the consumer.

    What the source raises is raised by ``next`` in its turn. ``close`` (or leaving the context) ends the thread after
    the item that it is working on.
    """

    def __init__(self, source: Iterator[T], depth: int) -> None:
        self._source = source
        # A token for each item that may be made. Queues, not a semaphore: theirs is C, and a put does not hand over the
        # interpreter in the middle of the consumer's step.
        self._slots: SimpleQueue[None] = SimpleQueue()
        for _ in range(depth):
            self._slots.put(None)
        self._ready: SimpleQueue[_Item[T] | _End] = SimpleQueue()
        self._first: _Item[T] | _End | None = None  # of those that are ready
        self._closed = False
        self._thread = threading.Thread(target=self._produce, name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Prefetcher[T]:
        return self

    def __next__(self) -> T:
        if self._closed:
            raise StopIteration
        ready, self._first = self._first or self._ready.get(), None
        if isinstance(ready, _End):
            self._closed = True
            raise ready.cause
        self._slots.put(None)
        return ready.value

    def wait(self, timeout_s: float) -> bool:
        """Whether ``next`` has its answer, after ``timeout_s`` at most."""
        if self._first is None and not self._closed:
            try:
                self._first = self._ready.get(timeout=timeout_s)
            except Empty:
                return False
        return True

    def close(self) -> None:
        """End the thread; items made ahead are dropped."""
        self._closed = True
        self._slots.put(None)
        self._thread.join()

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _produce(self) -> None:
        try:
            while True:
                self._slots.get()
                if self._closed:
                    return
                self._ready.put(_Item(next(self._source)))
        # Everything travels to the consumer, where it is raised: StopIteration at the end, or the source's error.
        except BaseException as cause:  # noqa: BLE001
            self._ready.put(_End(cause))


@dataclass(frozen=True)
class _Item(Generic[T]):
    value: T


@dataclass(frozen=True)
class _End:
    cause: BaseException
