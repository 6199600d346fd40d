"""Worth and recall against loops over users and posts; a ranker that knows the truth cannot be beaten."""

from __future__ import annotations

import math

import numpy as np
import pytest
from small_timeline import NUM_POSTS, NUM_USERS

from rookery.data.engagements import ENGAGEMENTS
from rookery.metrics.bootstrap import Resampling
from rookery.ranker.export import RankerExport
from rookery.timeline.bundle import Bundle
from rookery.timeline.config import WEIGHT_PRESETS
from rookery.timeline.evaluation import POLICIES, evaluate_timelines, worth
from rookery.timeline.timeline import Timeline

USERS = (3, 17, 40, 0)
K = 8


def truth(users, posts, times_us):
    """Any function of user and post."""
    place = np.arange(10)
    return (1 + np.sin(users[:, None] * 12.9 + posts[:, None] * 78.2 + place * 3.7)) / 200


def true_score(user, post):
    probabilities = truth(np.array([user]), np.array([post]), None)[0]
    return sum(WEIGHT_PRESETS["2023"][task] * chance for task, chance in zip(ENGAGEMENTS, probabilities, strict=True))


def allowed_posts(timeline, user):
    catalog = timeline.catalog
    return [
        post
        for post in range(NUM_POSTS)
        if catalog.posts.created_us[post] >= catalog.now_us - 48 * 3_600_000_000
        and catalog.posts.authors[post] not in (user, *catalog.muted(user))
        and post not in catalog.seen(user)
    ]


def rows(posts):
    return [int(each.post_id.removeprefix("post_")) for each in posts]


def naive_worth(user, posts):
    return sum(true_score(user, post) / math.log2(place + 2) for place, post in enumerate(posts[:K]))


@pytest.fixture(scope="module")
def without(bundle, parts):
    return Timeline(Bundle.open(bundle), RankerExport.open(parts.ranker_without))


@pytest.fixture(scope="module")
def evaluation(timeline, without):
    return evaluate_timelines(timeline, truth, USERS, K, without_twhin=without)


def naive_lists(timeline, without, user):
    """The posts of each policy but the random one; ties do not occur but among favourites."""
    name = f"user_{user}"
    allowed, candidates = allowed_posts(timeline, user), rows(timeline.candidates(name))
    ids = [f"post_{post}" for post in candidates]
    favorites = timeline.catalog.counts.posts[:, 1]
    followed = set(timeline.catalog.followed(user).tolist())
    ranked = rows(timeline.rank(name, ids))
    return {
        "recency": sorted(candidates, reverse=True),
        "popularity": sorted(allowed, key=lambda post: (-favorites[post], -post)),
        "ranker_in_network": [post for post in ranked if int(timeline.catalog.posts.authors[post]) in followed],
        "ranker_without_twhin": rows(without.rank(name, ids)),
        "ranker": ranked,
        "timeline": rows(timeline.timeline(name, K)),
        "best_of_candidates": sorted(candidates, key=lambda post: -true_score(user, post)),
        "oracle": sorted(allowed, key=lambda post: -true_score(user, post)),
    }


def test_each_policy_is_worth_what_a_loop_says(evaluation, timeline, without):
    lists = {user: naive_lists(timeline, without, user) for user in USERS}
    oracle = np.mean([naive_worth(user, lists[user]["oracle"]) for user in USERS])
    found = {each.policy: each for each in evaluation.policies}
    assert list(found) == list(POLICIES)
    for name in lists[USERS[0]]:
        expected = np.mean([naive_worth(user, lists[user][name]) for user in USERS])
        assert found[name].value == pytest.approx(expected, rel=1e-6), name
        assert found[name].share == pytest.approx(expected / oracle, rel=1e-6), name
    assert found["random"].value < found["best_of_candidates"].value < found["oracle"].value
    assert evaluation.num_users == len(USERS)
    assert evaluation.mean_allowed == np.mean([len(allowed_posts(timeline, user)) for user in USERS])
    assert evaluation.mean_candidates == np.mean([len(timeline.candidates(f"user_{user}")) for user in USERS])


def test_intervals_resample_users(evaluation, timeline, without):
    """The same draws of users as the bootstrap's, a share a draw."""
    values = {
        name: np.array([naive_worth(user, naive_lists(timeline, without, user)[name]) for user in USERS])
        for name in ("timeline", "oracle")
    }
    draws = [column.numpy() for part in Resampling(len(USERS), 400, 0).chunks(50) for column in part.T][1:]
    shares = [(draw @ values["timeline"]) / (draw @ values["oracle"]) for draw in draws]
    found = next(each for each in evaluation.policies if each.policy == "timeline")
    assert found.share_interval == pytest.approx(tuple(np.quantile(shares, [0.025, 0.975])), rel=1e-6)


def test_recall_is_the_share_of_the_best_that_was_found(evaluation, timeline):
    found = {each.best: each for each in evaluation.recall}
    assert list(found) == [10, 50, 100]
    for best in (10, 50):
        expected = np.mean([naive_recall(timeline, user, best) for user in USERS], axis=0)
        recall = found[best]
        measured = (recall.all, recall.all_chance, recall.twhin, recall.popular, recall.out_of_network_chance)
        assert measured == pytest.approx(tuple(expected)), best
    assert 0 < found[50].popular < 1


def naive_recall(timeline, user, best):
    allowed, candidates = allowed_posts(timeline, user), rows(timeline.candidates(f"user_{user}"))
    followed = set(timeline.catalog.followed(user).tolist())
    favorites = timeline.catalog.counts.posts[:, 1]
    outside = [post for post in allowed if int(timeline.catalog.posts.authors[post]) not in followed]
    found_outside = set(candidates) & set(outside)
    popular = sorted(outside, key=lambda post: (-favorites[post], -post))[: len(found_outside)]

    def share(of, found):
        truly = sorted(of, key=lambda post: -true_score(user, post))[:best]
        return len(set(truly) & set(found)) / best

    return (
        share(allowed, candidates),
        len(candidates) / len(allowed),
        share(outside, found_outside),
        share(outside, popular),
        len(found_outside) / len(outside),
    )


def test_a_ranker_that_says_the_truth_reaches_the_best_of_its_candidates(timeline):
    def as_the_ranker_says(users, posts, times_us):
        ranked = timeline.rank(f"user_{users[0]}", [f"post_{post}" for post in posts])
        by_post = {post.post_id: post.probabilities for post in ranked}
        return np.array([[by_post[f"post_{post}"][task] for task in ENGAGEMENTS] for post in posts])

    found = {
        each.policy: each
        for each in evaluate_timelines(timeline, as_the_ranker_says, range(0, NUM_USERS, 9), K).policies
    }
    assert found["ranker"].value == pytest.approx(found["best_of_candidates"].value, rel=1e-5)
    assert found["timeline"].value < found["ranker"].value < found["oracle"].value
    assert "ranker_without_twhin" not in found


def test_the_seed_draws_random_posts(timeline):
    def random_value(seed):
        return evaluate_timelines(timeline, truth, USERS, K, seed=seed).policies[0].value

    assert random_value(1) == random_value(1) != random_value(2)


def test_nobody_to_show_anything_to(timeline):
    found = evaluate_timelines(timeline, truth, [], K)
    assert (found.num_users, found.policies) == (0, [])
    assert math.isnan(found.recall[0].all)


def test_a_place_counts_by_the_logarithm():
    assert worth([3.0, -2.0]) == pytest.approx(3.0 - 2.0 / math.log2(3))
    assert worth([]) == 0
