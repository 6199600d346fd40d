"""What a timeline is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

SourceName: TypeAlias = Literal["in_network", "out_of_network"]
SOURCES: tuple[SourceName, ...] = ("in_network", "out_of_network")
Order: TypeAlias = Literal["score", "recency"]

Truth: TypeAlias = Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]
"""True probabilities ``[pairs, 10]`` in the order of ``ENGAGEMENTS``, of users, posts (rows) and times in µs."""


@dataclass(frozen=True)
class RankQuery:
    """Rank these posts for this user; without ``weights`` by those of the bundle."""

    user_id: str
    post_ids: Sequence[str]
    weights: Mapping[str, float] | None = None


@dataclass(frozen=True)
class TimelineQuery:
    """The first ``k`` posts of a user's timeline; by recency the same candidates, the newest first."""

    user_id: str
    k: int
    weights: Mapping[str, float] | None = None
    sources: AbstractSet[str] = frozenset(SOURCES)
    diversity: bool = True
    order: Order = "score"


Query: TypeAlias = RankQuery | TimelineQuery


@dataclass(frozen=True)
class Candidate:
    """A post that may come into a timeline, and what it was retrieved by: minus its age in hours in network, TwHIN's
    score out of network.
    """

    post_id: str
    author_id: str
    source: SourceName
    retrieval_score: float


@dataclass(frozen=True, kw_only=True)
class RankedPost:
    """A post and why it has its score: ``contributions`` are weight times probability, ``score`` is their sum."""

    post_id: str
    author_id: str
    source: SourceName
    created_at: str
    """ISO 8601, UTC."""
    topic: str
    media: str
    probabilities: dict[str, float]
    contributions: dict[str, float]
    score: float
    true_probabilities: dict[str, float] | None = None
    """Where the truth is known: in a simulated world."""


@dataclass(frozen=True, kw_only=True)
class TimelinePost(RankedPost):
    """A post in its place: ``final_score = base_score · network_factor · diversity_factor``.

    ``base_score`` is ``score``.
    """

    position: int
    base_score: float
    network_factor: float
    diversity_factor: float
    final_score: float
