"""Penalties on the vectors of the edges of a batch, with their gradients.

N3 is the nuclear 3-norm of Lacroix et al. 2018: the sum of cubed magnitudes, of complex numbers where the operator
is complex. L2 is the sum of squares. Both are means over the edges of a batch, so a frequent entity is held more often.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Regularizer:
    """``n3 * sum |x|^3 + l2 * sum x^2`` of rows ``[E, D]``; ``negatives``: of drawn negatives as well."""

    n3: float = 0.0
    l2: float = 0.0
    negatives: bool = False

    @property
    def active(self) -> bool:
        return self.n3 > 0 or self.l2 > 0

    def __call__(self, rows: Tensor, is_complex: bool) -> tuple[Tensor, Tensor]:
        """The penalty of each row ``[E]`` and its gradient ``[E, D]``."""
        grad = torch.zeros_like(rows)
        value = rows.new_zeros(len(rows))
        if self.l2 > 0:
            value += self.l2 * rows.square().sum(1)
            grad.add_(rows, alpha=2 * self.l2)
        if self.n3 > 0:
            size = _complex_size(rows) if is_complex else rows.abs()
            value += self.n3 * size.pow(3).sum(1)
            halves = torch.cat([size, size], dim=1) if is_complex else size
            grad.addcmul_(halves, rows, value=3 * self.n3)
        return value, grad


def _complex_size(rows: Tensor) -> Tensor:
    real, imaginary = rows.chunk(2, dim=1)
    return torch.hypot(real, imaginary)
