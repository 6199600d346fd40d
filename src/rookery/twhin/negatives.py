"""Global negatives: rows drawn from the table of the right type, uniformly or by degree^α."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rookery.types import Side


class NegativeSampler:
    """Draws rows with replacement.

    ``degrees[table, side] [num_entities]`` counts the training edges with the entity on that side. With ``alpha`` 0
    every entity is equally likely; with ``alpha`` > 0 an entity is drawn in proportion to ``degree ** alpha``, and one
    that never stands on the side is never drawn.
    """

    def __init__(
        self, num_entities: Mapping[str, int], degrees: Mapping[tuple[str, Side], Tensor], alpha: float
    ) -> None:
        self._num_entities = num_entities
        self._degrees = degrees
        self._alpha = alpha
        self._cumulative: dict[tuple[str, Side], Tensor] = {}
        self._log_expected: dict[tuple[str, Side], Tensor] = {}

    def num_entities(self, table: str) -> int:
        return self._num_entities[table]

    def draw(self, table: str, side: Side, num_rows: int, generator: torch.Generator) -> Tensor:
        """``num_rows`` rows, int64."""
        if self._alpha == 0:
            return torch.randint(self._num_entities[table], (num_rows,), generator=generator)
        points = torch.rand(num_rows, dtype=torch.float64, generator=generator)
        return torch.searchsorted(self._cumulative_probability(table, side), points, right=True)

    def probability(self, table: str, side: Side) -> Tensor:
        """Chance of each row to be the next one drawn, float64 ``[num_entities]``."""
        num_rows = self._num_entities[table]
        if self._alpha == 0:
            return torch.full((num_rows,), 1.0 / num_rows, dtype=torch.float64)
        weight = self._degrees[table, side].double().pow(self._alpha).masked_fill_(self._degrees[table, side] == 0, 0.0)
        return weight / weight.sum()

    def log_expected(self, table: str, side: Side, num_global: int, num_in_batch: int) -> Tensor:
        """Logarithm of how often each row is expected among ``num_global`` drawn and ``num_in_batch`` lent candidates.

        Edges lend their entities in proportion to the degree on that side. Rows that cannot appear get the smallest
        finite value; they are never read.
        """
        if (table, side) not in self._log_expected:
            expected = self.probability(table, side) * num_global
            if num_in_batch:
                degree = self._degrees[table, side].double()
                expected += degree * (num_in_batch / degree.sum())
            self._log_expected[table, side] = expected.clamp_min(torch.finfo(torch.float32).tiny).log().float()
        return self._log_expected[table, side]

    def _cumulative_probability(self, table: str, side: Side) -> Tensor:
        """The last value is above 1, so that a point just below 1 finds the last entity with positive probability."""
        if (table, side) not in self._cumulative:
            probability = self.probability(table, side)
            cumulative = probability.cumsum(0)
            last = int(torch.nonzero(probability)[-1])
            cumulative[last:] = 2.0
            self._cumulative[table, side] = cumulative
        return self._cumulative[table, side]
