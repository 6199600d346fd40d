"""Runs of equal values in sorted rows: ties, users, ties within users."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Runs:
    """``numbers [rows]`` says which run a row is in; run ``i`` is rows ``starts[i]`` to ``ends[i] - 1``."""

    numbers: Tensor
    starts: Tensor
    ends: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Runs:
        """The runs of equal neighbours in ``values [rows]``."""
        _, numbers, lengths = torch.unique_consecutive(values, return_inverse=True, return_counts=True)
        ends = lengths.cumsum(0)
        return cls(numbers, ends - lengths, ends)

    def __len__(self) -> int:
        return len(self.starts)

    def sums(self, values: Tensor) -> Tensor:
        """``[runs, …]``: the sums of ``values [rows, …]`` over each run."""
        return values.new_zeros(len(self), *values.shape[1:]).index_add_(0, self.numbers, values)


def running_totals(values: Tensor) -> Tensor:
    """``[rows + 1, …]``: entry ``i`` is the sum of the first ``i`` of ``values [rows, …]``."""
    totals = values.new_zeros(len(values) + 1, *values.shape[1:])
    torch.cumsum(values, 0, out=totals[1:])
    return totals


def sort_keys(users: Tensor, values: Tensor) -> Tensor:
    """int64 ``[rows]`` that sort by user number (below 2**31), then by float32 value; equal exactly where both are.

    The bits of a float, read as an integer, sort as the float does if those of negative ones are flipped.
    """
    bits = (values + 0.0).view(torch.int32)  # + 0.0 turns -0.0, an equal value with other bits, into 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    return (users << 32) + (ordered + (1 << 31))
