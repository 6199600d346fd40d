"""A user's timeline: candidates, probabilities, weighted sums, and an order that is varied and explains itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from rookery.data.catalog import Catalog
from rookery.ranker.export import RankerExport
from rookery.timeline.bundle import Bundle
from rookery.timeline.candidates import SOURCES, CandidateRows, Candidates, SourceName
from rookery.timeline.config import TimelineConfig
from rookery.timeline.entities import Entities
from rookery.timeline.pool import Flags, RecentPosts, Rows
from rookery.timeline.retrieval import PostSearch, UserVectors
from rookery.timeline.scorer import Scorer
from rookery.timeline.scoring import (
    Floats,
    best_first,
    contributions,
    diversity_factors,
    of_positive,
    weight_vector,
)
from rookery.twhin.retrieval import Neighbor

Order: TypeAlias = Literal["score", "recency"]


@dataclass(frozen=True)
class Candidate:
    """A post that may come into a timeline, and what it was retrieved by: minus its age in hours in network, TwHIN's
    score out of network.
    """

    post_id: str
    author_id: str
    source: SourceName
    retrieval_score: float


@dataclass(frozen=True)
class RankedPost:
    """A post and why it has its score: ``contributions`` are weight times probability, ``score`` is their sum."""

    post_id: str
    author_id: str
    source: SourceName
    probabilities: dict[str, float]
    contributions: dict[str, float]
    score: float


@dataclass(frozen=True)
class TimelinePost(RankedPost):
    """A post in its place: ``final_score = base_score · network_factor · diversity_factor``.

    ``base_score`` is ``score``.
    """

    position: int
    base_score: float
    diversity_factor: float
    network_factor: float
    final_score: float
    created_at: str
    """ISO 8601, UTC."""
    topic: str
    media: str


@dataclass(frozen=True)
class Scored:
    """Pairs of user and post with what they are ordered by: ``[n]``, of tasks ``[n, T]``."""

    posts: Rows
    in_network: Flags
    probabilities: Floats
    contributions: Floats
    base: Floats
    network: Floats
    diversity: Floats

    @property
    def final(self) -> Floats:
        """``base · network · diversity``."""
        scores: Floats = self.base * self.network * self.diversity
        return scores


class Timeline:
    """Ranks for the users of a catalog, as of its moment. Nothing changes after it was made: threads may share it."""

    def __init__(self, bundle: Bundle, ranker: RankerExport | None = None) -> None:
        """``ranker`` replaces that of the bundle, for comparison."""
        self.bundle = bundle
        self.catalog: Catalog = bundle.catalog
        self.config: TimelineConfig = bundle.config
        self._scorer = Scorer(bundle.catalog, ranker or bundle.ranker)
        self.tasks = self._scorer.tasks
        self._weights = weight_vector(self.config.weights_by_task(), self.tasks)
        self.recent = RecentPosts(bundle.catalog, self.config.max_age_hours)
        self._vectors = UserVectors(bundle.twhin, bundle.catalog, self.config.interests.relation)
        index = None if bundle.index is None else bundle.index.index
        search = PostSearch(self._vectors, self.recent, index)
        self._candidates = Candidates(bundle.catalog, self.config, self.recent, self._vectors, search)
        self._entities = Entities(bundle.catalog, self._vectors)

    @classmethod
    def open(cls, bundle: Path) -> Timeline:
        """Raises ``DataError`` for what is no bundle, or is damaged."""
        return cls(Bundle.open(bundle))

    @property
    def weights(self) -> dict[str, float]:
        """The weights that are used where none are given."""
        return dict(zip(self.tasks, self._weights.tolist(), strict=True))

    @property
    def version(self) -> str:
        """Changes with the bundle's files."""
        return self.bundle.manifest.version

    def candidates(self, user_id: str) -> list[Candidate]:
        """The posts that the user's timeline is chosen from, in network first. Raises ``UnknownId``."""
        found = self._candidates.of(self.catalog.user_row(user_id))
        names = self._names(found.posts, found.in_network)
        return [Candidate(*each, score) for each, score in zip(names, found.retrieval_scores.tolist(), strict=True)]

    def rank(
        self, user_id: str, post_ids: Sequence[str], weights: Mapping[str, float] | None = None
    ) -> list[RankedPost]:
        """These posts for this user by falling score, without factors. Raises ``UnknownId`` and ``UserError``."""
        return self.rank_batch([(user_id, post_ids)], weights)[0]

    def rank_batch(
        self, requests: Sequence[tuple[str, Sequence[str]]], weights: Mapping[str, float] | None = None
    ) -> list[list[RankedPost]]:
        """``rank`` for several users in one pass of the model; ``weights`` hold for all."""
        chosen = self._weights_of(weights)
        users = [self.catalog.user_row(user) for user, _ in requests]
        posts = [np.array([self.catalog.post_row(post) for post in ids], np.int64) for _, ids in requests]
        lengths = [len(rows) for rows in posts]
        pairs = np.repeat(np.array(users, np.int64), lengths)
        probabilities = self._scorer.probabilities(pairs, np.concatenate([np.empty(0, np.int64), *posts]))
        parts = np.split(probabilities, np.cumsum(lengths)[:-1])
        return [
            self._ranked(rows, self._is_followed(user, rows), part, chosen)
            for user, rows, part in zip(users, posts, parts, strict=True)
        ]

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
        user = self.catalog.user_row(user_id)
        scored = self.scored(user, self._candidates.of(user, sources), self._weights_of(weights), diversity=diversity)
        by = scored.final if order == "score" else self.catalog.posts.created_us[scored.posts].astype(np.float64)
        return self._placed(scored, best_first(by)[:k])

    def scored(self, user: int, found: CandidateRows, weights: Floats, *, diversity: bool = True) -> Scored:
        """Candidates of a user (a row) with probabilities, contributions and factors, in their order."""
        users = np.full(len(found.posts), user)
        probabilities = self._scorer.probabilities(users, found.posts)
        added = contributions(probabilities, weights)
        base = added.sum(1)
        factor = np.where(found.in_network, 1.0, self.config.out_of_network_factor)
        network = of_positive(base, factor)
        repeats = np.ones(len(base))
        if diversity:
            authors = self.catalog.posts.authors[found.posts]
            repeats = of_positive(base, diversity_factors(base * network, authors, self.config.author_diversity))
        return Scored(found.posts, found.in_network, probabilities, added, base, network, repeats)

    def candidate_rows(self, user: int) -> CandidateRows:
        """``candidates`` of a row of the catalog, as rows."""
        return self._candidates.of(user)

    def neighbors(self, user_id: str, k: int) -> list[Neighbor]:
        """Users most like this one by TwHIN; none if it has no vector. Raises ``UnknownId``."""
        self.catalog.user_row(user_id)
        return self._entities.alike(self._vectors.user_type, user_id, k)

    def similar(self, post_id: str, k: int) -> list[Neighbor]:
        """Posts most like this one by TwHIN, of any age; none if it has no vector. Raises ``UnknownId``."""
        self.catalog.post_row(post_id)
        return self._entities.alike(self._vectors.post_type, post_id, k)

    def users(self, prefix: str = "", limit: int = 20) -> list[dict[str, Any]]:
        """Users whose ids begin with ``prefix``, those first who were shown most."""
        return self._entities.users(prefix, limit)

    def user(self, user_id: str) -> dict[str, Any]:
        """What is known of a user. Raises ``UnknownId``."""
        return self._entities.user(self.catalog.user_row(user_id))

    def post(self, post_id: str) -> dict[str, Any]:
        """What is known of a post. Raises ``UnknownId``."""
        return self._entities.post(self.catalog.post_row(post_id))

    def _weights_of(self, weights: Mapping[str, float] | None) -> Floats:
        return self._weights if weights is None else weight_vector(weights, self.tasks)

    def _is_followed(self, user: int, posts: Rows) -> Flags:
        return np.isin(self.catalog.posts.authors[posts], self.catalog.followed(user))

    def _names(self, posts: Rows, in_network: Flags) -> list[tuple[str, str, SourceName]]:
        post_ids = self.catalog.post_ids.take(posts).to_pylist()
        author_ids = self.catalog.user_ids.take(self.catalog.posts.authors[posts]).to_pylist()
        sources = [SOURCES[0] if inside else SOURCES[1] for inside in in_network.tolist()]
        return list(zip(post_ids, author_ids, sources, strict=True))

    def _ranked(self, posts: Rows, in_network: Flags, probabilities: Floats, weights: Floats) -> list[RankedPost]:
        added = contributions(probabilities, weights)
        scores = added.sum(1)
        order = best_first(scores)
        rows = zip(
            self._names(posts[order], in_network[order]),
            probabilities[order].tolist(),
            added[order].tolist(),
            scores[order].tolist(),
            strict=True,
        )
        return [
            RankedPost(*names, self._by_task(chances), self._by_task(parts), score)
            for names, chances, parts, score in rows
        ]

    def _placed(self, scored: Scored, order: Rows) -> list[TimelinePost]:
        names = self._names(scored.posts[order], scored.in_network[order])
        facts = [self._entities.facts(row) for row in scored.posts[order].tolist()]
        final = scored.final
        return [
            TimelinePost(
                *names[position],
                self._by_task(scored.probabilities[place].tolist()),
                self._by_task(scored.contributions[place].tolist()),
                score=float(scored.base[place]),
                position=position,
                base_score=float(scored.base[place]),
                diversity_factor=float(scored.diversity[place]),
                network_factor=float(scored.network[place]),
                final_score=float(final[place]),
                created_at=facts[position]["created_at"],
                topic=facts[position]["topic"],
                media=facts[position]["media"],
            )
            for position, place in enumerate(order.tolist())
        ]

    def _by_task(self, values: Sequence[float]) -> dict[str, float]:
        return dict(zip(self.tasks, values, strict=True))
