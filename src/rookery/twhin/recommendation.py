"""Recommendation: Recall@K and NDCG@K of the rhs entities that each lhs meets in the evaluated split, as LightGCN
counts them.

Every lhs that has an edge of the relation in the split is a query, and all its distinct rhs entities there are
positives. All entities of the rhs type are ranked, those that the lhs has met in the masked splits left out; a
positive among these still counts as one that was not found (He et al. 2020). Equal scores share their places.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rookery.metrics.ranking import TopKSums
from rookery.twhin.candidates import (
    CandidateList,
    QueryChunk,
    Scorer,
    Strikes,
    by_relation,
    count_true,
    query_chunks,
    require_finite,
)
from rookery.twhin.evaluation_config import EvaluationConfig
from rookery.twhin.known import Edges, KnownEdges
from rookery.types import Side


@dataclass(frozen=True)
class Recommendation:
    """Top-k sums per relation that has edges in the split."""

    relation_names: tuple[str, ...]
    sums: Mapping[int, TopKSums]
    num_masked: int  # positives that are masked: impossible to find

    def metrics(self) -> dict[str, float]:
        """``recall@<k>`` and ``ndcg@<k>``, means over the queries of all relations."""
        return self._total().compute()

    def report(self) -> dict[str, object]:
        """JSON: overall and by relation."""
        relations = {self.relation_names[relation]: _numbers(sums) for relation, sums in self.sums.items()}
        return _numbers(self._total()) | {"num_masked_positives": self.num_masked, "relations": relations}

    def _total(self) -> TopKSums:
        return functools.reduce(operator.add, self.sums.values())


def evaluate_recommendation(
    scorer: Scorer, edges: Edges, masked: KnownEdges, config: EvaluationConfig
) -> Recommendation:
    """Retrieve ``max(config.ks)`` rhs entities for every (lhs, relation) of ``edges``, those in ``masked`` left out.

    Raises ``TrainingError`` if a true edge's score is not finite.
    """
    sums: dict[int, TopKSums] = {}
    num_masked = 0
    for relation, own in by_relation(edges):
        candidates = CandidateList.of(scorer, Side.RHS, relation, config, None)
        lhs, rhs = torch.unique(torch.stack([own.lhs, own.rhs]), dim=1)
        sums[relation] = TopKSums.empty(config.ks)
        for chunk in query_chunks(lhs, rhs, candidates.num_queries):
            chunk_sums, chunk_masked = _recommend(candidates, chunk, Strikes(candidates, chunk, masked), config.ks)
            sums[relation] += chunk_sums
            num_masked += chunk_masked
    return Recommendation(tuple(relation.name for relation in scorer.relations), sums, num_masked)


class _Top:
    """The ``k`` highest scores of each query ``[U, k]`` so far, and how many candidates share the lowest of them
    ``[U]``.
    """

    def __init__(self, num_queries: int, k: int) -> None:
        self.values = torch.full((num_queries, k), -math.inf)
        self._tied = torch.zeros(num_queries, dtype=torch.int64)

    def add(self, scores: Tensor) -> None:
        """Take a tile ``[U, T]`` in."""
        k = self.values.shape[1]
        best = scores.topk(min(k, scores.shape[1])).values.cpu()
        values = torch.cat([self.values, best], dim=1).topk(k).values
        lowest = values[:, -1:]
        # Earlier candidates at a lowest score that has risen were all above the former one, so they are in the list.
        earlier = torch.where(lowest.squeeze(1) == self.values[:, -1], self._tied, (self.values == lowest).sum(1))
        self.values, self._tied = values, earlier + count_true(scores == lowest.to(scores.device)).cpu()

    def places(self, query: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
        """For each positive ``[P]``: candidates of its query with a higher score (at most k), and with the same score
        (at least 1).
        """
        values = self.values[query]  # [P, k]
        column = score.unsqueeze(1)
        tied = torch.where(score == values[:, -1], self._tied[query], (values == column).sum(1))
        return (values > column).sum(1), tied.clamp(min=1)


def _recommend(
    candidates: CandidateList, chunk: QueryChunk, strikes: Strikes, ks: tuple[int, ...]
) -> tuple[TopKSums, int]:
    """Sums of a chunk's queries, and how many of their positives are masked."""
    top = _Top(chunk.anchors.numel(), max(ks))
    score = torch.empty(chunk.answers.numel())
    for start, scores in candidates.tiles(chunk.anchors):
        here = ((chunk.answers >= start) & (chunk.answers < start + scores.shape[1])).nonzero().squeeze(1)
        own = chunk.query[here].to(scores.device), (chunk.answers[here] - start).to(scores.device)
        require_finite(candidates, scores[own])
        strikes.strike(scores, start)
        score[here] = scores[own].cpu()
        top.add(scores)
    num_positives = torch.bincount(chunk.query, minlength=chunk.anchors.numel())
    findable = score > -math.inf
    query = chunk.query[findable]
    greater, tied = top.places(query, score[findable])
    return TopKSums.from_counts(query, greater, tied, num_positives, ks), int((~findable).sum())


def _numbers(sums: TopKSums) -> dict[str, object]:
    return {**sums.compute(), "num_queries": sums.num_queries}
