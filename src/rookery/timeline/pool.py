"""The recent posts, and which of them a user may be shown."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rookery.data.catalog import Catalog
from rookery.timeline.config import Filters

Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]

_HOUR_US = 3_600_000_000


class RecentPosts:
    """Posts of the last hours, newest first. A place is a position among them, a row one among all posts."""

    def __init__(self, catalog: Catalog, max_age_hours: float) -> None:
        self._catalog = catalog
        created_us = catalog.posts.created_us  # never falls
        oldest = np.searchsorted(created_us, catalog.now_us - round(max_age_hours * _HOUR_US))
        self.rows: Rows = np.arange(oldest, len(created_us), dtype=np.int64)[::-1].copy()
        self.authors: Rows = catalog.posts.authors[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def allowed(self, user: int, filters: Filters) -> Flags:
        """The places ``[recent]`` that may be shown to a user: not the own ones, none that a filter takes out."""
        allowed: Flags = self.authors != user
        if filters.seen:
            allowed[self._places(self._catalog.seen(user))] = False
        if filters.muted_authors:
            allowed &= ~self._of_authors(self._catalog.muted(user))
        return allowed

    def followed(self, user: int) -> Flags:
        """The places ``[recent]`` of the authors whom a user follows."""
        return self._of_authors(self._catalog.followed(user))

    def _of_authors(self, authors: Rows) -> Flags:
        wanted = np.zeros(len(self._catalog.user_ids), np.bool_)  # a byte a user: faster than a search for each post
        wanted[authors] = True
        return wanted[self.authors]

    def _places(self, rows: Rows) -> Rows:
        """The places of those rows that are recent."""
        places = len(self._catalog.posts) - 1 - rows
        return places[places < len(self)]
