"""What is known of a user or a post, and which others are like it."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rookery.data.catalog import MEDIA, Catalog
from rookery.timeline.pool import Rows
from rookery.timeline.retrieval import Vectors
from rookery.twhin.retrieval import Neighbor, NeighborRequest, find_neighbors

_NUM_TOPICS = 5


class Entities:
    """Facts and likeness."""

    def __init__(self, catalog: Catalog, vectors: Vectors) -> None:
        self._catalog = catalog
        self._vectors = vectors
        self._most_active = np.argsort(-catalog.counts.users[:, 0], kind="stable")
        self._active_ids = catalog.user_ids.take(pa.array(self._most_active))

    def similar_users(self, user_id: str, k: int) -> list[Neighbor]:
        """The ``k`` nearest by TwHIN; none where the user has no vector."""
        return self._similar(self._vectors.user_type, user_id, k)

    def similar_posts(self, post_id: str, k: int) -> list[Neighbor]:
        """The ``k`` nearest by TwHIN; none where the post has no vector."""
        return self._similar(self._vectors.post_type, post_id, k)

    def users(self, prefix: str, limit: int) -> list[dict[str, Any]]:
        """Users by the beginning of their ids: whose id is just that, then those first who were shown most."""
        found = np.flatnonzero(pc.starts_with(self._active_ids, prefix).to_numpy(zero_copy_only=False))
        goes_on = pc.not_equal(self._active_ids.take(pa.array(found)), prefix).to_numpy(zero_copy_only=False)
        exact_first = found[np.argsort(goes_on, kind="stable")][:limit]
        return [self.user(int(row)) for row in self._most_active[exact_first]]

    def user(self, row: int) -> dict[str, Any]:
        """Numbers of a user, and the topics favourited most."""
        catalog, counts = self._catalog, self._catalog.counts.users[row]
        favorites = catalog.counts.user_topics[row, :, 1]
        liked = np.argsort(-favorites, kind="stable")[:_NUM_TOPICS]
        return {
            "id": catalog.user_ids[row].as_py(),
            "impressions": int(counts[0]),
            "favorites": int(counts[1]),
            "following": len(catalog.followed(row)),
            "followers": int(catalog.followers[row]),
            "posts": len(catalog.posts_of(row)),
            "muted": len(catalog.muted(row)),
            "joined_at": iso_time(int(catalog.snapshot.joined_us[row])),
            "topics": [
                {"topic": catalog.topic_names[topic], "favorites": int(favorites[topic])}
                for topic in liked.tolist()
                if favorites[topic]
            ],
        }

    def post(self, row: int) -> dict[str, Any]:
        """Numbers of a post."""
        catalog, counts = self._catalog, self._catalog.counts.posts[row]
        return {
            "id": catalog.post_ids[row].as_py(),
            "author_id": catalog.user_ids[int(catalog.posts.authors[row])].as_py(),
            "length": int(catalog.posts.lengths[row]),
            "impressions": int(counts[0]),
            "favorites": int(counts[1]),
            **{name: column[0] for name, column in self.facts(np.array([row])).items()},
        }

    def facts(self, rows: Rows) -> dict[str, list[str]]:
        """``created_at``, ``topic`` and ``media`` of posts, as columns."""
        posts, names = self._catalog.posts, self._catalog.topic_names
        return {
            "created_at": [iso_time(time_us) for time_us in posts.created_us[rows].tolist()],
            "topic": [names[topic] for topic in posts.topics[rows].tolist()],
            "media": [MEDIA[kind] for kind in posts.media[rows].tolist()],
        }

    def _similar(self, entity_type: str, entity_id: str, k: int) -> list[Neighbor]:
        source = self._vectors.source
        if source.vocabularies[entity_type].rows([entity_id])[0] < 0:
            return []
        return find_neighbors(source, NeighborRequest([entity_id], k, entity_type)).neighbors


def iso_time(time_us: int) -> str:
    """ISO 8601, UTC, to the second."""
    return datetime.fromtimestamp(time_us // 1_000_000, timezone.utc).isoformat()
