from __future__ import annotations

import math

import numpy as np
import pytest

from rookery.data.catalog_features import HOUR_US, MEDIA
from rookery.data.engagements import ENGAGEMENTS
from rookery.world.laws import (
    BASE_RATES,
    CAUSES,
    EVENTS,
    Causes,
    Showing,
    causes_of,
    draw_engagements,
    engagement_probabilities,
    event_probabilities,
    solve_intercepts,
)
from rookery.world.posts import DrawnPosts

NUM_ROWS = 400


@pytest.fixture(scope="module")
def showing(written):
    rng = np.random.default_rng(0)
    catalog = written.world.catalog
    return Showing(
        users=rng.integers(0, len(catalog.user_ids), NUM_ROWS),
        posts=rng.integers(0, len(catalog.post_ids), NUM_ROWS),
        times_us=catalog.now_us + rng.integers(0, 10 * HOUR_US, NUM_ROWS),
        positions=rng.integers(0, 15, NUM_ROWS),
        author_repeats=rng.integers(0, 3, NUM_ROWS),
        shown_today=rng.integers(0, 60, NUM_ROWS),
    )


@pytest.fixture(scope="module")
def causes(written, showing) -> Causes:
    world = written.world
    follows = np.arange(NUM_ROWS) % 2 == 0
    return causes_of(world.society, DrawnPosts(world.catalog.posts, world.qualities), showing, follows)


def naive_causes(world, showing, row: int) -> list[float]:
    society, posts = world.society, world.catalog.posts
    user, post = showing.users[row], showing.posts[row]
    author, kind = posts.authors[post], posts.media[post]
    age_hours = (showing.times_us[row] - posts.created_us[post]) / 3.6e9
    return [
        sum(a * b for a, b in zip(society.tastes[user], society.styles[author], strict=True)) / 0.35,
        sum(a * b for a, b in zip(society.tastes[user], society.topic_vectors[posts.topics[post]], strict=True)) / 0.35,
        float(row % 2 == 0),
        society.moods[user],
        0.6 * society.author_qualities[author] + 0.8 * world.qualities[post],
        -math.log(1 + age_hours / 12),
        society.media_tastes[user, kind],
        (posts.lengths[post] - 95) / 70,
        showing.positions[row],
        showing.author_repeats[row],
        math.log(1 + showing.shown_today[row] / 10),
    ]


def test_causes_and_probabilities_follow_the_formulas(written, showing, causes):
    intercepts = dict(zip(EVENTS, written.world.intercepts, strict=True))
    found = engagement_probabilities(event_probabilities(causes, written.world.intercepts))
    for row in range(0, NUM_ROWS, 7):
        values = naive_causes(written.world, showing, row)
        np.testing.assert_allclose(causes.values[row], values, rtol=1e-4, atol=1e-5)
        p = {
            name: 1 / (1 + math.exp(-intercepts[name] - sum(w * c for w, c in zip(weights, values, strict=True))))
            for name, weights in EVENTS.items()
        }
        is_video = MEDIA[written.world.catalog.posts.media[showing.posts[row]]] == "video"
        expected = {
            "is_favorited": p["favorite"],
            "is_retweeted": p["retweet"],
            "is_replied": p["reply"],
            "is_good_profile_clicked": p["profile"],
            "is_video_playback_50": p["playback"] if is_video else 0,
            "is_reply_engaged_by_author": p["reply"] * p["author_answers"],
            "is_good_clicked_v1": p["click"] * (p["favorite"] + p["reply"] - p["favorite"] * p["reply"]),
            "is_good_clicked_v2": p["click"] * p["stay"],
            "is_negative_feedback": p["reject"],
            "is_reported": p["reject"] * p["report"],
        }
        np.testing.assert_allclose(found[row], [expected[name] for name in ENGAGEMENTS], rtol=1e-4)


def test_every_cause_moves_some_event():
    weights = np.array(list(EVENTS.values()))
    assert weights.shape == (10, len(CAUSES))
    assert (weights != 0).any(0).all()


def test_engagements_imply_each_other():
    events = np.full((200_000, len(EVENTS)), 0.5)
    label = dict(zip(ENGAGEMENTS, draw_engagements(np.random.default_rng(0), events).T, strict=True))
    assert (label["is_reply_engaged_by_author"] <= label["is_replied"]).all()
    assert (label["is_reported"] <= label["is_negative_feedback"]).all()
    assert (label["is_good_clicked_v1"] <= (label["is_favorited"] | label["is_replied"])).all()
    assert label["is_good_clicked_v1"].mean() == pytest.approx(0.5 * 0.75, abs=0.005)
    assert label["is_reported"].mean() == pytest.approx(0.25, abs=0.005)


def test_draws_come_as_often_as_the_probabilities_say(causes, written):
    events = event_probabilities(causes, written.world.intercepts)
    rng = np.random.default_rng(1)
    mean = np.mean([draw_engagements(rng, events) for _ in range(500)], axis=(0, 1))
    probability = engagement_probabilities(events).mean(0)
    np.testing.assert_allclose(mean, probability, atol=4 * np.sqrt(probability.max() / (500 * NUM_ROWS)))


def test_intercepts_meet_the_base_rates(causes):
    intercepts = solve_intercepts(causes)
    mean = engagement_probabilities(event_probabilities(causes, intercepts)).mean(0)
    np.testing.assert_allclose(mean, list(BASE_RATES.values()), rtol=1e-9)
