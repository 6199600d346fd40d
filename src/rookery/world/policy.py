"""What the service shows: sessions, each filled at random, by recency or by popularity.

Every policy fills ``WIDTH`` places of a session with candidates, best first, from posts of the last ``MAX_AGE_HOURS``;
what the user wrote or was shown already is taken out, and the session keeps as many of the rest as it has room for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from rookery.data.adjacency import Adjacency
from rookery.data.catalog_counts import Counts, Posts
from rookery.data.catalog_features import DAY_US, HOUR_US
from rookery.world.draws import Floats, Rows, by_weight, cumulate

POLICY_SHARES: Mapping[str, float] = MappingProxyType({"random": 0.25, "recency": 0.4, "popularity": 0.35})
POLICIES = tuple(POLICY_SHARES)

SHORTEST, LONGEST = 5, 15
"""Posts of a session."""

WIDTH = 24

MAX_AGE_HOURS = 72

_P_TOPICAL = 0.6
_POPULARITY_HOURS = 24.0


@dataclass(frozen=True)
class Sessions:
    """Sessions in order of time, ``[sessions]`` each; ``policies`` are places in ``POLICIES``."""

    users: Rows
    times_us: Rows
    policies: Rows
    lengths: Rows

    def __len__(self) -> int:
        return len(self.users)

    def slice(self, first: int, last: int) -> Sessions:
        """Those from ``first`` on, before ``last``."""
        return Sessions(*(column[first:last] for column in vars(self).values()))


@dataclass(frozen=True)
class Shelf:
    """What can be shown on a day: posts up to its end, who follows whom, and the counts of the days before."""

    posts: Posts
    follows: Adjacency
    followers: Rows
    counts: Counts
    midnight_us: int

    def candidates(self, rng: np.random.Generator, sessions: Sessions) -> Rows:
        """Post rows ``[sessions, WIDTH]``, -1 where a place stays empty. All were written before the session."""
        found = np.empty((len(sessions), WIDTH), np.int64)
        for policy, fill in enumerate((self._random, self._recency, self._popularity)):
            chosen = np.flatnonzero(sessions.policies == policy)
            users, times = sessions.users[chosen], sessions.times_us[chosen]
            found[chosen] = fill(rng, users, times)
        return found

    def _random(self, rng: np.random.Generator, users: Rows, times_us: Rows) -> Rows:
        """Uniform over what is young enough."""
        first, last = self._young(times_us)
        drawn = first[:, None] + np.floor(rng.random((len(users), WIDTH)) * (last - first)[:, None]).astype(np.int64)
        return np.where(last[:, None] > first[:, None], drawn, -1)

    def _recency(self, rng: np.random.Generator, users: Rows, times_us: Rows) -> Rows:
        """Of followed authors, drawn, the last post or the one before; newest first, then random ones."""
        following = self.follows.lengths()[users]
        places = np.floor(rng.random((len(users), WIDTH)) * following[:, None]).astype(np.int64)
        authors = self.follows.values[
            np.minimum(self.follows.offsets[users][:, None] + places, len(self.follows.values) - 1)
        ]
        order, keys = self._by_author
        keys_now = authors * self._span_us + (times_us - self._epoch_us)[:, None]
        index = np.searchsorted(keys, keys_now.ravel(), side="right").reshape(keys_now.shape) - 1
        index -= rng.random(index.shape) >= 0.7
        found = order[np.maximum(index, 0)]
        oldest = times_us[:, None] - MAX_AGE_HOURS * HOUR_US
        valid = (index >= 0) & (self.posts.authors[found] == authors) & (self.posts.created_us[found] >= oldest)
        valid &= following[:, None] > 0
        newest_first = np.argsort(np.where(valid, -found, 0), axis=1, kind="stable")  # rows rise with creation
        newest = np.take_along_axis(np.where(valid, found, -1), newest_first, axis=1)
        return np.where(newest >= 0, newest, self._random(rng, users, times_us))

    def _popularity(self, rng: np.random.Generator, users: Rows, times_us: Rows) -> Rows:
        """By weight of favourites and followers, over all posts or within a topic that the user favourites."""
        shape = (len(users), WIDTH)
        anywhere = np.broadcast_to(np.stack(self._young(times_us))[:, :, None], (2, *shape))
        topics = self._favorite_topics(rng, users)
        order, keys, cumulative = self._by_topic
        now = topics * self._span_us + (times_us - self._epoch_us)[:, None]
        within = (np.searchsorted(keys, now - MAX_AGE_HOURS * HOUR_US), np.searchsorted(keys, now, side="right"))
        in_topic = by_weight(rng, cumulative, *within)
        overall = by_weight(rng, self._cumulative, anywhere[0], anywhere[1])
        is_topical = (rng.random(shape) < _P_TOPICAL) & (in_topic >= 0)
        return np.where(is_topical, order[in_topic], overall)

    def _favorite_topics(self, rng: np.random.Generator, users: Rows) -> Rows:
        """A topic for each place ``[sessions, WIDTH]``, by the user's favourites on it, one more than there are."""
        weights = np.cumsum(self.counts.user_topics[users, :, 1] + 1.0, axis=1)
        drawn = rng.random((len(users), WIDTH)) * weights[:, -1:]
        return np.asarray((drawn[:, :, None] >= weights[:, None, :]).sum(-1))

    def _young(self, times_us: Rows) -> tuple[Rows, Rows]:
        """The interval of posts that each time may show."""
        created = self.posts.created_us
        oldest = times_us - MAX_AGE_HOURS * HOUR_US
        return np.searchsorted(created, oldest), np.searchsorted(created, times_us, side="right")

    @cached_property
    def _epoch_us(self) -> int:
        return int(self.posts.created_us[0]) - MAX_AGE_HOURS * HOUR_US

    @cached_property
    def _span_us(self) -> int:
        """More than lies between any two times, so that (author, time) is one sorted number."""
        return self.midnight_us + 2 * DAY_US - self._epoch_us

    @cached_property
    def _by_author(self) -> tuple[Rows, Rows]:
        keys = self.posts.authors * self._span_us + (self.posts.created_us - self._epoch_us)
        order = np.argsort(keys, kind="stable")
        return order, keys[order]

    @cached_property
    def _by_topic(self) -> tuple[Rows, Rows, Floats]:
        keys = self.posts.topics.astype(np.int64) * self._span_us + (self.posts.created_us - self._epoch_us)
        order = np.argsort(keys, kind="stable")
        return order, keys[order], cumulate(self._weights[order])

    @cached_property
    def _cumulative(self) -> Floats:
        return cumulate(self._weights)

    @cached_property
    def _weights(self) -> Floats:
        """Popularity of each post: favourites of the days before and followers of the author, fading with age."""
        favorites = self.counts.posts[:, 1]
        fame = np.sqrt(1.0 + self.followers[self.posts.authors])
        age_hours = (self.midnight_us - self.posts.created_us) / HOUR_US
        fading = np.exp(-np.clip(age_hours, -24.0, MAX_AGE_HOURS + 48.0) / _POPULARITY_HOURS)
        return np.asarray((1.0 + favorites) * fame * fading)


def choose_unique(candidates: Rows, allowed: NDArray[np.bool_], lengths: Rows) -> NDArray[np.bool_]:
    """Which candidates ``[sessions, places]`` are shown: the first of each post that is allowed, up to the length."""
    order = np.argsort(candidates, axis=1, kind="stable")
    ordered = np.take_along_axis(candidates, order, axis=1)
    again = np.zeros(candidates.shape, bool)
    np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    kept = allowed & ~again
    return np.asarray(kept & (np.cumsum(kept, axis=1) <= lengths[:, None]))
