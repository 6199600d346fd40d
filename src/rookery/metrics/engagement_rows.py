"""Rows of predictions and of what came of them: what every metric of engagement is computed from.

Nothing is binned or sampled: rows are kept, ``9 T + 16 + S`` bytes each for ``T`` tasks and ``S`` strata (88 MB a
million rows for eight tasks and no stratum), and parts are merged by putting them one behind the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class EngagementRows:
    """``users`` is None where rows say nothing about users: then there is neither GAUC nor NDCG, and the bootstrap
    draws rows.
    """

    probabilities: Tensor  # float32 [rows, T], calibrated
    labels: Tensor  # bool [rows, T]
    weights: Tensor  # float32 [rows, T], 0: says nothing about this task
    scores: Tensor  # float32 [rows], what the rows of a user are ordered by
    gains: Tensor  # float32 [rows], ≥ 0, what having a row first is worth
    strata: Tensor  # bool [rows, S], whether the row belongs
    users: Tensor | None  # int64 [rows], any numbers

    @classmethod
    def empty(cls, num_tasks: int, num_strata: int) -> EngagementRows:
        """No rows."""
        numbers = torch.empty(0, num_tasks)
        strata = torch.empty(0, num_strata, dtype=torch.bool)
        return cls(numbers, numbers.bool(), numbers, torch.empty(0), torch.empty(0), strata, None)

    @classmethod
    def concat(cls, parts: Sequence[EngagementRows]) -> EngagementRows:
        """All rows of at least one part."""
        users = [part.users for part in parts if part.users is not None]
        assert len(users) in {0, len(parts)}, "either all parts have users or none"
        return cls(
            torch.cat([part.probabilities for part in parts]),
            torch.cat([part.labels for part in parts]),
            torch.cat([part.weights for part in parts]),
            torch.cat([part.scores for part in parts]),
            torch.cat([part.gains for part in parts]),
            torch.cat([part.strata for part in parts]),
            torch.cat(users) if users else None,
        )

    def __len__(self) -> int:
        return len(self.probabilities)

    def select(self, rows: Tensor) -> EngagementRows:
        """Rows by number or by mask."""
        return self._each(lambda values: values[rows])

    def on_cpu(self) -> EngagementRows:
        """The same rows in the memory of the host, without gradients."""
        return self._each(lambda values: values.detach().cpu())

    def in_canonical_order(self) -> EngagementRows:
        """The same rows by user, then by a hash of their content.

        Equal rows are interchangeable, so the order says nothing about the batches and ranks that they came from, and
        sums over rows in this order are the same to the last bit.
        """
        order = torch.argsort(self._content_hash(), stable=True)
        if self.users is not None:
            order = order[torch.argsort(self.users[order], stable=True)]
        return self.select(order)

    def _content_hash(self) -> Tensor:
        numbers = [self.probabilities, self.weights, self.scores.unsqueeze(1), self.gains.unsqueeze(1)]
        content = torch.cat([torch.cat(numbers, 1).view(torch.int32), self.labels.int(), self.strata.int()], 1)
        factors = torch.from_numpy(np.random.default_rng(0).integers(-(2**62), 2**62, size=content.shape[1]) * 2 + 1)
        hashes = torch.zeros(len(self), dtype=torch.int64)
        for column, factor in zip(content.unbind(1), factors, strict=True):
            hashes += column * factor  # modulo 2**64
        return hashes

    def _each(self, change: Callable[[Tensor], Tensor]) -> EngagementRows:
        return EngagementRows(
            change(self.probabilities),
            change(self.labels),
            change(self.weights),
            change(self.scores),
            change(self.gains),
            change(self.strata),
            None if self.users is None else change(self.users),
        )
