"""Which posts a timeline is chosen from: the newest of followed authors, and what TwHIN finds of others."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rookery.data.catalog import Catalog
from rookery.timeline.config import TimelineConfig
from rookery.timeline.pool import Flags, RecentPosts, Rows
from rookery.timeline.posts import SOURCES
from rookery.timeline.retrieval import PostSearch, Vectors

_HOUR_US = 3_600_000_000


@dataclass(frozen=True)
class CandidateRows:
    """Rows of posts ``[n]``, whether each is in network, and what it was retrieved by: minus its age in hours there,
    TwHIN's score elsewhere. Both sources are best first.
    """

    posts: Rows
    in_network: Flags
    retrieval_scores: NDArray[np.float64]


class Candidates:
    """Finds candidates for a user."""

    def __init__(
        self, catalog: Catalog, config: TimelineConfig, recent: RecentPosts, vectors: Vectors, search: PostSearch
    ) -> None:
        self._catalog = catalog
        self._config = config
        self._recent = recent
        self._vectors = vectors
        self._search = search

    def of(self, user: int, sources: AbstractSet[str] = frozenset(SOURCES)) -> CandidateRows:
        """The candidates for a user (a row of the catalog), in network first."""
        allowed = self._recent.allowed(user, self._config.filters)
        followed = self._recent.followed(user)
        inside, ages = self._in_network(allowed & followed if "in_network" in sources else None)
        outside, scores = self._out_of_network(user, allowed & ~followed if "out_of_network" in sources else None)
        return CandidateRows(
            self._recent.rows[np.concatenate((inside, outside))],
            np.arange(len(inside) + len(outside)) < len(inside),
            np.concatenate((-ages, scores)),
        )

    def _in_network(self, allowed: Flags | None) -> tuple[Rows, NDArray[np.float64]]:
        places: Rows = np.flatnonzero(allowed)[: self._config.num_in_network] if allowed is not None else _NONE
        created_us = self._catalog.posts.created_us[self._recent.rows[places]]
        return places, (self._catalog.now_us - created_us) / _HOUR_US

    def _out_of_network(self, user: int, allowed: Flags | None) -> tuple[Rows, NDArray[np.float64]]:
        if allowed is None or not self._config.num_out_of_network:
            return _NONE, np.empty(0)
        recent = self._catalog.counts.recent[user]
        history = recent[recent >= 0].astype(np.int64)
        question = self._vectors.question(user, history)
        return self._search.search(question, allowed, self._config.num_out_of_network)


_NONE: Rows = np.empty(0, np.int64)
