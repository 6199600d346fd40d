"""A tiny graph, a scorer with made-up scores, and evaluation by plain loops."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rookery.twhin.known import Edges
from rookery.types import Side

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Relation:
    name: str
    lhs: str
    rhs: str


class TableScorer:
    """Scores ``<lhs + relation, rhs>``; ``score_of`` computes the same one pair at a time. ``requests`` counts scored
    anchors.
    """

    relations = (
        Relation("likes", "user", "item"),
        Relation("follows", "user", "user"),
        Relation("made_by", "item", "user"),
    )

    def __init__(self, num_users: int, num_items: int, dim: int = 4, seed: int = 0, levels: int | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tables = {
            "user": torch.randn(num_users, dim, generator=generator),
            "item": torch.randn(num_items, dim, generator=generator),
        }
        self.vectors = torch.randn(len(self.relations), dim, generator=generator)
        self.levels = levels  # scores rounded to this many levels a unit: ties
        self.requests: list[tuple[Side, int, int]] = []
        self.largest = 0

    def num_entities(self, table: str) -> int:
        return len(self.tables[table])

    def score_candidates(self, side: Side, relation: int, anchors: Tensor, candidates: Tensor | None) -> Tensor:
        names = self.relations[relation]
        self.requests += [(side, relation, anchor) for anchor in anchors.tolist()]
        if side is Side.RHS:
            query, table = self.tables[names.lhs][anchors] + self.vectors[relation], self.tables[names.rhs]
            bias = torch.zeros(len(anchors), 1)
        else:
            query, table = self.tables[names.rhs][anchors], self.tables[names.lhs]
            bias = query @ self.vectors[relation].unsqueeze(1)
        rows = table if candidates is None else table[candidates]
        scores = (query.double() @ rows.double().T + bias.double()).float()
        self.largest = max(self.largest, scores.numel())
        return scores if self.levels is None else (scores * self.levels).round() / self.levels

    def score_of(self, side: Side, relation: int, anchor: int) -> list[float]:
        return self.score_candidates(side, relation, torch.tensor([anchor]), None)[0].tolist()


def edges_of(triples: list[Triple]) -> Edges:
    columns = torch.tensor(triples, dtype=torch.int64).reshape(-1, 3)
    return Edges(columns[:, 0].contiguous(), columns[:, 1].contiguous(), columns[:, 2].contiguous())


def random_triples(scorer: TableScorer, num: int, seed: int) -> list[Triple]:
    generator = torch.Generator().manual_seed(seed)
    triples = []
    for relation in torch.randint(len(scorer.relations), (num,), generator=generator).tolist():
        names = scorer.relations[relation]
        lhs, rhs = (
            int(torch.randint(scorer.num_entities(table), (), generator=generator)) for table in (names.lhs, names.rhs)
        )
        triples.append((lhs, relation, rhs))
    return triples


def naive_ranks(
    scorer: TableScorer,
    triples: list[Triple],
    known: set[Triple],
    side: Side,
    allowed: dict[tuple[int, Side], set[int]] | None = None,
) -> list[tuple[float, int]]:
    """(mean rank, number of other candidates) of each edge, the definition written out; ``known`` empty gives raw
    ranks.
    """
    ranks = []
    for lhs, relation, rhs in triples:
        anchor, truth = (lhs, rhs) if side is Side.RHS else (rhs, lhs)
        scores = scorer.score_of(side, relation, anchor)
        greater = equal = others = 0
        for candidate, score in enumerate(scores):
            edge = (anchor, relation, candidate) if side is Side.RHS else (candidate, relation, anchor)
            if candidate == truth or edge in known:
                continue
            if allowed is not None and candidate not in allowed[relation, side]:
                continue
            others += 1
            greater += score > scores[truth]
            equal += score == scores[truth]
        ranks.append((1 + greater + equal / 2, others))
    return ranks


def naive_rank_metrics(ranks: list[tuple[float, int]], ks: tuple[int, ...]) -> dict[str, float]:
    metrics = {"mrr": _mean([1 / rank for rank, _ in ranks])}
    metrics |= {f"hits@{k}": _mean([float(rank <= k) for rank, _ in ranks]) for k in ks}
    aucs = [1 - (rank - 1) / others for rank, others in ranks if others]
    return metrics | {"mean_rank": _mean([rank for rank, _ in ranks]), "auc": _mean(aucs)}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def naive_top_k(
    scorer: TableScorer, triples: list[Triple], masked: list[Triple], ks: tuple[int, ...]
) -> dict[str, float]:
    """Recall@K and NDCG@K as LightGCN counts them, each tied group sharing its places equally."""
    positives: dict[tuple[int, int], set[int]] = {}
    for lhs, relation, rhs in triples:
        positives.setdefault((relation, lhs), set()).add(rhs)
    recalls: dict[int, list[float]] = {k: [] for k in ks}
    ndcgs: dict[int, list[float]] = {k: [] for k in ks}
    struck = set(masked)
    for (relation, lhs), wanted in positives.items():
        scores = scorer.score_of(Side.RHS, relation, lhs)
        open_ = {row: score for row, score in enumerate(scores) if (lhs, relation, row) not in struck}
        for k in ks:
            hits, gain = _found(open_, wanted, k)
            recalls[k].append(hits / len(wanted))
            ndcgs[k].append(gain / sum(_discount(place) for place in range(min(k, len(wanted)))))
    recall = {f"recall@{k}": _mean(values) for k, values in recalls.items()}
    return recall | {f"ndcg@{k}": _mean(values) for k, values in ndcgs.items()}


def _found(scores: dict[int, float], wanted: set[int], k: int) -> tuple[float, float]:
    """Expected number of positives in the top k, and their expected discounted gain."""
    hits = gain = 0.0
    place = 0
    for level in sorted(set(scores.values()), reverse=True):
        group = [row for row, score in scores.items() if score == level]
        share = len(wanted.intersection(group)) / len(group)
        for _ in group:
            if place < k:
                hits += share
                gain += share * _discount(place)
            place += 1
    return hits, gain


def _discount(place: int) -> float:
    return 1 / math.log2(place + 2)
