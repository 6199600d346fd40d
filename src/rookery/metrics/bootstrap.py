"""Intervals by resampling users.

A replicate draws as many users as there are, with replacement: all rows of a user come along, as often as the user was
drawn. Rows of one user are not independent; drawing rows would make intervals too narrow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Resampling:
    """Weightings of ``num_users`` users: first the users as they are, then ``num_replicates`` replicates.

    A replicate depends on its number, ``seed`` and ``num_users`` alone.
    """

    num_users: int
    num_replicates: int
    seed: int

    def chunks(self, size: int) -> Iterator[Tensor]:
        """Float64 ``[num_users, ≤ size]``: how often each user counts, a column a weighting, some at a time."""
        for start in range(0, 1 + self.num_replicates, size):
            columns = [self._column(number) for number in range(start, min(start + size, 1 + self.num_replicates))]
            yield torch.from_numpy(np.stack(columns, axis=1))

    def _column(self, number: int) -> np.ndarray:
        if number == 0 or self.num_users == 0:
            return np.ones(self.num_users)
        drawn = np.random.default_rng((self.seed, number)).integers(self.num_users, size=self.num_users)
        return np.bincount(drawn, minlength=self.num_users).astype(np.float64)


def interval(replicates: Tensor, level: float = 0.95) -> tuple[float, float]:
    """The central ``level`` of ``replicates [R]``, by percentiles; NaN where ``R`` is 0.

    Replicates in which a metric is not defined (NaN) are left out: a label without a positive has no AUROC.
    """
    defined = replicates[~replicates.isnan()].numpy()
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
