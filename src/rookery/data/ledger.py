"""What a stream has handed out, counted so that a lost or doubled row shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

# Rows mixed at a time: their numbers stay in the processor's cache.
_CHUNK_ROWS = 65_536
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
        self._digest: int | None = None
        self._current = Ledger(0)
        self._finished: list[Ledger] = []

    @property
    def current(self) -> Ledger:
        return self._current

    @property
    def finished(self) -> list[Ledger]:
        return list(self._finished)

    def count(self, epoch: int, rows: int, digest: int, skipped: int) -> None:
        """Enter what a batch of epoch ``epoch`` was made of."""
        before = self._current if self._current.epoch == epoch else Ledger(epoch)
        self._current = before.plus(rows, digest, skipped)

    def finish(self) -> None:
        """The epoch has no further batch."""
        self._finished.append(self._current)

    def go_to(self, epoch: int) -> None:
        """Count from nothing in ``epoch``; what was finished before it stays."""
        self._current = Ledger(epoch)
        self._finished = [ledger for ledger in self._finished if ledger.epoch < epoch]

    def resume(self, ledger: Ledger) -> None:
        """Count on from ``ledger``, taken in the epoch that the stream has gone to."""
        assert ledger.epoch == self._current.epoch, (ledger, self._current)
        self._current = ledger

    def expected(self) -> Ledger:
        """What a whole epoch gives over all lanes; the first call takes 5 ns a row."""
        if self._digest is None:
            digest = 0
            for start in range(0, self._num_rows, _CHUNK_ROWS):
                numbers = np.arange(start, min(start + _CHUNK_ROWS, self._num_rows))
                digest += int(mix(numbers).sum())
            self._digest = digest % _DIGEST_END
        return Ledger(self._current.epoch, self._num_rows, self._digest)


def mix(numbers: np.ndarray) -> np.ndarray:
    """A bijection of 64 bits (uint64) that leaves no trace of order in ``numbers`` (int64).

    The finalizer of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
    """
    mixed = numbers.astype(np.uint64)
    mixed += np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def digests_by_part(numbers: np.ndarray, order: np.ndarray | None, starts: np.ndarray) -> np.ndarray:
    """Sums of the mixed ``numbers`` ``[rows]`` (int64), taken in ``order``, of the parts that begin at ``starts``.

    ``order`` ``[rows]`` are places in ``numbers``, None for their own order. uint64 ``[parts]``, modulo 2**64.
    """
    mixed = np.empty(len(numbers), np.uint64)
    for start in range(0, len(numbers), _CHUNK_ROWS):
        chunk = slice(start, start + _CHUNK_ROWS)
        mixed[chunk] = mix(numbers[chunk] if order is None else numbers.take(order[chunk]))
    return np.add.reduceat(mixed, starts)
