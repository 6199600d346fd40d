"""Posts out of network: what TwHIN finds for each interest of a user.

A user is asked for as a mixture: by the own vector under the relation, and by clusters of the posts favourited last.
A post is found by a mean of its own vector and its author's: it is recent, so few engagements stand behind its own, and
one that nobody has favourited yet has none.
"""

from __future__ import annotations

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
from rookery.twhin.embeddings import ScoredRelation
from rookery.twhin.index import RowIndex
from rookery.twhin.interests import cluster_history, merge_hits
from rookery.twhin.search import Hits, similarity_metric
from rookery.twhin.source import Source
from rookery.types import Side

_OVERSAMPLE = 4  # an approximate index finds so many times what is wanted, and exact scores choose among them


@dataclass(frozen=True)
class Question:
    """Vectors ``[Q, D]`` to compare with those of posts, and the share of places of each ``[Q]``."""

    vectors: Tensor
    shares: Tensor


class Vectors:
    """TwHIN's vectors of the users and posts of a catalog, compared as entities of one type are."""

    def __init__(self, source: Source, catalog: Catalog, interests: Interests) -> None:
        """Raises ``UserError`` for a relation that is none from users to posts, or that no vectors can answer."""
        embeddings = source.embeddings
        self.source = source
        self.metric = similarity_metric(embeddings.comparator)
        self._catalog = catalog
        self._interests = interests
        self._relation = _relation_to_posts(source, catalog, interests.relation)
        spec = embeddings.relations[self._relation]
        self.user_type, self.post_type = spec.lhs, spec.rhs
        if not embeddings.query_form(Side.RHS, self._relation):
            raise UserError(
                f"interests.relation={spec.name}: under {embeddings.comparator} this relation acts on the posts "
                "themselves, so their vectors cannot be searched; train with operator translation or comparator dot"
            )
        self.user_rows: Rows = source.vocabularies[self.user_type].rows(catalog.user_ids)
        self.post_rows: Rows = source.vocabularies[self.post_type].rows(catalog.post_ids)
        self._users = self._prepare(embeddings.rows[self.user_type].float())
        self._posts = self._prepare(embeddings.rows[self.post_type].float())

    def of_users(self, users: Rows) -> tuple[Tensor, Flags]:
        """Vectors ``[n, D]`` of rows of the catalog, and which of them there are."""
        return _taken(self._users, self.user_rows[users])

    def of_posts(self, posts: Rows) -> tuple[Tensor, Flags]:
        """Means ``[n, D]`` of the vectors of posts and of their authors, one where the other is not there."""
        own, has_own = _taken(self._posts, self.post_rows[posts])
        authors, has_author = self.of_users(self._catalog.posts.authors[posts])
        share = np.where(has_own & has_author, self._interests.author_share, has_author)
        weight = torch.from_numpy(share).float().unsqueeze(1)
        return self._prepare((1 - weight) * own + weight * authors), has_own | has_author

    def question(self, user: int, history: Rows) -> Question:
        """What to ask for a user (a row of the catalog) with this history (rows of posts)."""
        own, share = self._own(user), self._interests.own_share
        met, has_vector = self.of_posts(history)
        met = met[torch.from_numpy(has_vector)]
        if share == 1 or not len(met):
            return Question(own, torch.ones(1))
        found = cluster_history(met, self.metric, self._interests.num_clusters)
        shares = torch.cat([torch.tensor([share]), (1 - share) * found.mass.float()])
        return Question(torch.cat([own, found.centroids]), shares)

    def compare(self, question: Question, posts: Tensor) -> Tensor:
        """Scores ``[Q, n]`` of vectors that ``of_posts`` gave."""
        return COMPARATORS[self.metric].pairwise(self._prepare(question.vectors), posts)

    def _own(self, user: int) -> Tensor:
        """The query ``[1, D]`` of a user; one without a vector asks as all do on average."""
        row = int(self.user_rows[user])
        return self._average if row < 0 else self._queries(torch.tensor([row]))

    @cached_property
    def _average(self) -> Tensor:
        return self._queries(torch.arange(len(self._users))).mean(0, keepdim=True)

    def _queries(self, anchors: Tensor) -> Tensor:
        return self._prepare(self.source.embeddings.queries(Side.RHS, self._relation, anchors))

    def _prepare(self, vectors: Tensor) -> Tensor:
        return COMPARATORS[self.metric].prepare(vectors)


