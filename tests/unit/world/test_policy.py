from __future__ import annotations

import numpy as np
import pytest

from rookery.data.adjacency import Adjacency
from rookery.data.catalog_counts import Counts, Posts
from rookery.data.catalog_features import DAY_US, HOUR_US
from rookery.world.draws import by_weight, cumulate
from rookery.world.policy import MAX_AGE_HOURS, POLICIES, WIDTH, Sessions, Shelf, choose_unique
from rookery.world.shown import ShownTable

MIDNIGHT = 50 * DAY_US
NUM_USERS, NUM_POSTS, NUM_TOPICS = 80, 600, 5


def make_shelf() -> Shelf:
    rng = np.random.default_rng(0)
    posts = Posts(
        authors=rng.integers(0, 40, NUM_POSTS),
        topics=rng.integers(0, NUM_TOPICS, NUM_POSTS).astype(np.int16),
        media=np.zeros(NUM_POSTS, np.int8),
        lengths=np.ones(NUM_POSTS, np.int16),
        created_us=np.sort(MIDNIGHT + DAY_US - rng.integers(0, 5 * DAY_US, NUM_POSTS)),
    )
    follows = Adjacency.of_pairs(rng.integers(0, NUM_USERS - 1, 600), rng.integers(0, 60, 600), NUM_USERS)
    counts = Counts.zero(NUM_USERS, NUM_TOPICS, len(follows.values)).with_posts(NUM_POSTS)
    counts.posts[:, 1] = rng.poisson(3, NUM_POSTS)
    counts.user_topics[:, 2, 1] = 12
    return Shelf(posts, follows, np.bincount(follows.values, minlength=NUM_USERS), counts, MIDNIGHT)


def sessions_of(policy: str, size: int = 4_000) -> Sessions:
    rng = np.random.default_rng(1)
    return Sessions(
        users=rng.integers(0, NUM_USERS, size),
        times_us=np.sort(MIDNIGHT + rng.integers(0, DAY_US, size)),
        policies=np.full(size, POLICIES.index(policy)),
        lengths=np.full(size, 10),
    )


@pytest.fixture(scope="module")
def shelf() -> Shelf:
    return make_shelf()


@pytest.mark.parametrize("policy", POLICIES)
def test_candidates_are_written_before_the_session_and_not_long_ago(shelf, policy):
    sessions = sessions_of(policy)
    candidates = shelf.candidates(np.random.default_rng(2), sessions)
    assert candidates.shape == (len(sessions), WIDTH)
    age = sessions.times_us[:, None] - shelf.posts.created_us[candidates]
    assert (candidates >= 0).all()
    assert age.min() >= 0
    assert MAX_AGE_HOURS * HOUR_US * 0.9 < age.max() <= MAX_AGE_HOURS * HOUR_US


def test_random_is_uniform_over_the_young(shelf):
    sessions = sessions_of("random")
    candidates = shelf.candidates(np.random.default_rng(2), sessions)
    created = shelf.posts.created_us
    is_young = (created <= sessions.times_us[:, None]) & (created >= sessions.times_us[:, None] - 72 * HOUR_US)
    expected = (WIDTH * is_young / is_young.sum(1, keepdims=True)).sum(0)
    found = np.bincount(candidates.ravel(), minlength=NUM_POSTS)
    squares = (found - expected)[expected > 0] ** 2 / expected[expected > 0]
    assert squares.mean() == pytest.approx(1, abs=4 * np.sqrt(2 / len(squares)))
    assert found[expected == 0].sum() == 0


def test_recency_begins_with_the_newest_of_the_followed(shelf):
    sessions = sessions_of("recency")
    candidates = shelf.candidates(np.random.default_rng(2), sessions)
    for row in range(0, len(sessions), 37):
        followed = shelf.follows.row(sessions.users[row])
        in_network = np.isin(shelf.posts.authors[candidates[row]], followed)
        # Behind the posts of followed authors come random ones, of which some are by followed authors too.
        num_leading = int(np.argmin(np.append(in_network, False)))
        leading = candidates[row, :num_leading]
        falls = np.flatnonzero(np.diff(leading) > 0)
        assert len(falls) == 0 or leading[: falls[0] + 1].tolist() == sorted(leading[: falls[0] + 1], reverse=True)
        if not len(followed):
            assert num_leading < WIDTH
        else:
            newest = np.flatnonzero(
                np.isin(shelf.posts.authors, followed) & (shelf.posts.created_us <= sessions.times_us[row])
            )
            assert not len(newest) or leading[0] <= newest[-1]


def test_popularity_is_by_weight_within_topics_that_the_user_favors(shelf):
    sessions = sessions_of("popularity")
    candidates = shelf.candidates(np.random.default_rng(2), sessions)
    age_hours = (MIDNIGHT - shelf.posts.created_us) / HOUR_US
    fame = np.sqrt(1 + shelf.followers[shelf.posts.authors])
    weights = (1 + shelf.counts.posts[:, 1]) * fame * np.exp(-np.clip(age_hours, -24, 120) / 24)
    expected = np.zeros(NUM_POSTS)
    for time in sessions.times_us:
        young = weights * (shelf.posts.created_us <= time) * (shelf.posts.created_us >= time - 72 * HOUR_US)
        expected += WIDTH * 0.4 * young / young.sum()
        for topic in range(NUM_TOPICS):
            within = young * (shelf.posts.topics == topic)
            expected += WIDTH * 0.6 * (13 if topic == 2 else 1) / 17 * within / within.sum()
    found = np.bincount(candidates.ravel(), minlength=NUM_POSTS)
    squares = (found - expected)[expected > 1] ** 2 / expected[expected > 1]
    assert squares.mean() == pytest.approx(1, abs=4 * np.sqrt(2 / len(squares)))


def test_by_weight_draws_in_proportion_and_nothing_from_nothing():
    weights = np.array([1.0, 0.0, 3.0, 2.0, 4.0])
    first, last = np.full(40_000, 1), np.full(40_000, 4)
    drawn = by_weight(np.random.default_rng(0), cumulate(weights), first, last)
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / 40_000, [0, 0, 0.6, 0.4, 0], atol=0.01)
    assert by_weight(np.random.default_rng(0), cumulate(weights), np.array([2]), np.array([2])).tolist() == [-1]


def test_of_each_post_the_first_that_is_allowed_is_shown():
    rng = np.random.default_rng(0)
    candidates = rng.integers(0, 12, (300, 10))
    allowed = candidates % 5 != 0
    lengths = rng.integers(1, 8, 300)
    kept = choose_unique(candidates, allowed, lengths)
    for row in range(300):
        expected: list[int] = []
        for post in candidates[row]:
            if post % 5 and post not in expected and len(expected) < lengths[row]:
                expected.append(int(post))
        assert candidates[row][kept[row]].tolist() == expected


def test_what_was_shown_is_remembered_for_four_days():
    table = ShownTable(rows_per_day=1_000)
    rng = np.random.default_rng(0)
    users, posts = rng.integers(0, 500, (2, 4_000))
    table.add(users, posts, day=0)
    for day, expected in ((0, True), (3, True), (4, False)):
        assert (table.contains(users, posts, day) == expected).all()
    others = table.contains(users + 500, posts, day=0)
    assert others.mean() < 0.2
