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

    Without ``relation``: entities of the same type that are alike. With it: the entities on ``side`` of the relation that
    the ids lead to; None takes the side that the ids are not on. ``num_interests`` asks with as many clusters of what the
    ids have met under the relation in training, instead of with the ids. ``exclude_known`` leaves out what they have met.
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
    """Results, best first: entities of ``entity_type``, scored by ``metric`` (higher is better; distances are negative).

    ``side`` is the side that was asked for, None where no relation was. ``weights`` is each query's share of the places.
    """

    entity_type: str
    metric: ComparatorName
    side: Side | None
    weights: list[float]
    neighbors: list[Neighbor]


class _Question(Protocol):
    """Queries that are searched and scored alike."""

    metric: ComparatorName

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
                f"--index: under {self.metric}, relation {name} acts on the {self.side.value} entities themselves, so no index of "
                "their vectors can serve it; leave --index out for an exact search"
            )
        return self.embeddings.queries(self.side, self.relation, self.anchors)

    def scores(self, rows: Tensor) -> Tensor:
        return self.embeddings.score_candidates(self.side, self.relation, self.anchors, rows)


def find_neighbors(source: Source, request: NeighborRequest, index: Path | None = None) -> Neighbors:
    """Search exactly, or with the index in the folder ``index`` and exact scores for what it finds.

    Raises ``UserError`` for an unknown id, type or relation, for ids of several types, and for an index of other vectors.
    """
    if request.relation is None:
        return _alike(source, request, index)
    relation = source.relation_number(request.relation)
    spec = source.embeddings.relations[relation]
    entities, side = _on_one_side(source, request, relation)
    result_type = spec.table(side)
    met = _met(source, request, side, relation, entities.rows)
    comparator = source.embeddings.comparator
    if request.num_interests is None:
        question: _Question = _Related(comparator, source.embeddings, side, relation, entities.rows)
        weights = torch.ones(len(entities.rows))
    else:
        if not len(met):
            raise UserError(f"--id {request.ids[0]}: has no {request.relation} edge in training, so there are no interests to cluster")
        table, metric = source.embeddings.rows[result_type], similarity_metric(comparator)
        interests = cluster_history(table[met], metric, request.num_interests)
        question, weights = _Alike(metric, table, interests.centroids), interests.mass
    left_out = met.unique() if request.exclude_known else met[:0]
    if result_type == entities.entity_type:
        left_out = torch.cat([left_out, entities.rows]).unique()
    hits = _search(source, result_type, question, request.k, left_out, index)
    return _answer(source, result_type, question.metric, side, weights, hits, request.k)


def _alike(source: Source, request: NeighborRequest, index: Path | None) -> Neighbors:
    if request.num_interests is not None or request.exclude_known or request.side is not None:
        raise UserError("--interests, --exclude-known and --side ask about a relation; pass --relation too")
    entities = find_entities(source.vocabularies, request.ids, _types(source, request))
    table, metric = source.embeddings.rows[entities.entity_type], similarity_metric(source.embeddings.comparator)
    question = _Alike(metric, table, table[entities.rows])
    hits = _search(source, entities.entity_type, question, request.k, entities.rows, index)
    weights = torch.ones(len(entities.rows))
    return _answer(source, entities.entity_type, metric, None, weights, hits, request.k)
'''
