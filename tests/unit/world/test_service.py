"""The days of a service: what is shown, what is known of it, and when."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from rookery.data.catalog_features import DAY_US
from rookery.data.engagements import ENGAGEMENTS
from rookery.world import service as service_module
from rookery.world.config import WorldConfig
from rookery.world.draws import Stream
from rookery.world.laws import draw_engagements
from rookery.world.service import FIRST_DAY_US, Service
from rookery.world.society import draw_follows, draw_society

CONFIG = WorldConfig(
    num_users=200,
    num_communities=5,
    num_topics=6,
    mean_following=10,
    posts_per_day=80,
    impressions_per_day=2_500,
    seed=4,
)
INTERCEPTS = np.full(10, -1.0)
FAVORITED = ENGAGEMENTS.index("is_favorited")


def make_service() -> Service:
    society = draw_society(CONFIG)
    return Service(CONFIG, society, draw_follows(CONFIG, society))


def features_of(service: Service, chunk) -> dict[str, pa.Array]:
    showing = chunk.showing
    columns = service.snapshot.features(
        showing.users,
        showing.posts,
        showing.times_us,
        shown_today=showing.shown_today,
        author_repeats=showing.author_repeats,
    )
    return {name: pa.array(column) for name, column in columns.items()}


def play(num_days: int) -> list[tuple[list, list[dict[str, pa.Array]]]]:
    """The chunks of each day with the features of each."""
    service = make_service()
    days = []
    for _ in range(num_days):
        chunks, features = [], []
        for chunk in service.run_day(INTERCEPTS, Stream.OUTCOMES):
            chunks.append(chunk)
            features.append(features_of(service, chunk))
        days.append((chunks, features))
    return days


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(service_module, "SESSIONS_PER_CHUNK", 60)


def shuffled_from(day_us: int, monkeypatch) -> None:
    """From the day on, labels are dealt out anew among the rows of a chunk."""
    observe = Service._observe

    def permuted(self, rng, showing, *rest):
        chunk = observe(self, rng, showing, *rest)
        if showing.times_us[0] < day_us:
            return chunk
        order = np.random.default_rng(0).permutation(len(chunk.labels))
        return replace(chunk, labels=chunk.labels[order])

    monkeypatch.setattr(Service, "_observe", permuted)


def test_features_do_not_know_what_comes_of_the_day(monkeypatch, small_chunks):
    """With the third day's outcomes permuted its features are the same to the bit, and the fourth day's differ."""
    before = play(4)
    shuffled_from(FIRST_DAY_US + 2 * DAY_US, monkeypatch)
    after = play(4)
    for day in range(3):
        for first, second in zip(before[day][1], after[day][1], strict=True):
            assert all(first[name].equals(second[name]) for name in first)
    third, permuted = (np.concatenate([chunk.labels for chunk in days[2][0]]) for days in (before, after))
    assert (third != permuted).mean() > 0.1
    rates = [np.concatenate([part["user_favorite_rate"] for part in days[3][1]]) for days in (before, after)]
    assert len(rates[0]) != len(rates[1]) or (rates[0] != rates[1]).mean() > 0.5


def test_counts_are_of_strictly_earlier_days(small_chunks):
    days = play(3)
    users, posts, favorited, times = (
        np.concatenate([column(chunk) for chunks, _ in days for chunk in chunks])
        for column in (
            lambda chunk: chunk.showing.users,
            lambda chunk: chunk.showing.posts,
            lambda chunk: chunk.labels[:, FAVORITED],
            lambda chunk: chunk.showing.times_us,
        )
    )
    known = [part for _, features in days for part in features]
    user_impressions = np.concatenate([part["user_impressions"] for part in known])
    post_impressions = np.concatenate([part["post_impressions"] for part in known])
    recent = [number for part in known for number in part["recent_topics"].to_pylist()]
    for row in range(0, len(users), 53):
        earlier = times < times[row] // DAY_US * DAY_US
        assert user_impressions[row] == (earlier & (users == users[row])).sum()
        assert post_impressions[row] == (earlier & (posts == posts[row])).sum()
        assert len(recent[row]) == min(10, (earlier & (users == users[row]) & (favorited == 1)).sum())
    assert user_impressions.max() > 20


def test_fatigue_is_what_was_shown_before(small_chunks):
    chunks = play(2)[1][0]
    sessions, users, authors, shown, repeats, positions, times = (
        np.concatenate([column(chunk) for chunk in chunks])
        for column in (
            lambda chunk: chunk.sessions,
            lambda chunk: chunk.showing.users,
            lambda chunk: chunk.causes.values[:, 9],
            lambda chunk: chunk.showing.shown_today,
            lambda chunk: chunk.showing.author_repeats,
            lambda chunk: chunk.showing.positions,
            lambda chunk: chunk.showing.times_us,
        )
    )
    assert (np.diff(times) >= 0).all()
    assert (np.diff(sessions) >= 0).all()
    for row in range(len(users)):
        assert shown[row] == ((users == users[row]) & (sessions < sessions[row])).sum()
        assert positions[row] == ((sessions == sessions[row])[:row]).sum()
    assert np.array_equal(authors, repeats)
    assert shown.max() > 20


def test_repeats_count_the_same_author_higher_up(small_chunks):
    service = make_service()
    total = 0
    for chunk in service.run_day(INTERCEPTS, Stream.OUTCOMES):
        authors = service.snapshot.posts.authors[chunk.showing.posts]
        for row in range(len(authors)):
            same = (chunk.sessions[:row] == chunk.sessions[row]) & (authors[:row] == authors[row])
            assert chunk.showing.author_repeats[row] == same.sum()
            total += same.sum()
    assert total > 20


def test_nobody_sees_a_post_twice_or_an_own_one(small_chunks):
    service = make_service()
    pairs = []
    for _ in range(5):
        for chunk in service.run_day(INTERCEPTS, Stream.OUTCOMES):
            pairs.append(np.stack((chunk.showing.users, chunk.showing.posts)))
            assert (service.snapshot.posts.authors[chunk.showing.posts] != chunk.showing.users).all()
    shown = np.concatenate(pairs, axis=1)
    assert np.unique(shown, axis=1).shape == shown.shape


def test_the_catalog_knows_the_last_days(small_chunks):
    service = make_service()
    days = [list(service.run_day(INTERCEPTS, Stream.OUTCOMES)) for _ in range(5)]
    catalog = service.catalog()
    assert catalog.now_us == FIRST_DAY_US + 5 * DAY_US
    seen, muted = {}, {}
    negative = ENGAGEMENTS.index("is_negative_feedback")
    for number, chunks in enumerate(days):
        for chunk in chunks:
            for user, post, rejected in zip(
                chunk.showing.users, chunk.showing.posts, chunk.labels[:, negative], strict=True
            ):
                if number >= 2:
                    seen.setdefault(user, set()).add(post)
                if rejected:
                    muted.setdefault(user, set()).add(catalog.posts.authors[post])
    for user in range(CONFIG.num_users):
        assert catalog.seen(user).tolist() == sorted(seen.get(user, ()))
        assert catalog.muted(user).tolist() == sorted(muted.get(user, ()))
    assert muted


def test_draws_use_the_events():
    """Certain events happen in every row, impossible ones in none; what rests on an impossible one does not either."""
    events = np.tile([[1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0]], (50, 1))
    labels = draw_engagements(np.random.default_rng(0), events)
    assert labels.tolist() == [[1, 0, 1, 0, 1, 1, 0, 0, 1, 0]] * 50
