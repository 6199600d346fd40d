"""What evaluation asks of a model, and the candidates it asks for: the whole table of a type or a sample, in tiles of
bounded memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rookery.errors import TrainingError
from rookery.twhin.evaluation_config import EvaluationConfig
from rookery.twhin.known import Edges, KnownEdges
from rookery.types import Side

_BYTES_PER_SCORE = 12  # the score and two temporaries of the model of the same size
_MIN_QUERIES = 64  # a matrix product of fewer rows waits for the table: split the candidates instead
_TILED_QUERIES = 256


class RelationNames(Protocol):
    """A relation: its name and the tables of its sides."""

    @property
    def name(self) -> str: ...
    @property
    def lhs(self) -> str: ...
    @property
    def rhs(self) -> str: ...


class Scorer(Protocol):
    """What evaluation needs of a model."""

    @property
    def relations(self) -> Sequence[RelationNames]: ...

    def num_entities(self, table: str, /) -> int: ...

    def score_candidates(self, side: Side, relation: int, anchors: Tensor, candidates: Tensor | None, /) -> Tensor:
        """Scores ``[E, C]`` of candidate rows ``[C]`` (None: the whole table on ``side``) for anchors ``[E]``; higher
        is better.

        A tensor of its own, which the caller may overwrite.
        """
        ...


@dataclass(frozen=True)
class CandidateList:
    """The candidates of one relation and side: a sorted sample of rows, or every row of the table (``rows`` None)."""

    scorer: Scorer
    side: Side
    relation: int
    num: int
    rows: Tensor | None
    max_scores: int

    @classmethod
    def of(
        cls, scorer: Scorer, side: Side, relation: int, config: EvaluationConfig, sampled: int | None
    ) -> CandidateList:
        """All entities on ``side`` of the relation, or ``sampled`` of them drawn by the config's seed."""
        names = scorer.relations[relation]
        num_entities = scorer.num_entities(names.rhs if side is Side.RHS else names.lhs)
        max_scores = config.chunk_memory_mib * 2**20 // _BYTES_PER_SCORE
        if sampled is None or sampled >= num_entities:
            return cls(scorer, side, relation, num_entities, None, max_scores)
        generator = np.random.default_rng([config.seed, relation, list(Side).index(side)])
        rows = np.sort(generator.choice(num_entities, sampled, replace=False, shuffle=False))
        return cls(scorer, side, relation, sampled, torch.from_numpy(rows), max_scores)

    @property
    def num_queries(self) -> int:
        """Queries to score at a time.

        As many as fit beside the whole table; few where their true entities are scored apart, each against all of them.
        """
        rows = self.max_scores // self.num
        return rows if self.rows is None and rows >= _MIN_QUERIES else _TILED_QUERIES

    def columns(self, rows: Tensor) -> Tensor:
        """The position of entity rows among the candidates, -1 for those that are not."""
        if self.rows is None:
            return rows
        place = torch.searchsorted(self.rows, rows).clamp(max=self.num - 1)
        return torch.where(self.rows[place] == rows, place, -1)

    def tiles(self, anchors: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Scores of all candidates for ``anchors [U]``: first column and scores ``[U, tile]``, tile after tile."""
        tile = max(1, self.max_scores // anchors.numel())
        for start in range(0, self.num, tile):
            yield start, self.score(anchors, self._tile(start, min(start + tile, self.num)))

    def score(self, anchors: Tensor, rows: Tensor | None) -> Tensor:
        return self.scorer.score_candidates(self.side, self.relation, anchors, rows)

    def _tile(self, start: int, stop: int) -> Tensor | None:
        if self.rows is not None:
            return self.rows[start:stop]
        return None if stop - start == self.num else torch.arange(start, stop)


@dataclass(frozen=True)
class QueryChunk:
    """Distinct anchors ``[U]`` and the edges ``[E]`` that ask for them: ``query [E]`` ascending in ``0 … U - 1``,
    ``answers [E]``.
    """

    anchors: Tensor
    query: Tensor
    answers: Tensor


def query_chunks(anchors: Tensor, answers: Tensor, num_queries: int) -> Iterator[QueryChunk]:
    """The edges of one relation, grouped by anchor: every distinct anchor appears once, in one chunk."""
    distinct, query = torch.unique(anchors, return_inverse=True)
    query, order = query.sort(stable=True)
    answers = answers[order]
    for start in range(0, distinct.numel(), num_queries):
        stop = min(start + num_queries, distinct.numel())
        first, last = torch.searchsorted(query, torch.tensor([start, stop])).tolist()
        yield QueryChunk(distinct[start:stop], query[first:last] - start, answers[first:last])


def by_relation(edges: Edges) -> Iterator[tuple[int, Edges]]:
    """The edges of each relation that has any, in relation order."""
    edges = edges.select(edges.rel.argsort(stable=True))
    relations, counts = torch.unique_consecutive(edges.rel, return_counts=True)
    parts = (torch.split(column, counts.tolist()) for column in edges)
    for relation, lhs, rel, rhs in zip(relations.tolist(), *parts, strict=True):
        yield relation, Edges(lhs, rel, rhs)


class Strikes:
    """Known answers of a chunk, to be struck out of its score tiles."""

    def __init__(self, candidates: CandidateList, chunk: QueryChunk, known: KnownEdges) -> None:
        query, rows = known.pairs(candidates.side, candidates.relation, chunk.anchors)
        column, order = candidates.columns(rows).sort()
        self._query, self._column = query[order], column  # by column, so that a tile's are consecutive; -1 comes first

    def strike(self, scores: Tensor, start: int) -> Tensor:
        """Set known answers in the tile ``[U, T]`` that begins at column ``start`` to -inf; how many in each row
        ``[U]``.
        """
        first, last = torch.searchsorted(self._column, torch.tensor([start, start + scores.shape[1]])).tolist()
        query = self._query[first:last].to(scores.device)
        scores[query, (self._column[first:last] - start).to(scores.device)] = -math.inf
        return torch.bincount(query, minlength=scores.shape[0])


def require_finite(candidates: CandidateList, scores: Tensor) -> None:
    """Raise ``TrainingError`` if a score of the tile ``[U, T]`` is not finite."""
    if not torch.isfinite(scores.sum(1)).all():  # half the cost of looking at each
        name = candidates.scorer.relations[candidates.relation].name
        raise TrainingError(
            f"relation '{name}': {int((~torch.isfinite(scores)).sum()):,} of {scores.numel():,} scores are not finite: "
            "the model has diverged; train with a lower learning rate, or evaluate an earlier checkpoint"
        )
