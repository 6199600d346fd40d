"""What a stream has handed out, counted so that a lost or doubled row shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from operator import or_

import numpy as np

# Rows mixed at a time: their numbers stay in the processor's cache.
_CHUNK_ROWS = 32_768
_DIGEST_END = 2**64


@dataclass(frozen=True)
class Ledger:
    """Rows of epoch ``epoch``: ``rows`` were handed out, ``skipped`` left out because they cannot be decoded.

    ``digest`` is the sum modulo 2**64, over both, of a 64-bit mix of each row's number: its place in file order among
    all rows of the stream. The sum does not depend on the order, and those of several ranks add up; rows that are lost
    or doubled leave it unchanged by chance once in 2**64.
    """

    epoch: int
    rows: int = 0
    digest: int = 0
    skipped: int = 0

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    def plus(self, rows: int, digest: int, skipped: int) -> Ledger:
        """This ledger with more rows in it."""
        return replace(
            self,
            rows=self.rows + rows,
            digest=(self.digest + digest) % _DIGEST_END,
            skipped=self.skipped + skipped,
        )

    def accounts_for(self, expected: Ledger) -> bool:
        """Whether each row that was expected is here once: handed out, or left out and counted."""
        return (self.rows + self.skipped, self.digest) == (expected.rows, expected.digest)

    @staticmethod
    def merged(ledgers: Sequence[Ledger]) -> Ledger:
        """The ledger of several ranks, all of one epoch."""
        first, *others = ledgers
        for other in others:
            assert other.epoch == first.epoch, ledgers
            first = first.plus(other.rows, other.digest, other.skipped)
        return first


class LedgerBook:
    """The ledger of the epoch that a stream is in, and those of the epochs that it has finished."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._expected_digest: int | None = None
        self._epoch = self._rows = self._digest = self._skipped = 0
        self._finished: list[Ledger] = []

    @property
    def current(self) -> Ledger:
        return Ledger(self._epoch, self._rows, self._digest % _DIGEST_END, self._skipped)

    @property
    def finished(self) -> list[Ledger]:
        return list(self._finished)

    def count(self, epoch: int, rows: int, digest: int, skipped: int) -> None:
        """Enter what a batch of epoch ``epoch`` was made of."""
        if epoch != self._epoch:
            self._epoch, self._rows, self._digest, self._skipped = epoch, 0, 0, 0
        self._rows += rows
        self._digest += digest
        self._skipped += skipped

    def finish(self) -> None:
        """The epoch has no further batch."""
        self._finished.append(self.current)

    def go_to(self, epoch: int) -> None:
        """Count from nothing in ``epoch``; what was finished before it stays."""
        self.resume(Ledger(epoch))
        self._finished = [ledger for ledger in self._finished if ledger.epoch < epoch]

    def resume(self, ledger: Ledger) -> None:
        """Count on from ``ledger``."""
        self._epoch, self._rows = ledger.epoch, ledger.rows
        self._digest, self._skipped = ledger.digest, ledger.skipped

    def expected(self) -> Ledger:
        """What a whole epoch gives over all lanes; the first call takes 2 ns a row."""
        if self._expected_digest is None:
            digest = 0
            for start in range(0, self._num_rows, _CHUNK_ROWS):
                numbers = np.arange(start, min(start + _CHUNK_ROWS, self._num_rows))
                digest += int(mix(numbers).sum())
            self._expected_digest = digest % _DIGEST_END
        return Ledger(self._epoch, self._num_rows, self._expected_digest)


def mix(numbers: np.ndarray) -> np.ndarray:
    """A bijection of 64 bits (uint64) that leaves no trace of order in ``numbers`` (int64).

    The finalizer of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
    """
    mixed = numbers.astype(np.uint64)
    shifted = np.empty_like(mixed)
    mixed += np.uint64(0x9E3779B97F4A7C15)
    mixed ^= np.right_shift(mixed, np.uint64(30), out=shifted)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= np.right_shift(mixed, np.uint64(27), out=shifted)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= np.right_shift(mixed, np.uint64(31), out=shifted)
    return mixed


class RowNumbers:
    """Numbers of the rows of some runs, the first of ``sizes[0]`` rows from ``first_rows[0]`` on, laid end to end.

    What a run adds to a row's place is looked up by blocks of 2**k places, the largest that no run begins within: row
    groups as they are usually written make this a table that stays in the cache, where one by row would not.
    """

    def __init__(self, first_rows: Sequence[int], sizes: Sequence[int]) -> None:
        starts: list[int] = []
        shifts: list[int] = []
        self.num_rows = 0
        for first_row, size in zip(first_rows, sizes, strict=True):
            if not shifts or shifts[-1] != first_row - self.num_rows:
                starts.append(self.num_rows)
                shifts.append(first_row - self.num_rows)
            self.num_rows += size
        bits_of_starts = reduce(or_, starts)
        lowest_bit = bits_of_starts & -bits_of_starts
        self._bits = lowest_bit.bit_length() - 1 if lowest_bit else self.num_rows.bit_length()
        block_ends = [start >> self._bits for start in starts[1:]] + [((self.num_rows - 1) >> self._bits) + 1]
        self._shifts = np.repeat(np.array(shifts, np.int64), np.diff(block_ends, prepend=0))

    def at(self, places: np.ndarray) -> np.ndarray:
        """The numbers (int64) of the rows at some places."""
        numbers: np.ndarray = self._shifts.take(places >> self._bits)
        numbers += places
        return numbers


def digests_by_part(numbers: RowNumbers, order: np.ndarray | None, starts: np.ndarray) -> list[int]:
    """Sums modulo 2**64 of the mixed numbers of the rows, taken in ``order``, of the parts that begin at ``starts``.

    ``order`` are places ``[rows]``, None for their own order.
    """
    bounds = [*starts.tolist(), numbers.num_rows]
    digests: list[int] = []
    # Whole parts at a time, as many as fit the cache.
    num_parts = max(1, _CHUNK_ROWS * len(starts) // numbers.num_rows)
    for part in range(0, len(starts), num_parts):
        begin, end = bounds[part], bounds[min(part + num_parts, len(starts))]
        places = np.arange(begin, end) if order is None else order[begin:end]
        digests += np.add.reduceat(mix(numbers.at(places)), starts[part : part + num_parts] - begin).tolist()
    return digests
