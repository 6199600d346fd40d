"""What a service has counted of its users, authors, posts and topics up to a midnight."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from rookery.data.adjacency import Adjacency
from rookery.data.engagements import ENGAGEMENTS

COUNTED = ("is_favorited", "is_retweeted", "is_replied", "is_good_clicked_v2", "is_negative_feedback")
"""The engagements whose counts are features; the others are too rare, or follow from these."""

NUM_RECENT = 10
"""How many of a user's last favourites are kept."""

_COLUMNS = [ENGAGEMENTS.index(name) for name in COUNTED]
_FAVORITED = ENGAGEMENTS.index("is_favorited")

Ints = NDArray[np.integer]


@dataclass(frozen=True)
class Posts:
    """Posts in order of creation, ``[posts]`` each: ``created_us`` never falls."""

    authors: NDArray[np.int64]
    topics: NDArray[np.int16]
    media: NDArray[np.int8]
    """A place in ``MEDIA``."""
    lengths: NDArray[np.int16]
    """Characters."""
    created_us: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.authors)

    def then(self, later: Posts) -> Posts:
        """These, and ``later`` ones behind them."""
        return Posts(
            *(np.concatenate((getattr(self, field.name), getattr(later, field.name))) for field in fields(self))
        )


@dataclass(frozen=True)
class Outcomes:
    """Impressions and what came of them: ``users``, ``posts`` ``[rows]`` in order of time, ``labels [rows, 10]``."""

    users: NDArray[np.int64]
    posts: NDArray[np.int64]
    labels: NDArray[np.int8]


@dataclass(frozen=True)
class Counts:
    """Impressions, then each of ``COUNTED``: ``users``, ``authors`` and ``posts`` ``[·, 6]``, ``topics [topics, 6]``.

    ``user_topics [users, topics, 2]`` and ``follows [follows, 2]`` have impressions and favourites alone, and a pair
    of user and author is counted where the user follows the author: so the counts are bounded by the society, however
    long the log. ``recent [users, NUM_RECENT]`` are the posts last favourited, the latest last, -1 where there is none.
    """

    users: NDArray[np.int32]
    authors: NDArray[np.int32]
    posts: NDArray[np.int32]
    topics: NDArray[np.int64]
    user_topics: NDArray[np.int32]
    follows: NDArray[np.int32]
    recent: NDArray[np.int32]

    @staticmethod
    def zero(num_users: int, num_topics: int, num_follows: int) -> Counts:
        """Of a service that has shown nothing, and has no posts yet."""
        width = 1 + len(COUNTED)
        return Counts(
            users=np.zeros((num_users, width), np.int32),
            authors=np.zeros((num_users, width), np.int32),
            posts=np.zeros((0, width), np.int32),
            topics=np.zeros((num_topics, width), np.int64),
            user_topics=np.zeros((num_users, num_topics, 2), np.int32),
            follows=np.zeros((num_follows, 2), np.int32),
            recent=np.full((num_users, NUM_RECENT), -1, np.int32),
        )

    def with_posts(self, num_posts: int) -> Counts:
        """The same arrays, grown for posts that nobody has seen."""
        grown = np.zeros((num_posts, self.posts.shape[1]), np.int32)
        grown[: len(self.posts)] = self.posts
        return Counts(**{**vars(self), "posts": grown})

    def add(self, outcomes: Outcomes, posts: Posts, follow_places: NDArray[np.int64]) -> None:
        """Count ``outcomes`` in place; ``follow_places [rows]`` are places among the follows, -1 for none."""
        users, shown = outcomes.users, outcomes.posts
        authors, topics = posts.authors[shown], posts.topics[shown].astype(np.int64)
        events = np.concatenate((np.ones((len(users), 1), np.int8), outcomes.labels[:, _COLUMNS]), axis=1)
        for table, rows in ((self.users, users), (self.authors, authors), (self.posts, shown), (self.topics, topics)):
            for column, happened in enumerate(events.T):
                np.add.at(table[:, column], rows[happened == 1], 1)
        favorited = outcomes.labels[:, _FAVORITED] == 1
        followed = follow_places >= 0
        for column, rows_of in enumerate((np.ones_like(favorited), favorited)):
            np.add.at(self.user_topics[:, :, column], (users[rows_of], topics[rows_of]), 1)
            np.add.at(self.follows[:, column], follow_places[rows_of & followed], 1)
        self._remember(users[favorited], shown[favorited])

    def _remember(self, users: NDArray[np.int64], favorites: NDArray[np.int64]) -> None:
        """Append the day's favourites to those of before and keep the last."""
        latest = Adjacency.in_order(users, len(self.recent))
        num_new = latest.lengths()
        touched = np.flatnonzero(num_new)
        places = num_new[touched, None] + np.arange(NUM_RECENT)  # in the old ones and the new ones, end to end
        old = np.take_along_axis(self.recent[touched], np.minimum(places, NUM_RECENT - 1), axis=1)
        new = latest.offsets[touched, None] + np.maximum(places - NUM_RECENT, 0)
        self.recent[touched] = np.where(places < NUM_RECENT, old, favorites[latest.values[new]])
