"""Rows and the numbers that belong to each, end to end in one array (compressed sparse rows)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Adjacency:
    """Row ``r`` has ``values[offsets[r]:offsets[r + 1]]``; ``offsets [rows + 1]``, ``values [pairs]``, both int64."""

    offsets: Rows
    values: Rows

    @staticmethod
    def of_pairs(rows: Rows, values: Rows, num_rows: int) -> Adjacency:
        """Of pairs in any order; the values of a row are sorted, a repeated pair is kept once."""
        span = int(values.max()) + 1 if len(values) else 1
        keys = distinct(rows.astype(np.int64) * span + values)
        return Adjacency(_offsets(keys // span, num_rows), keys % span)

    @staticmethod
    def in_order(rows: Rows, num_rows: int) -> Adjacency:
        """The places ``0 … len(rows) - 1`` by their row, rising within each row."""
        order = np.argsort(rows, kind="stable")
        return Adjacency(_offsets(rows[order], num_rows), order)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, row: int) -> Rows:
        """The values of one row, a view."""
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def lengths(self) -> Rows:
        """How many values each row has ``[rows]``."""
        return np.diff(self.offsets)

    def owners(self) -> Rows:
        """The row of each value ``[pairs]``."""
        return np.repeat(np.arange(len(self)), self.lengths())


def distinct(keys: Rows) -> Rows:
    """The different values, sorted: ``np.unique`` hashes them, which takes ten times as long for millions."""
    ordered = np.sort(keys)
    is_first = np.ones(len(ordered), bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    return ordered[is_first]


def _offsets(sorted_rows: Rows, num_rows: int) -> Rows:
    return np.searchsorted(sorted_rows, np.arange(num_rows + 1)).astype(np.int64)
