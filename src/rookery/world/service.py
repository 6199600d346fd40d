"""The simulated service: it shows posts, sees what comes of it, and counts it at midnight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rookery.data.adjacency import Adjacency
from rookery.data.catalog import Catalog
from rookery.data.catalog_counts import Counts, Outcomes
from rookery.data.catalog_features import DAY_US, Snapshot
from rookery.data.engagements import ENGAGEMENTS
from rookery.world.config import WorldConfig
from rookery.world.draws import Floats, Rows, Stream, cumulate, generator
from rookery.world.laws import (
    Causes,
    Showing,
    causes_of,
    draw_engagements,
    engagement_probabilities,
    event_probabilities,
)
from rookery.world.policy import (
    LONGEST,
    MAX_AGE_HOURS,
    POLICY_SHARES,
    SHORTEST,
    Sessions,
    Shelf,
    choose_unique,
)
from rookery.world.posts import DrawnPosts, draw_posts, times_of_day
from rookery.world.shown import ShownTable
from rookery.world.society import Society

FIRST_DAY_US = 1_767_225_600_000_000
"""2026-01-01 00:00 UTC."""

DAYS_BEFORE = MAX_AGE_HOURS // 24
"""Days that have posts, but no impressions: so the first day has posts to show."""

SESSIONS_PER_CHUNK = 12_500
"""About 125,000 impressions are in memory at once."""

SEEN_DAYS = MAX_AGE_HOURS // 24
"""A post that was shown before them is too old to be shown again."""

TOPICS = (
    *("football", "cooking", "politics", "music", "films", "travel", "science", "games", "fashion", "cats", "books"),
    *("gardens", "cycling", "history", "markets", "space", "comics", "health", "photography", "theatre", "chess"),
    *("architecture", "weather", "languages"),
)

_NEGATIVE = ENGAGEMENTS.index("is_negative_feedback")


@dataclass(frozen=True)
class Chunk:
    """Impressions in order of time, and what came of them."""

    showing: Showing
    sessions: Rows
    """A number of the session of each row, unique within the day."""
    policies: Rows
    causes: Causes
    probabilities: Floats
    labels: NDArray[np.int8]


class Service:
    """Goes through the days of a world; ``snapshot`` is what it knows since the last midnight."""

    def __init__(self, config: WorldConfig, society: Society, follows: Adjacency) -> None:
        self._config = config
        self._society = society
        self._activity = cumulate(society.activity)
        self._shown = ShownTable(config.impressions_per_day)
        self._last_days: list[Outcomes] = []
        self._muted = Adjacency.of_pairs(np.empty(0, np.int64), np.empty(0, np.int64), config.num_users)
        self._day = 0
        self.drawn = self._first_posts()
        self.snapshot = Snapshot(
            user_ids=numbered("user", 0, config.num_users),
            joined_us=society.joined_us(FIRST_DAY_US),
            follows=follows,
            post_ids=numbered("post", 0, len(self.drawn.posts)),
            posts=self.drawn.posts,
            counts=Counts.zero(config.num_users, config.num_topics, len(follows.values)).with_posts(
                len(self.drawn.posts)
            ),
        )

    def _first_posts(self) -> DrawnPosts:
        days = [self._posts_of_day(day) for day in range(-DAYS_BEFORE, 0)]
        first = days[0]
        for later in days[1:]:
            first = first.then(later)
        return first

    def _posts_of_day(self, day: int) -> DrawnPosts:
        return draw_posts(self._config, self._society, day, FIRST_DAY_US + day * DAY_US)

    def run_day(self, intercepts: Floats, stream: Stream) -> Iterator[Chunk]:
        """The next day in chunks, in order of time. Its outcomes are counted when the last one was taken.

        ``stream`` is that of the outcomes; sessions have their own.
        """
        self._publish()
        sessions = self._sessions()
        rng = generator(self._config.seed, stream, self._day)
        today = np.zeros(self._config.num_users, np.int64)
        shelf = self._shelf()
        outcomes = []
        for first in range(0, len(sessions), SESSIONS_PER_CHUNK):
            part = sessions.slice(first, first + SESSIONS_PER_CHUNK)
            showing, of_session = self._show(rng, shelf, part, today)
            chunk = self._observe(rng, showing, of_session + first, part.policies[of_session], intercepts)
            outcomes.append(Outcomes(showing.users, showing.posts, chunk.labels))
            yield chunk
        self._count(Outcomes(*(np.concatenate(column) for column in zip(*map(_columns, outcomes), strict=True))))
        self._day += 1

    def _publish(self) -> None:
        """The posts of the day become known as they are written; at its beginning nothing is counted of them."""
        before = self.snapshot
        self.drawn = self.drawn.then(self._posts_of_day(self._day))
        num_posts = len(self.drawn.posts)
        ids = pa.concat_arrays([before.post_ids, numbered("post", len(before.post_ids), num_posts)])
        self.snapshot = Snapshot(
            before.user_ids,
            before.joined_us,
            before.follows,
            ids,
            self.drawn.posts,
            before.counts.with_posts(num_posts),
        )

    def _sessions(self) -> Sessions:
        rng = generator(self._config.seed, Stream.SESSIONS, self._day)
        size = max(1, round(self._config.impressions_per_day / ((SHORTEST + LONGEST) / 2)))
        bounds = np.cumsum(list(POLICY_SHARES.values()))[:-1]
        return Sessions(
            users=np.searchsorted(self._activity, self._activity[-1] * rng.random(size), side="right") - 1,
            times_us=FIRST_DAY_US + self._day * DAY_US + times_of_day(rng, size),
            policies=np.searchsorted(bounds, rng.random(size), side="right"),
            lengths=rng.integers(SHORTEST, LONGEST + 1, size),
        )

    def _shelf(self) -> Shelf:
        known = self.snapshot
        midnight = FIRST_DAY_US + self._day * DAY_US
        return Shelf(known.posts, known.follows, known.followers, known.counts, midnight)

    def _show(self, rng: np.random.Generator, shelf: Shelf, sessions: Sessions, today: Rows) -> tuple[Showing, Rows]:
        """The impressions of ``sessions``, and the session of each row; ``today [users]`` is counted on."""
        candidates = shelf.candidates(rng, sessions)
        users = np.broadcast_to(sessions.users[:, None], candidates.shape)
        authors = self.drawn.posts.authors[candidates]
        allowed = (candidates >= 0) & (authors != users)
        allowed &= ~self._shown.contains(users, np.maximum(candidates, 0), self._day)
        kept = choose_unique(candidates, allowed, sessions.lengths)
        kept = _first_of_pairs(users, candidates, kept)
        of_session, place = np.nonzero(kept)
        posts = candidates[of_session, place]
        self._shown.add(sessions.users[of_session], posts, self._day)
        showing = Showing(
            users=sessions.users[of_session],
            posts=posts,
            times_us=sessions.times_us[of_session],
            positions=(np.cumsum(kept, axis=1) - 1)[of_session, place],
            author_repeats=_earlier(of_session * np.int64(self._config.num_users) + authors[of_session, place]),
            shown_today=_shown_today(sessions.users, kept.sum(1), today)[of_session],
        )
        return showing, of_session

    def _observe(
        self, rng: np.random.Generator, showing: Showing, sessions: Rows, policies: Rows, intercepts: Floats
    ) -> Chunk:
        authors = self.drawn.posts.authors[showing.posts]
        follows = self.snapshot.follow_places(showing.users, authors) >= 0
        causes = causes_of(self._society, self.drawn, showing, follows)
        events = event_probabilities(causes, intercepts)
        labels = draw_engagements(rng, events)
        return Chunk(showing, sessions, policies, causes, engagement_probabilities(events), labels)

    def _count(self, outcomes: Outcomes) -> None:
        posts = self.drawn.posts
        places = self.snapshot.follow_places(outcomes.users, posts.authors[outcomes.posts])
        self.snapshot.counts.add(outcomes, posts, places)
        self._last_days = [*self._last_days[1 - SEEN_DAYS :], outcomes]
        rejected = outcomes.labels[:, _NEGATIVE] == 1
        self._muted = Adjacency.of_pairs(
            np.concatenate((self._muted.owners(), outcomes.users[rejected])),
            np.concatenate((self._muted.values, posts.authors[outcomes.posts[rejected]])),
            self._config.num_users,
        )

    def catalog(self) -> Catalog:
        """What is known at the midnight that comes next."""
        seen = Adjacency.of_pairs(
            np.concatenate([day.users for day in self._last_days]),
            np.concatenate([day.posts for day in self._last_days]),
            self._config.num_users,
        )
        now_us = FIRST_DAY_US + self._day * DAY_US
        return Catalog(now_us, TOPICS[: self._config.num_topics], self.snapshot, seen, self._muted)


def numbered(name: str, first: int, last: int) -> pa.StringArray:
    """The ids ``name_first … name_(last − 1)``."""
    return pa.array([f"{name}_{number}" for number in range(first, last)], pa.string())


def _columns(outcomes: Outcomes) -> tuple[Rows, Rows, NDArray[np.int8]]:
    return outcomes.users, outcomes.posts, outcomes.labels


def _first_of_pairs(users: Rows, posts: Rows, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of a post that several sessions of one user would show, the first alone."""
    places = np.flatnonzero(kept)
    keys = users.ravel()[places] * np.int64(1 << 32) + posts.ravel()[places]
    _, first = np.unique(keys, return_index=True)
    result = np.zeros(kept.size, bool)
    result[places[first]] = True
    return result.reshape(kept.shape)


def _earlier(keys: Rows) -> Rows:
    """How many rows before each have the same key ``[rows]``."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.searchsorted(ordered, ordered)  # where each run of equal keys begins
    counts = np.empty(len(keys), np.int64)
    counts[order] = np.arange(len(keys)) - starts
    return counts


def _shown_today(users: Rows, lengths: Rows, today: Rows) -> Rows:
    """Posts that each session's user was shown since midnight, before it; ``today`` takes these sessions up."""
    order = np.argsort(users, kind="stable")
    ordered = users[order]
    before = np.concatenate(([0], np.cumsum(lengths[order])))[:-1]
    start = before[np.searchsorted(ordered, ordered)]
    shown = np.empty(len(users), np.int64)
    shown[order] = today[ordered] + before - start
    np.add.at(today, users, lengths)
    return shown
