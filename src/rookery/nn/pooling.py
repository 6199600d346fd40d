"""One vector from a list of vectors. Of an empty list it is zeros.

``vectors [batch, length, dim]`` are padded to one length; ``mask [batch, length]`` is true for those that count. The
others may hold anything.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Pooling = Literal["mean", "sum", "max"]


def pool(vectors: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """``[batch, dim]``."""
    counted = mask.unsqueeze(2)
    if how == "max":
        largest = vectors.masked_fill(~counted, -torch.inf).amax(dim=1)
        return largest.masked_fill(~counted.any(dim=1), 0.0)
    total = vectors.masked_fill(~counted, 0.0).sum(dim=1)
    return total if how == "sum" else total / counted.sum(dim=1).clamp(min=1)


class TargetAttention(nn.Module):
    """``query [batch, dim]``, ``vectors``, ``mask`` to ``[batch, dim]``: each vector weighed by how it meets the query.

    The score of a vector v for the query q is an MLP of ``[q, v, q - v, q ⊙ v]`` with one hidden layer (Deep Interest
    Network, Zhou et al. 2018). Weights are ``exp(s_i) / (1 + sum_j exp(s_j))``: a softmax in which "nothing of it"
    stands with score 0. Where no vector of the list fits, their sum goes to 0 instead of 1; the paper leaves weights
    unnormalised for that, which lets them grow without bound.
    """

    def __init__(self, dim: int, hidden: int = 32) -> None:
        super().__init__()
        self.hidden = nn.Linear(4 * dim, hidden)
        self.score = nn.Linear(hidden, 1)
        for linear in (self.hidden, self.score):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, query: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
        vectors = vectors.masked_fill(~mask.unsqueeze(2), 0.0)
        scores = self._scores(query, vectors).masked_fill(~mask, -torch.inf)  # [batch, length]
        weights = functional.pad(scores, (0, 1)).softmax(dim=1)[:, :-1]
        # As fast as a product of matrices, which has but one row here.
        return (weights.unsqueeze(2) * vectors).sum(dim=1)

    def _scores(self, query: Tensor, vectors: Tensor) -> Tensor:
        """``[batch, length]``. The fourfold input is never laid out: what is of the query alone is taken once a row."""
        by_q, by_v, by_difference, by_product = self.hidden.weight.chunk(4, dim=1)  # each [hidden, dim]
        own = functional.linear(query, by_q + by_difference, self.hidden.bias).unsqueeze(1)  # [batch, 1, hidden]
        met = functional.linear(vectors, by_v - by_difference) + functional.linear(
            vectors * query.unsqueeze(1), by_product
        )
        scores: Tensor = self.score(torch.relu(own + met))
        return scores.squeeze(2)
