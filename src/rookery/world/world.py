"""A generated world, opened: its catalog, and the true probabilities of whatever could be shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rookery.data.catalog import Catalog
from rookery.world.draws import Floats, Rows
from rookery.world.laws import Showing, causes_of, engagement_probabilities, event_probabilities
from rookery.world.manifest import verify_world
from rookery.world.posts import DrawnPosts
from rookery.world.society import Society, load_society


@dataclass(frozen=True)
class World:
    """The state at the end of the log, and what only the simulation knows."""

    folder: Path
    catalog: Catalog
    society: Society
    qualities: np.ndarray
    """Of each post ``[posts]``."""
    intercepts: Floats

    @staticmethod
    def open(folder: Path) -> World:
        """Read a world. Raises ``DataError`` for what is none, of another format, or damaged."""
        verify_world(folder)
        society, latent = load_society(folder / "society.safetensors")
        catalog = Catalog.open(folder / "catalog")
        return World(folder, catalog, society, latent["post_qualities"], latent["intercepts"])

    def true_probabilities(self, user_rows: Rows, post_rows: Rows, times_us: Rows) -> Floats:
        """Of each engagement ``[pairs, 10]``, were the post the first and only one that the user sees on the day."""
        none = np.zeros(len(user_rows), np.int64)
        showing = Showing(user_rows, post_rows, times_us, positions=none, author_repeats=none, shown_today=none)
        snapshot = self.catalog.snapshot
        follows = snapshot.follow_places(user_rows, snapshot.posts.authors[post_rows]) >= 0
        causes = causes_of(self.society, DrawnPosts(snapshot.posts, self.qualities), showing, follows)
        return engagement_probabilities(event_probabilities(causes, self.intercepts))
