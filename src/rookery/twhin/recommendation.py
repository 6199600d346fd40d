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
from rookery.parallel.world import IsUnwanted, never, spread
from rookery.twhin.candidates import (
    CandidateList,
    QueryChunk,
    Scorer,
    Strikes,
    by_relation,
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
    scorer: Scorer, edges: Edges, masked: KnownEdges, config: EvaluationConfig, is_unwanted: IsUnwanted = never
) -> Recommendation:
    """Retrieve ``max(config.ks)`` rhs entities for every (lhs, relation) of ``edges``, those in ``masked`` left out.

    Raises ``TrainingError`` if a score is not finite, ``Abandoned`` once it is unwanted.
    """
    sums: dict[int, TopKSums] = {}
    num_masked = 0
    for relation, own in by_relation(edges):
        candidates = CandidateList.of(scorer, Side.RHS, relation, config, None)
        lhs, rhs = torch.unique(torch.stack([own.lhs, own.rhs]), dim=1)
        sums[relation] = TopKSums.empty(config.ks)
        recommend = functools.partial(_recommend, candidates, masked, config.ks)
        chunks = list(query_chunks(lhs, rhs, candidates.num_queries))
        for chunk_sums, chunk_masked in spread(chunks, recommend, is_unwanted):
            sums[relation] += chunk_sums
            num_masked += chunk_masked
    return Recommendation(tuple(relation.name for relation in scorer.relations), sums, num_masked)


class _Top:
    """The ``k + 1`` highest scores of each query ``[U, k + 1]`` so far, and how many candidates share the k-th
    ``[U]``.
    """

    def __init__(self, num_queries: int, k: int) -> None:
        self._values = torch.full((num_queries, k + 1), -math.inf)
        self._tied = torch.zeros(num_queries, dtype=torch.int64)

    def add(self, scores: Tensor) -> None:
        """Take a tile ``[U, T]`` in."""
        size = self._values.shape[1]
        best = scores.topk(min(size, scores.shape[1])).values.cpu()
        values = torch.cat([self._values, best], dim=1).topk(size).values
        last, before = values[:, -2], self._values[:, -2]  # the k-th
        tied = (values == last.unsqueeze(1)).sum(1)
        # Where the list ends in a tie, more may share the k-th than it holds.
        beyond = ((values[:, -1] == last) & (last > -math.inf)).nonzero().squeeze(1)
        if len(beyond):
            # Where the k-th has risen, earlier candidates that share the new one were above the old one: in the list.
            in_list = (self._values[beyond] == last[beyond].unsqueeze(1)).sum(1)
            earlier = torch.where(last[beyond] == before[beyond], self._tied[beyond], in_list)
            own = scores[beyond.to(scores.device)] == last[beyond].to(scores.device).unsqueeze(1)
            tied[beyond] = earlier + own.sum(1).cpu()
        self._values, self._tied = values, tied

    def places(self, query: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
        """For each positive ``[P]``: how many candidates of its query score higher, and how many the same.

        Exact for positives among the first k; others get a first number of at least k.
        """
        values = self._values[query, :-1]  # [P, k]
        column = score.unsqueeze(1)
        tied = torch.where(score == values[:, -1], self._tied[query], (values == column).sum(1))
        return (values > column).sum(1), tied.clamp(min=1)


def _recommend(
    candidates: CandidateList, masked: KnownEdges, ks: tuple[int, ...], chunk: QueryChunk
) -> tuple[TopKSums, int]:
    """Sums of a chunk's queries, and how many of their positives are masked."""
    strikes = Strikes(candidates, chunk, masked)
    top = _Top(chunk.anchors.numel(), max(ks))
    score = torch.empty(chunk.answers.numel())
    for start, scores in candidates.tiles(chunk.anchors):
        here = ((chunk.answers >= start) & (chunk.answers < start + scores.shape[1])).nonzero().squeeze(1)
        own = chunk.query[here].to(scores.device), (chunk.answers[here] - start).to(scores.device)
        require_finite(candidates, scores)
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
