"""Ranking metrics as sums that merge exactly, and what is computed from them.

Every sum is an integer: counts as they are, fractions in units of 2**-36. Integer addition is associative, so the
result does not depend on the order of the batches or on how many processes shared them. A fraction is rounded by at
most 7e-12.

Ties count by their expectation under a random order. One positive per query: the mean rank,
``1 + #greater + #equal_others / 2``. Many positives per query: each tied group shares its places equally.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self

UNIT = 2**36  # one in fixed point: 1.3e8 queries of value 1 fit an int64 within one call
_LOW_BITS = 32  # an integer travels as two int64 halves, so that a sum over 2**31 processes cannot overflow


@dataclass(frozen=True)
class MergeableSums:
    """Integer sums over queries; ``a + b`` is what both query sets together would have given."""

    ks: tuple[int, ...]
    totals: tuple[int, ...]

    def __add__(self, other: Self) -> Self:
        assert self.ks == other.ks, f"sums for different cutoffs: {self.ks} and {other.ks}"
        return type(self)(self.ks, tuple(a + b for a, b in zip(self.totals, other.totals, strict=True)))

    @property
    def num_queries(self) -> int:
        return self.totals[0]

    def to_tensor(self) -> Tensor:
        """int64 ``[len(totals), 2]``; the element-wise sum over processes is a valid argument of ``from_tensor``."""
        return torch.tensor([divmod(total, 1 << _LOW_BITS) for total in self.totals], dtype=torch.int64)

    @classmethod
    def from_tensor(cls, ks: Sequence[int], halves: Tensor) -> Self:
        """Inverse of ``to_tensor``, also after a summing all-reduce."""
        return cls(tuple(ks), tuple((high << _LOW_BITS) + low for high, low in halves.tolist()))


@dataclass(frozen=True)
class RankSums(MergeableSums):
    """Rank of the one true candidate of each query: mean reciprocal rank, Hits@k, mean rank, AUC.

    ``totals`` are queries, twice the ranks, reciprocal ranks, AUCs, queries that have an AUC, and hits per k.
    """

    @classmethod
    def empty(cls, ks: Sequence[int]) -> RankSums:
        return cls(tuple(ks), (0,) * (5 + len(ks)))

    @classmethod
    def from_ranks(cls, ranks: Tensor, num_others: Tensor, ks: Sequence[int]) -> RankSums:
        """Mean ranks ``[Q]`` (float64, from 1, multiples of 1/2) of true candidates among ``num_others [Q]`` others."""
        twice_rank = (2 * ranks).to(torch.int64)
        has_auc = num_others > 0
        auc = 1.0 - (ranks[has_auc] - 1.0) / num_others[has_auc]
        hits = [int((twice_rank <= 2 * k).sum()) for k in ks]
        sums = (ranks.numel(), int(twice_rank.sum()), _fixed_point_sum(1.0 / ranks), _fixed_point_sum(auc), auc.numel())
        return cls(tuple(ks), (*sums, *hits))

    def compute(self) -> dict[str, float]:
        """``mrr``, ``hits@<k>``, ``mean_rank`` (1 is best) and ``auc``; NaN where no query counts.

        AUC is the mean over queries of the share of other candidates that score below the true one, ties at one half
        (Mann-Whitney); a query without other candidates has none.
        """
        num_queries, twice_rank, reciprocal, auc, num_auc, *hits = self.totals
        metrics = {"mrr": _mean(reciprocal, UNIT * num_queries)}
        metrics |= {f"hits@{k}": _mean(count, num_queries) for k, count in zip(self.ks, hits, strict=True)}
        return metrics | {"mean_rank": _mean(twice_rank, 2 * num_queries), "auc": _mean(auc, UNIT * num_auc)}


@dataclass(frozen=True)
class TopKSums(MergeableSums):
    """Recall@K and NDCG@K of queries with any number of positives.

    ``totals`` are queries, then recalls per k, then NDCGs per k.
    """

    @classmethod
    def empty(cls, ks: Sequence[int]) -> TopKSums:
        return cls(tuple(ks), (0,) * (1 + 2 * len(ks)))

    @classmethod
    def from_counts(
        cls, query: Tensor, greater: Tensor, tied: Tensor, num_positives: Tensor, ks: Sequence[int]
    ) -> TopKSums:
        """One entry ``[P]`` a positive that can be retrieved, one ``num_positives [Q]`` a query.

        ``query`` says whose positive it is, ``greater`` how many candidates of that query score higher (exact up to
        ``max(ks)``), ``tied`` how many score the same, itself included. A query's ``num_positives`` also counts those
        that cannot be retrieved. Queries without positives are left out, as in LightGCN (He et al. 2020).
        """
        ideal = torch.cat([torch.zeros(1, dtype=torch.float64), _discounts(max(ks)).cumsum(0)]).to(greater.device)
        counted = num_positives > 0
        recalls, ndcgs = [], []
        for k in ks:
            first, last = greater.clamp(max=k), (greater + tied).clamp(max=k)  # the tied group's places in the top k
            found = _sum_by_query(query, (last - first) / tied.to(torch.float64), counted)
            gained = _sum_by_query(query, (ideal[last] - ideal[first]) / tied, counted)
            recalls.append(_fixed_point_sum(found / num_positives[counted]))
            ndcgs.append(_fixed_point_sum(gained / ideal[num_positives[counted].clamp(max=k)]))
        return cls(tuple(ks), (int(counted.sum()), *recalls, *ndcgs))

    def compute(self) -> dict[str, float]:
        """``recall@<k>`` (found / all positives of the query) and ``ndcg@<k>`` (gain 1, discount ``log2(place +
        1)``); means over queries.
        """
        num_queries, *sums = self.totals
        names = [f"recall@{k}" for k in self.ks] + [f"ndcg@{k}" for k in self.ks]
        return {name: _mean(total, UNIT * num_queries) for name, total in zip(names, sums, strict=True)}


def _discounts(k: int) -> Tensor:
    return 1.0 / torch.log2(torch.arange(2, k + 2, dtype=torch.float64))


def _sum_by_query(query: Tensor, values: Tensor, counted: Tensor) -> Tensor:
    return torch.zeros(counted.numel(), dtype=torch.float64, device=values.device).index_add_(0, query, values)[counted]


def _fixed_point_sum(values: Tensor) -> int:
    return int((values * UNIT).round().to(torch.int64).sum())


def _mean(total: int, count: int) -> float:
    return total / count if count else float("nan")
