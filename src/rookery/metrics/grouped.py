"""Metrics within each user, and their means over users: one sort, no loop over users."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rookery.metrics.binary import Predictions, ratio
from rookery.metrics.runs import Runs, running_totals, sort_keys


@dataclass(frozen=True)
class UserRanking:
    """``gauc``: AUROC within each user who has both labels, averaged by the weight of all their rows.

    With weights of one that is the number of their impressions, as in Zhou et al. 2018 (Deep Interest Network).
    ``under(multiplicity)`` answers as the classes of ``rookery.metrics.binary`` do.
    """

    per_user: Tensor  # [users, 2] weight × AUROC, weight; both 0 without both labels

    @classmethod
    def of(cls, rows: Predictions) -> UserRanking:
        aucs = user_aurocs(rows)
        weight = rows.by_user([torch.ones_like(rows.p)]).squeeze(1)
        return cls(torch.stack([weight * aucs, weight], dim=1).where(~aucs.isnan().unsqueeze(1), 0.0))

    def under(self, multiplicity: Tensor) -> dict[str, Tensor]:
        return {"gauc": ratio(*(multiplicity.T @ self.per_user).unbind(1))}


def user_aurocs(rows: Predictions) -> Tensor:
    """``[users]``: Mann-Whitney within each user, ties one half; NaN without both labels."""
    keys, order = torch.sort(sort_keys(rows.users, rows.p), stable=True)
    users, weights, label = rows.users[order], rows.weights[order], rows.y[order]
    ties, own = Runs.of(keys), Runs.of(users)
    negatives = running_totals(torch.where(label, 0.0, weights))
    # The negatives that a row beats: those of its user in lower ties, and half of those in its own.
    middle = (negatives[ties.starts] + negatives[ties.ends]) / 2
    beaten = middle[ties.numbers] - negatives[own.starts][own.numbers]
    wins = torch.zeros(rows.num_users, dtype=torch.float64)
    wins.index_add_(0, users, torch.where(label, weights * beaten, 0.0))
    num_positive, num_negative = rows.by_user([rows.y, ~rows.y]).unbind(1)
    return ratio(wins, num_positive * num_negative)


def ndcg(scores: Tensor, gains: Tensor, users: Tensor, num_users: int) -> Tensor:
    """``[num_users]``: NDCG of each user's rows ordered by score, NaN where no order beats another.

    ``scores`` and ``gains [rows]`` are float32, gains ≥ 0. A gain counts as it is, over the discount
    ``log2(place + 1)``; ties of a score share their places, as in ``sklearn.metrics.ndcg_score``. All places count:
    there is no cutoff.
    """
    actual = _discounted(-scores, gains, users, num_users, tied=True)
    best = _discounted(-gains, gains, users, num_users, tied=False)
    low = gains.new_full((num_users,), torch.inf).scatter_reduce_(0, users, gains, "amin")
    high = gains.new_zeros(num_users).scatter_reduce_(0, users, gains, "amax")
    return torch.where(high > low, actual / best, torch.nan)


def _discounted(ascending: Tensor, gains: Tensor, users: Tensor, num_users: int, *, tied: bool) -> Tensor:
    """``[num_users]``: gains over discounts where rows stand in the order of ``ascending`` float32 within a user."""
    keys, order = torch.sort(sort_keys(users, ascending), stable=True)
    own = Runs.of(users[order])
    place = torch.arange(len(order)) - own.starts[own.numbers]
    discounts = 1.0 / torch.log2(place.double() + 2)
    if tied:
        ties = Runs.of(keys)
        discounts = (ties.sums(discounts) / (ties.ends - ties.starts))[ties.numbers]
    return torch.zeros(num_users, dtype=torch.float64).index_add_(0, users[order], gains[order] * discounts)
