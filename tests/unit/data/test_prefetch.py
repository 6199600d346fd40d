from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from rookery.data.ledger import Ledger, LedgerBook
from rookery.data.prefetch import Prefetcher, prepare
from rookery.data.stream import Columns, StreamPosition
from rookery.errors import DataError


def numbers_then_error(count: int) -> Iterator[int]:
    yield from range(count)
    raise DataError("row 3 is null")


class CountingStream:
    """Batches 0, 1, 2, … of three equal rows."""

    batches_per_epoch = 5

    lanes = (0,)

    def __init__(self) -> None:
        self.num_batches = 0
        self.book = LedgerBook(15)

    def __iter__(self) -> CountingStream:
        return self

    def __next__(self) -> Columns:
        if self.num_batches == self.batches_per_epoch:
            raise StopIteration
        self.num_batches += 1
        self.book.count(0, 3, self.num_batches, 0)
        return {"number": torch.full((3,), self.num_batches - 1)}

    def position(self) -> StreamPosition:
        return StreamPosition(0, self.num_batches, 3, 15, 0)

    def seek(self, position: StreamPosition) -> None:
        self.num_batches = position.num_batches

    def lane_rows(self, position: StreamPosition) -> tuple[int, ...]:
        return (3,)

    def total_rows(self, position: StreamPosition) -> int:
        return 3

    def ledger(self) -> Ledger:
        return self.book.current

    def resume_ledger(self, ledger: Ledger) -> None:
        self.book.resume(ledger)

    def expected(self) -> Ledger:
        return self.book.expected()

    def finished(self) -> list[Ledger]:
        return self.book.finished


@pytest.mark.parametrize("depth", [1, 3, 100])
def test_items_come_in_order_and_end(depth: int) -> None:
    with Prefetcher(iter(range(20)), depth) as prefetcher:
        assert list(prefetcher) == list(range(20))
        assert list(prefetcher) == []


def test_the_source_runs_ahead_by_no_more_than_the_depth() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for number in itertools.count():
            made.append(number)
            yield number

    with Prefetcher(source(), 3) as prefetcher:
        for consumed in range(10):
            assert next(prefetcher) == consumed
            time.sleep(0.002)
            assert len(made) <= consumed + 1 + 3
        time.sleep(0.05)
        assert len(made) == 13


def test_an_error_of_the_source_is_raised_in_its_turn() -> None:
    with Prefetcher(numbers_then_error(3), 10) as prefetcher:
        assert [next(prefetcher) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(DataError, match="row 3 is null"):
            next(prefetcher)
        with pytest.raises(StopIteration):
            next(prefetcher)


def test_waiting_tells_whether_the_next_item_is_there_and_takes_none_away() -> None:
    gate = threading.Event()

    def source() -> Iterator[int]:
        yield 0
        gate.wait()
        yield 1

    with Prefetcher(source(), 3) as prefetcher:
        assert [prefetcher.wait(10), prefetcher.wait(0), next(prefetcher)] == [True, True, 0]
        began = time.monotonic()
        assert not prefetcher.wait(0.05)
        assert 0.05 <= time.monotonic() - began < 5
        gate.set()
        assert [prefetcher.wait(10), next(prefetcher)] == [True, 1]
        assert prefetcher.wait(10)  # the end is an answer, too
        assert next(prefetcher, None) is None


def test_closing_ends_the_thread() -> None:
    before = threading.active_count()
    prefetcher = Prefetcher(itertools.count(), 2)
    next(prefetcher)
    prefetcher.close()
    assert threading.active_count() == before
    with pytest.raises(StopIteration):
        next(prefetcher)


def test_each_prepared_batch_carries_its_own_position_and_ledger() -> None:
    stream = CountingStream()
    with Prefetcher(prepare(stream, lambda columns, position: (columns["number"], position)), 4) as prefetcher:
        time.sleep(0.02)
        for number, prepared in enumerate(prefetcher):
            values, position = prepared.batch
            torch.testing.assert_close(values, torch.full((3,), number))
            assert position == prepared.position == StreamPosition(0, number + 1, 3, 15, 0)
            assert prepared.num_rows == 3
            digest = (number + 1) * (number + 2) // 2
            assert prepared.ledger == Ledger(0, 3 * (number + 1), digest)
    assert stream.position().num_batches == 5
