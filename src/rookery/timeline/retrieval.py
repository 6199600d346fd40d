"""Posts out of network: what TwHIN finds for each interest of a user.

A user's history is the posts met last; its clusters are asked for, and each has places by its share of the history.
A user without a history is asked for by the own vector under the relation, one without a vector as the average user.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rookery.data.catalog import Catalog
from rookery.errors import UserError
from rookery.timeline.config import Interests
from rookery.timeline.pool import Flags, RecentPosts, Rows
from rookery.twhin.comparators import COMPARATORS
from rookery.twhin.config import ComparatorName
from rookery.twhin.index import RowIndex
from rookery.twhin.interests import cluster_history, merge_hits
from rookery.twhin.search import Hits, similarity_metric
from rookery.twhin.source import Source
from rookery.types import Side

_OVERSAMPLE = 4  # an approximate index finds so many times what is wanted, and exact scores choose among them


@dataclass(frozen=True)
class Question:
    """Vectors ``[Q, D]`` to compare with posts, under one metric, and the share of places of each ``[Q]``."""

    metric: ComparatorName
    vectors: Tensor
    weights: Tensor


class UserVectors:
    """TwHIN's vectors of the users and posts of a catalog: their rows there, -1 for those that it has none of."""

    def __init__(self, source: Source, catalog: Catalog, relation: str) -> None:
        """Raises ``UserError`` for a relation that is not there or no vectors can answer, and for vectors of others."""
        self.source = source
        self.relation = source.relation_number(relation)
        spec = source.embeddings.relations[self.relation]
        self.user_type, self.post_type = spec.lhs, spec.rhs
        if not source.embeddings.query_form(Side.RHS, self.relation):
            raise UserError(
                f"interests.relation={relation}: under {source.embeddings.comparator} this relation acts on the posts "
                "themselves, so their vectors cannot be searched; train with operator translation or comparator dot"
            )
        self.users: Rows = source.vocabularies[self.user_type].rows(catalog.user_ids)
        self.posts: Rows = source.vocabularies[self.post_type].rows(catalog.post_ids)
        for kind, found in ((self.user_type, self.users), (self.post_type, self.posts)):
            if not (found >= 0).any():
                raise UserError(
                    f"{source.path}: has a vector of no {kind} of the catalog; export a run that was trained on the "
                    "edges of the same users and posts"
                )
        self.post_vectors = source.embeddings.rows[self.post_type].float()  # [posts of TwHIN, D]
        self.user_vectors = source.embeddings.rows[self.user_type].float()

    def question(self, user: int, history: Rows, interests: Interests) -> Question:
        """What to ask for a user (a row of the catalog) with this history (rows of posts, the latest last)."""
        embeddings = self.source.embeddings
        met = self.posts[history[len(history) - min(len(history), interests.history_length) :]]
        met = met[met >= 0]
        if len(met):
            metric = similarity_metric(embeddings.comparator)
            found = cluster_history(self.post_vectors[torch.from_numpy(met)], metric, interests.num_clusters)
            return Question(metric, found.centroids, found.mass)
        row = int(self.users[user])
        vectors = self._average if row < 0 else embeddings.queries(Side.RHS, self.relation, torch.tensor([row]))
        return Question(embeddings.comparator, vectors, torch.ones(1))

    @cached_property
    def _average(self) -> Tensor:
        anchors = torch.arange(len(self.user_vectors))
        return self.source.embeddings.queries(Side.RHS, self.relation, anchors).mean(0, keepdim=True)


class PostSearch:
    """The recent posts that have a vector, searched exactly, or by an approximate index and exact scores."""

    def __init__(self, vectors: UserVectors, recent: RecentPosts, index: RowIndex | None) -> None:
        rows = vectors.posts[recent.rows]
        self.places: NDArray[np.int64] = np.flatnonzero(rows >= 0)
        table = vectors.post_vectors[torch.from_numpy(rows[self.places])]
        metrics = {vectors.source.embeddings.comparator, similarity_metric(vectors.source.embeddings.comparator)}
        self._tables: Mapping[ComparatorName, Tensor] = {name: COMPARATORS[name].prepare(table) for name in metrics}
        self._index = index

    def search(self, question: Question, allowed: Flags, k: int) -> tuple[Rows, NDArray[np.float64]]:
        """Places ``[≤ k]`` among the recent posts and their scores, best first; only places that are ``allowed``."""
        is_allowed = torch.from_numpy(allowed[self.places])
        k = min(k, int(torch.count_nonzero(is_allowed)))
        if k == 0:
            return np.empty(0, np.int64), np.empty(0)
        hits = self._exact(question, is_allowed, k) if self._index is None else self._near(question, is_allowed, k)
        best = merge_hits(hits, question.weights, k)
        return self.places[[row for row, _, _ in best]], np.array([score for _, score, _ in best])

    def _exact(self, question: Question, is_allowed: Tensor, k: int) -> Hits:
        scores = self._scores(question, self._tables[question.metric])  # [Q, searched]
        top = scores.masked_fill_(~is_allowed, -torch.inf).topk(k, dim=1)
        return Hits(top.values, top.indices)

    def _near(self, question: Question, is_allowed: Tensor, k: int) -> Hits:
        assert self._index is not None
        num_found = min(_OVERSAMPLE * k + int(torch.count_nonzero(~is_allowed)), len(is_allowed))
        found = self._index.search(question.vectors, num_found).rows
        rows, place = torch.unique(found.clamp(min=0), return_inverse=True)
        scores = self._scores(question, self._tables[question.metric][rows]).gather(1, place)
        top = scores.masked_fill((found < 0) | ~is_allowed[found], -torch.inf).sort(dim=1, descending=True)
        return Hits(top.values, found.gather(1, top.indices).masked_fill(top.values.isneginf(), -1))

    def _scores(self, question: Question, table: Tensor) -> Tensor:
        comparator = COMPARATORS[question.metric]
        return comparator.pairwise(comparator.prepare(question.vectors.float()), table)
