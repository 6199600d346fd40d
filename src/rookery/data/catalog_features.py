"""The feature columns of a pair of user and post, from what a service knew at the midnight before."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rookery.data.adjacency import Adjacency
from rookery.data.catalog_counts import COUNTED, Counts, Posts

MEDIA = ("none", "image", "video")

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US

_PRIOR_IMPRESSIONS = 20.0
"""A rate over n impressions is mixed with as many of the mean rate: one favourite in one impression is no 100%."""
_RATES = dict(zip(COUNTED, ("favorite", "retweet", "reply", "click", "negative"), strict=True))

Rows: TypeAlias = NDArray[np.int64]
Columns: TypeAlias = "dict[str, np.ndarray | pa.Array]"


@dataclass(frozen=True)
class Snapshot:
    """Users, posts, who follows whom, and the counts of the days before."""

    user_ids: pa.StringArray
    joined_us: NDArray[np.int64]
    follows: Adjacency
    """Of each user the authors, sorted."""
    post_ids: pa.StringArray
    posts: Posts
    counts: Counts

    @cached_property
    def followers(self) -> Rows:
        """How many follow each user ``[users]``."""
        return np.bincount(self.follows.values, minlength=len(self.user_ids))

    @cached_property
    def _follow_keys(self) -> Rows:
        return self.follows.owners() * len(self.user_ids) + self.follows.values

    def follow_places(self, users: Rows, authors: Rows) -> Rows:
        """The place ``[pairs]`` of user → author among all follows; -1 where the user does not follow the author."""
        keys = users * len(self.user_ids) + authors
        if not len(self._follow_keys):
            return np.full(len(keys), -1)
        places = np.minimum(np.searchsorted(self._follow_keys, keys), len(self._follow_keys) - 1)
        return np.where(self._follow_keys[places] == keys, places, -1)

    def features(
        self,
        users: Rows,
        posts: Rows,
        times_us: Rows,
        *,
        shown_today: Rows | None = None,
        author_repeats: Rows | None = None,
    ) -> Columns:
        """All feature columns of pairs ``[pairs]`` that would be shown at ``times_us``.

        ``shown_today``: posts that the user was shown since midnight; ``author_repeats``: posts of the same author
        higher up in the same response. Both are 0 where they are left out.
        """
        authors = self.posts.authors[posts]
        none = np.zeros(len(users), np.int32)
        return {
            "user_id": self.user_ids.take(pa.array(users)),
            "post_id": self.post_ids.take(pa.array(posts)),
            "author_id": self.user_ids.take(pa.array(authors)),
            "hour": (times_us % DAY_US // HOUR_US).astype(np.int8),
            "shown_today": none if shown_today is None else shown_today.astype(np.int32),
            "author_repeats": none.astype(np.int8) if author_repeats is None else author_repeats.astype(np.int8),
            **self._of_people(users, authors, times_us),
            **self._of_post(posts, times_us),
            **self._counts(users, authors, posts),
            **self._of_pair(users, authors, posts),
            **self._recent(users),
        }

    def _of_people(self, users: Rows, authors: Rows, times_us: Rows) -> Columns:
        columns: Columns = {}
        following = self.follows.lengths()
        for name, rows in (("user", users), ("author", authors)):
            columns[f"{name}_followers"] = self.followers[rows].astype(np.int32)
            columns[f"{name}_following"] = following[rows].astype(np.int32)
            columns[f"{name}_age_days"] = ((times_us - self.joined_us[rows]) / DAY_US).astype(np.float32)
        return columns

    def _of_post(self, posts: Rows, times_us: Rows) -> Columns:
        media = self.posts.media[posts].astype(np.int32)
        return {
            "post_age_hours": ((times_us - self.posts.created_us[posts]) / HOUR_US).astype(np.float32),
            "post_media": pa.array(MEDIA).take(pa.array(media)),
            "post_topic": self.posts.topics[posts],
            "post_length": self.posts.lengths[posts],
        }

    def _counts(self, users: Rows, authors: Rows, posts: Rows) -> Columns:
        """Impressions, and rates that are drawn towards the mean of everything shown so far."""
        total = self.counts.topics.sum(0)
        prior = total[1:] / max(1, int(total[0]))
        topics = self.posts.topics[posts]
        columns: Columns = {}
        for name, table, rows in (
            ("user", self.counts.users, users),
            ("author", self.counts.authors, authors),
            ("post", self.counts.posts, posts),
            ("topic", self.counts.topics, topics),
        ):
            counts = table[rows]  # [pairs, 6]
            columns[f"{name}_impressions"] = counts[:, 0].astype(np.int32)
            for column, rate in enumerate(_RATES.values()):
                columns[f"{name}_{rate}_rate"] = _smoothed(counts[:, column + 1], counts[:, 0], prior[column])
        return columns

    def _of_pair(self, users: Rows, authors: Rows, posts: Rows) -> Columns:
        by_topic = self.counts.user_topics[users, self.posts.topics[posts]]  # [pairs, 2]
        own = self.counts.users[users]
        own_rate = own[:, 1] / np.maximum(own[:, 0], 1)
        places = self.follow_places(users, authors)
        followed = places >= 0
        by_author = np.zeros((len(users), 2), np.int32)
        by_author[followed] = self.counts.follows[places[followed]]
        return {
            "in_network": followed.astype(np.int8),
            "user_topic_impressions": by_topic[:, 0],
            "user_topic_favorite_rate": _smoothed(by_topic[:, 1], by_topic[:, 0], own_rate),
            "followed_author_impression_count": by_author[:, 0],
            "followed_author_favorite_count": by_author[:, 1],
        }

    def _recent(self, users: Rows) -> Columns:
        recent = self.counts.recent[users]
        is_there = recent >= 0
        offsets = pa.array(np.concatenate(([0], np.cumsum(is_there.sum(1)))), pa.int32())
        favorites = recent[is_there]
        topics = pa.array(self.posts.topics[favorites].astype(np.int64))
        authors = self.user_ids.take(pa.array(self.posts.authors[favorites]))
        return {
            "recent_topics": pa.ListArray.from_arrays(offsets, topics),
            "recent_authors": pa.ListArray.from_arrays(offsets, authors),
        }


def _smoothed(count: NDArray[np.integer], impressions: NDArray[np.integer], prior: np.ndarray | float) -> np.ndarray:
    """``(count + 20·prior) / (impressions + 20)``."""
    return ((count + _PRIOR_IMPRESSIONS * prior) / (impressions + _PRIOR_IMPRESSIONS)).astype(np.float32)
