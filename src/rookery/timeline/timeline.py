"""A user's timeline: candidates, probabilities, weighted sums, and an order that is varied and explains itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rookery.data.catalog import Catalog
from rookery.data.engagements import ENGAGEMENTS
from rookery.errors import UserError
from rookery.ranker.export import RankerExport
from rookery.timeline.bundle import Bundle
from rookery.timeline.candidates import CandidateRows, Candidates
from rookery.timeline.config import TimelineConfig
from rookery.timeline.entities import Entities
from rookery.timeline.pool import Flags, RecentPosts, Rows
from rookery.timeline.posts import (
    SOURCES,
    Candidate,
    Order,
    Query,
    RankedPost,
    RankQuery,
    SourceName,
    TimelinePost,
    TimelineQuery,
    Truth,
)
from rookery.timeline.retrieval import PostSearch, Vectors
from rookery.timeline.scorer import Scorer
from rookery.timeline.scoring import Floats, Scored, best_first, score, weight_vector, weights_for
from rookery.twhin.retrieval import Neighbor


@dataclass(frozen=True)
class _Task:
    """A query with the rows that it is about."""

    query: Query
    user: int
    posts: Rows
    in_network: Flags
    weights: Floats


class Timeline:
    """Ranks for the users of a catalog, as of its moment. Nothing changes after it was made: threads may share it."""

    def __init__(self, bundle: Bundle, ranker: RankerExport | None = None, truth: Truth | None = None) -> None:
        """``ranker`` replaces that of the bundle, for comparison; where ``truth`` is given, posts carry it."""
        self.bundle = bundle
        self.catalog: Catalog = bundle.catalog
        self.config: TimelineConfig = bundle.config
        self._truth = truth
        self._scorer = Scorer(bundle.catalog, ranker or bundle.ranker)
        self.tasks = self._scorer.tasks
        self._weights = weight_vector(weights_for(self.config.weights, self.tasks), self.tasks)
        self.recent = RecentPosts(bundle.catalog, self.config.max_age_hours)
        vectors = Vectors(bundle.twhin, bundle.catalog, self.config.interests)
        search = PostSearch(vectors, self.recent, None if bundle.index is None else bundle.index.index)
        self._candidates = Candidates(bundle.catalog, self.config, self.recent, vectors, search)
        self._entities = Entities(bundle.catalog, vectors)

    @classmethod
    def open(cls, bundle: Path, truth: Truth | None = None) -> Timeline:
        """Raises ``DataError`` for what is no bundle, or is damaged."""
        return cls(Bundle.open(bundle), truth=truth)

    @property
    def weights(self) -> dict[str, float]:
        """The weights that are used where none are given."""
        return self._by_task(self._weights.tolist())

    @property
    def version(self) -> str:
        """Changes with the bundle's files."""
        return self.bundle.manifest.version

    def candidates(self, user_id: str) -> list[Candidate]:
        """The posts that the user's timeline is chosen from, in network first. Raises ``UnknownId``."""
        found = self.candidate_rows(self.catalog.user_row(user_id))
        authors = self.catalog.user_ids.take(self.catalog.posts.authors[found.posts])
        rows = zip(
            self.catalog.post_ids.take(found.posts).to_pylist(),
            authors.to_pylist(),
            found.in_network.tolist(),
            found.retrieval_scores.tolist(),
            strict=True,
        )
        return [Candidate(post, author, _source(inside), score) for post, author, inside, score in rows]

    def candidate_rows(self, user: int, sources: AbstractSet[str] = frozenset(SOURCES)) -> CandidateRows:
        """``candidates`` of a row of the catalog, as rows."""
        return self._candidates.of(user, sources)

    def rank(
        self, user_id: str, post_ids: Sequence[str], weights: Mapping[str, float] | None = None
    ) -> list[RankedPost]:
        """These posts for this user by falling score, without factors. Raises ``UnknownId`` and ``UserError``."""
        return self._one(RankQuery(user_id, post_ids, weights))

    def timeline(
        self,
        user_id: str,
        k: int,
        *,
        weights: Mapping[str, float] | None = None,
        sources: AbstractSet[str] = frozenset(SOURCES),
        diversity: bool = True,
        order: Order = "score",
    ) -> list[TimelinePost]:
        """The first ``k`` posts of the user's timeline; by recency the same candidates, the newest first.

        Raises ``UnknownId`` for the user, ``UserError`` for weights of tasks that are not predicted.
        """
        posts = self._one(TimelineQuery(user_id, k, weights, sources, diversity, order))
        return [post for post in posts if isinstance(post, TimelinePost)]

    def answer(self, queries: Sequence[Query]) -> list[list[RankedPost] | UserError]:
        """The posts of each query (``TimelinePost`` of a ``TimelineQuery``), in one pass of the model.

        A query with an unknown id or a wrong weight has its error in its place, and leaves the others alone.
        """
        tasks = [self._task(query) for query in queries]
        asked = [task for task in tasks if isinstance(task, _Task)]
        lengths = [len(task.posts) for task in asked]
        users = np.repeat(np.array([task.user for task in asked], np.int64), lengths)
        probabilities = self._scorer.probabilities(users, np.concatenate([_NONE, *(task.posts for task in asked)]))
        parts = iter(np.split(probabilities, np.cumsum(lengths)[:-1]))
        return [self._answer(task, next(parts)) if isinstance(task, _Task) else task for task in tasks]

    def scored(self, user: int, found: CandidateRows, weights: Floats) -> Scored:
        """Candidates of a user (a row) with probabilities, contributions and factors, in their order."""
        probabilities = self._scorer.probabilities(np.full(len(found.posts), user), found.posts)
        return self._score(found.posts, found.in_network, probabilities, weights, diversity=True)

    def neighbors(self, user_id: str, k: int) -> list[Neighbor]:
        """Users most like this one by TwHIN; none if it has no vector. Raises ``UnknownId``."""
        self.catalog.user_row(user_id)
        return self._entities.similar_users(user_id, k)

    def similar(self, post_id: str, k: int) -> list[Neighbor]:
        """Posts most like this one by TwHIN, of any age; none if it has no vector. Raises ``UnknownId``."""
        self.catalog.post_row(post_id)
        return self._entities.similar_posts(post_id, k)

    def users(self, prefix: str = "", limit: int = 20) -> list[dict[str, Any]]:
        """Users whose ids begin with ``prefix``: whose id is just that, then those first who were shown most."""
        return self._entities.users(prefix, limit)

    def user(self, user_id: str) -> dict[str, Any]:
        """What is known of a user. Raises ``UnknownId``."""
        return self._entities.user(self.catalog.user_row(user_id))

    def post(self, post_id: str) -> dict[str, Any]:
        """What is known of a post. Raises ``UnknownId``."""
        return self._entities.post(self.catalog.post_row(post_id))

    def _one(self, query: Query) -> list[RankedPost]:
        [posts] = self.answer([query])
        if isinstance(posts, UserError):
            raise posts
        return posts

    def _task(self, query: Query) -> _Task | UserError:
        try:
            weights = self._weights if query.weights is None else weight_vector(query.weights, self.tasks)
            user = self.catalog.user_row(query.user_id)
            if isinstance(query, TimelineQuery):
                found = self.candidate_rows(user, query.sources)
                posts, in_network = found.posts, found.in_network
            else:
                posts = np.array([self.catalog.post_row(post) for post in query.post_ids], np.int64)
                in_network = np.isin(self.catalog.posts.authors[posts], self.catalog.followed(user))
        except UserError as error:
            return error
        # Sorts are stable, so of equal posts the one whose id comes first stands first.
        by_id = np.argsort(self.catalog.post_ids.take(posts).to_numpy(zero_copy_only=False), kind="stable")
        return _Task(query, user, posts[by_id], in_network[by_id], weights)

    def _answer(self, task: _Task, probabilities: Floats) -> list[RankedPost]:
        query = task.query
        diversity = isinstance(query, TimelineQuery) and query.diversity
        scored = self._score(task.posts, task.in_network, probabilities, task.weights, diversity=diversity)
        if isinstance(query, RankQuery):
            order = best_first(scored.base)
            return [RankedPost(**facts) for facts in self._explained(task.user, scored, order)]
        created_us = self.catalog.posts.created_us[task.posts]
        order = best_first(scored.final if query.order == "score" else created_us)[: query.k]
        rows = zip(
            self._explained(task.user, scored, order),
            *(column[order].tolist() for column in (scored.network, scored.diversity, scored.final)),
            strict=True,
        )
        return [
            TimelinePost(
                **facts,
                position=position,
                base_score=facts["score"],
                network_factor=network,
                diversity_factor=varied,
                final_score=final,
            )
            for position, (facts, network, varied, final) in enumerate(rows)
        ]

    def _score(
        self, posts: Rows, in_network: Flags, probabilities: Floats, weights: Floats, *, diversity: bool
    ) -> Scored:
        authors = self.catalog.posts.authors[posts]
        factor = self.config.out_of_network_factor
        varied = self.config.author_diversity if diversity else None
        return score(posts, authors, probabilities, weights, np.where(in_network, 1.0, factor), varied)

    def _explained(self, user: int, scored: Scored, order: Rows) -> list[dict[str, Any]]:
        """The fields of ``RankedPost`` for the posts at these places."""
        posts = scored.posts[order]
        authors = self.catalog.posts.authors[posts]
        columns = {
            "post_id": self.catalog.post_ids.take(posts).to_pylist(),
            "author_id": self.catalog.user_ids.take(authors).to_pylist(),
            "source": [_source(inside) for inside in np.isin(authors, self.catalog.followed(user)).tolist()],
            "probabilities": [self._by_task(row) for row in scored.probabilities[order].tolist()],
            "contributions": [self._by_task(row) for row in scored.contributions[order].tolist()],
            "score": scored.base[order].tolist(),
            "true_probabilities": self._true(user, posts),
            **self._entities.facts(posts),
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _true(self, user: int, posts: Rows) -> list[dict[str, float]] | list[None]:
        if self._truth is None or not len(posts):
            return [None] * len(posts)
        known = self._truth(np.full(len(posts), user), posts, np.full(len(posts), self.catalog.now_us))
        return [dict(zip(ENGAGEMENTS, row, strict=True)) for row in known.tolist()]

    def _by_task(self, values: Sequence[float]) -> dict[str, float]:
        return dict(zip(self.tasks, values, strict=True))


def _source(in_network: bool) -> SourceName:
    return "in_network" if in_network else "out_of_network"


_NONE: Rows = np.empty(0, np.int64)
