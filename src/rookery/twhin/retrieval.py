"""Nearest neighbours of entities: alike ones of their type, what a relation leads to, and mixtures of several queries.

A mixture asks once for each interest instead of once for the average of all (PinnerSage, Pal et al. 2020; kNN-Embed,
El-Kishky et al. 2022): what an entity has met is clustered, each centroid is a query, and places are given out by
the share of the history around each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rookery.errors import UserError
from rookery.twhin.config import ComparatorName
from rookery.twhin.embeddings import Embeddings
from rookery.twhin.entities import Entities, find_entities
from rookery.twhin.evaluation import edge_batches
from rookery.twhin.index import StoredIndex
from rookery.twhin.interests import cluster_history, merge_hits
from rookery.twhin.search import Hits, pairwise_scores, search_tiles, similarity_metric
from rookery.twhin.source import Source
from rookery.types import Side

_OVERSAMPLE = 4  # an index that rounds vectors finds this many times k, and exact scores choose among them


@dataclass(frozen=True)
class NeighborRequest:
    """Whose neighbours, and which: ``ids`` of one type, ``k`` results.

    Without ``relation``: entities of the same type that are alike. With it: the entities on ``side`` of the relation
    that the ids lead to; None takes the side that the ids are not on. ``num_interests`` asks with as many clusters of
    what the ids have met under the relation in training, instead of with the ids. ``exclude_known`` leaves out what
    they have met.
    """

    ids: Sequence[str]
    k: int
    entity_type: str | None = None
    relation: str | None = None
    side: Side | None = None
    num_interests: int | None = None
    exclude_known: bool = False


@dataclass(frozen=True)
class Neighbor:
    """One result; ``query`` numbers the query that found it: ids in their order, interests by falling share."""

    id: str | int
    score: float
    query: int


@dataclass(frozen=True)
class Neighbors:
    """Results, best first: entities of ``entity_type``, scored by ``metric`` (higher is better; distances are
    negative).

    ``side`` is the side that was asked for, None where no relation was. ``weights`` is each query's share of the
    places.
    """

    entity_type: str
    metric: ComparatorName
    side: Side | None
    weights: list[float]
    neighbors: list[Neighbor]


class _Question(Protocol):
    """Queries that are searched and scored alike."""

    @property
    def metric(self) -> ComparatorName: ...

    def vectors(self) -> Tensor:
        """What an index is asked ``[Q, D]``."""
        ...

    def scores(self, rows: Tensor) -> Tensor:
        """Exact scores ``[Q, len(rows)]``."""
        ...


@dataclass(frozen=True)
class _Alike:
    """Which rows are like these vectors ``[Q, D]``?"""

    metric: ComparatorName
    table: Tensor
    wanted: Tensor

    def vectors(self) -> Tensor:
        return self.wanted

    def scores(self, rows: Tensor) -> Tensor:
        return pairwise_scores(self.metric, self.wanted, self.table[rows])


@dataclass(frozen=True)
class _Related:
    """Which rows does the relation lead to from these anchors ``[Q]``?"""

    metric: ComparatorName
    embeddings: Embeddings
    side: Side
    relation: int
    anchors: Tensor

    def vectors(self) -> Tensor:
        if not self.embeddings.query_form(self.side, self.relation):
            name = self.embeddings.relations[self.relation].name
            raise UserError(
                f"--index: under {self.metric}, relation {name} acts on the {self.side.value} entities themselves, so "
                "no index of their vectors can serve it; leave --index out for an exact search"
            )
        return self.embeddings.queries(self.side, self.relation, self.anchors)

    def scores(self, rows: Tensor) -> Tensor:
        return self.embeddings.score_candidates(self.side, self.relation, self.anchors, rows)


@dataclass(frozen=True)
class _Plan:
    """A question, the type of its answers, the share of places of each query, and the rows that are no answer."""

    question: _Question
    result_type: str
    side: Side | None
    weights: Tensor
    left_out: Tensor


def find_neighbors(source: Source, request: NeighborRequest, index: Path | None = None) -> Neighbors:
    """Search exactly, or with the index in the folder ``index`` and exact scores for what it finds.

    Raises ``UserError`` for an unknown id, type or relation, for ids of several types, and for an index of other
    vectors.
    """
    plan = _plan_alike(source, request) if request.relation is None else _plan_related(source, request)
    hits = _search(source, plan, request.k, index)
    vocabulary = source.vocabularies[plan.result_type]
    best = merge_hits(hits, plan.weights, request.k)
    ids: Sequence[str | int] = vocabulary.ids([row for row, _, _ in best])
    neighbors = [Neighbor(name, score, query) for name, (_, score, query) in zip(ids, best, strict=True)]
    weights = (plan.weights.double() / plan.weights.sum()).tolist()
    return Neighbors(plan.result_type, plan.question.metric, plan.side, weights, neighbors)


def _plan_alike(source: Source, request: NeighborRequest) -> _Plan:
    if request.num_interests is not None or request.exclude_known or request.side is not None:
        raise UserError("--interests, --exclude-known and --side ask about a relation; pass --relation too")
    types = source.entity_types if request.entity_type is None else (source.require_type(request.entity_type),)
    own = find_entities(source.vocabularies, request.ids, types)
    question = _alike(source, own.entity_type, source.embeddings.rows[own.entity_type][own.rows])
    return _Plan(question, own.entity_type, None, torch.ones(len(own.rows)), own.rows)


def _plan_related(source: Source, request: NeighborRequest) -> _Plan:
    assert request.relation is not None
    embeddings, relation = source.embeddings, source.relation_number(request.relation)
    own, side = _on_one_side(source, request, relation)
    result_type = embeddings.relations[relation].table(side)
    question: _Question = _Related(embeddings.comparator, embeddings, side, relation, own.rows)
    weights, left_out = torch.ones(len(own.rows)), own.rows if result_type == own.entity_type else own.rows[:0]
    if request.num_interests is not None or request.exclude_known:
        met = _met(source, side, relation, own.rows)
        if request.num_interests is not None:
            if not len(met):
                raise UserError(
                    f"--interests: {', '.join(request.ids)} met nothing under {request.relation} in training"
                )
            table, metric = embeddings.rows[result_type], similarity_metric(embeddings.comparator)
            interests = cluster_history(table[met], metric, request.num_interests)
            question, weights = _alike(source, result_type, interests.centroids), interests.mass
        if request.exclude_known:
            left_out = torch.unique(torch.cat([left_out, met]))
    return _Plan(question, result_type, side, weights, left_out)


def _alike(source: Source, entity_type: str, vectors: Tensor) -> _Alike:
    return _Alike(similarity_metric(source.embeddings.comparator), source.embeddings.rows[entity_type], vectors)


def _on_one_side(source: Source, request: NeighborRequest, relation: int) -> tuple[Entities, Side]:
    """The entities, and the side that is asked for: ``request.side``, else rhs where they can be an lhs, else lhs."""
    spec = source.embeddings.relations[relation]
    sides = [request.side] if request.side is not None else [Side.RHS, Side.LHS]
    types = {spec.table(side.other): side for side in reversed(sides)}  # of equal types the first side stays
    if request.entity_type is not None:
        wanted = source.require_type(request.entity_type)
        if wanted not in types:
            raise UserError(f"--type {wanted}: relation {spec.name} leads from {' or '.join(types)} here; drop --type")
        types = {wanted: types[wanted]}
    own = find_entities(source.vocabularies, request.ids, tuple(types))
    return own, types[own.entity_type]


def _met(source: Source, side: Side, relation: int, anchors: Tensor) -> Tensor:
    """Rows on ``side`` of the train edges that these entities have under the relation, one an edge."""
    graph = source.require_graph("what entities have met")
    met = [anchors[:0]]
    for edges in edge_batches(graph.split_files("train")):
        own, answers = edges.toward(side)
        met.append(answers[(edges.rel == relation) & torch.isin(own, anchors)])
    return torch.cat(met)


def _search(source: Source, plan: _Plan, k: int, index: Path | None) -> Hits:
    """At least ``k`` rows for each query where there are as many; none that is left out."""
    wanted = k + len(plan.left_out)
    if index is None:
        num_rows = source.embeddings.num_entities(plan.result_type)
        hits = search_tiles(lambda start, stop: plan.question.scores(torch.arange(start, stop)), num_rows, wanted)
    else:
        hits = _search_index(_open_index(source, plan, index), plan.question, _OVERSAMPLE * k + len(plan.left_out))
    return Hits(hits.scores, hits.rows.masked_fill(torch.isin(hits.rows, plan.left_out), -1))


def _open_index(source: Source, plan: _Plan, path: Path) -> StoredIndex:
    index = StoredIndex.open(path)
    if index.manifest.entity_type != plan.result_type:
        raise UserError(
            f"--index {path}: holds {index.manifest.entity_type}, the answers are of type {plan.result_type}"
        )
    if index.manifest.metric != plan.question.metric:
        raise UserError(
            f"--index {path}: compares by {index.manifest.metric}, this question by {plan.question.metric}; "
            f"build one with --metric {plan.question.metric}, or leave --index out"
        )
    index.require_rows(source.embeddings.rows[plan.result_type])
    return index


def _search_index(index: StoredIndex, question: _Question, num_found: int) -> Hits:
    """What the index finds, in the order of exact scores."""
    found = index.index.search(question.vectors(), min(num_found, index.manifest.num_entities)).rows  # [Q, num_found]
    rows, place = torch.unique(found.clamp(min=0), return_inverse=True)
    scores = question.scores(rows).gather(1, place)
    top = scores.masked_fill(found < 0, -torch.inf).sort(dim=1, descending=True)
    return Hits(top.values, found.gather(1, top.indices))