class PostSearch:
    """The recent posts that have a vector, searched exactly, or by an approximate index and exact scores."""

    def __init__(self, vectors: Vectors, recent: RecentPosts, index: RowIndex | None) -> None:
        self._vectors = vectors
        self._index = index
        table, has_vector = vectors.of_posts(recent.rows)
        self.places: NDArray[np.int64] = np.flatnonzero(has_vector)
        """Of the rows of ``table`` among the recent posts."""
        self.table = table[torch.from_numpy(self.places)]

    def search(self, question: Question, allowed: Flags, k: int) -> tuple[Rows, NDArray[np.float64]]:
        """Places ``[≤ k]`` among the recent posts and their scores, best first; only places that are ``allowed``."""
        is_allowed = torch.from_numpy(allowed[self.places])
        k = min(k, int(torch.count_nonzero(is_allowed)))
        if k == 0:
            return np.empty(0, np.int64), np.empty(0)
        hits = self._exact(question, is_allowed, k) if self._index is None else self._near(question, is_allowed, k)
        best = merge_hits(hits, question.shares, k)
        return self.places[[row for row, _, _ in best]], np.array([score for _, score, _ in best])

    def _exact(self, question: Question, is_allowed: Tensor, k: int) -> Hits:
        scores = self._vectors.compare(question, self.table)  # [Q, searched]
        top = scores.masked_fill(~is_allowed, -torch.inf).topk(k, dim=1)
        return Hits(top.values, top.indices)

    def _near(self, question: Question, is_allowed: Tensor, k: int) -> Hits:
        assert self._index is not None
        num_found = min(_OVERSAMPLE * k + int(torch.count_nonzero(~is_allowed)), len(is_allowed))
        found = self._index.search(question.vectors, num_found).rows  # [Q, num_found], -1 for none
        rows, place = torch.unique(found.clamp(min=0), return_inverse=True)
        scores = self._vectors.compare(question, self.table[rows]).gather(1, place)
        top = scores.masked_fill((found < 0) | ~is_allowed[found], -torch.inf).sort(dim=1, descending=True)
        return Hits(top.values, found.gather(1, top.indices).masked_fill(top.values.isneginf(), -1))


def _relation_to_posts(source: Source, catalog: Catalog, name: str) -> int:
    """The number of a relation that leads from users of the catalog to posts of it."""
    relations = source.embeddings.relations
    number = next((number for number, relation in enumerate(relations) if relation.name == name), None)
    if number is not None and _leads_to_posts(source, catalog, relations[number]):
        return number
    fit = [relation.name for relation in relations if _leads_to_posts(source, catalog, relation)]
    if not fit:
        raise UserError(
            f"{source.path}: has no relation from users of the catalog to posts of it; export a run that was trained "
            "on the edges of the same users and posts"
        )
    wrong = (
        "there is no such relation"
        if number is None
        else f"leads from {relations[number].lhs} to {relations[number].rhs}"
    )
    raise UserError(
        f"interests.relation={name}: {wrong} in {source.path}; from users to posts lead {', '.join(fit)}: name one"
    )


def _leads_to_posts(source: Source, catalog: Catalog, relation: ScoredRelation) -> bool:
    ends = ((relation.lhs, catalog.user_ids), (relation.rhs, catalog.post_ids))
    return all(bool((source.vocabularies[kind].rows(ids) >= 0).any()) for kind, ids in ends)


def _taken(table: Tensor, rows: Rows) -> tuple[Tensor, Flags]:
    """Rows of a table, zeros for -1, and which are not -1."""
    is_there = rows >= 0
    vectors = table[torch.from_numpy(np.maximum(rows, 0))]
    return vectors * torch.from_numpy(is_there).unsqueeze(1), is_there
