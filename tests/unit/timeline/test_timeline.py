"""Candidates, ranks and timelines against what the formulas say, one post at a time."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timezone

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_timeline import LONELY, MISSING, NUM_POSTS, NUM_USERS, SmallParts

from rookery.data.catalog import MEDIA
from rookery.data.engagements import ENGAGEMENTS
from rookery.data.stream import ParquetStream
from rookery.errors import UnknownId, UserError
from rookery.ranker.export import RankerExport
from rookery.timeline.bundle import Bundle
from rookery.timeline.config import WEIGHT_PRESETS
from rookery.timeline.posts import RankQuery, TimelineQuery
from rookery.timeline.timeline import Timeline

WEIGHTS = {"is_favorited": 9.0, "is_replied": -13.0, "is_reported": -4.0, "is_good_clicked_v2": 5.0}


def row_of(name):
    return int(name.removeprefix("post_"))


def is_followed(timeline, user, post):
    return timeline.catalog.posts.authors[post] in timeline.catalog.followed(user)


@pytest.mark.parametrize("user", range(0, NUM_USERS, 7))
def test_candidates_in_network_are_the_newest_of_followed_authors(timeline, user):
    catalog = timeline.catalog
    oldest = catalog.now_us - 48 * 3_600_000_000
    allowed = [
        post
        for post in range(NUM_POSTS)
        if catalog.posts.created_us[post] >= oldest
        and catalog.posts.authors[post] != user
        and post not in catalog.seen(user)
        and catalog.posts.authors[post] not in catalog.muted(user)
    ]
    found = timeline.candidates(f"user_{user}")
    inside = [row_of(each.post_id) for each in found if each.source == "in_network"]
    outside = [row_of(each.post_id) for each in found if each.source == "out_of_network"]
    assert inside == sorted((post for post in allowed if is_followed(timeline, user, post)), reverse=True)[:20]
    assert len(outside) == 30
    assert set(outside) < {post for post in allowed if not is_followed(timeline, user, post)}
    for each in found:
        assert each.author_id == f"user_{catalog.posts.authors[row_of(each.post_id)]}"
        age_hours = (catalog.now_us - catalog.posts.created_us[row_of(each.post_id)]) / 3_600_000_000
        assert each.source == "out_of_network" or each.retrieval_score == pytest.approx(-age_hours)


@pytest.mark.parametrize("source", ["in_network", "out_of_network"])
def test_a_source_alone(timeline, source):
    every = timeline.timeline("user_5", 100)
    alone = timeline.timeline("user_5", 100, sources={source})
    assert {post.post_id for post in alone} == {post.post_id for post in every if post.source == source}
    assert timeline.timeline("user_5", 100, sources=frozenset()) == []


def test_who_follows_nobody_gets_posts_of_others(timeline):
    assert {post.source for post in timeline.timeline(f"user_{LONELY}", 10)} == {"out_of_network"}
    assert len(timeline.timeline(f"user_{MISSING}", 10)) == 10


def test_probabilities_are_those_of_the_ranker_on_rows_of_a_file(timeline, parts: SmallParts, tmp_path):
    """The same features, written to Parquet and read as training reads them."""
    posts = [f"post_{row}" for row in range(0, NUM_POSTS, 3)]
    ranked = {post.post_id: post for post in timeline.rank("user_7", posts)}
    rows = np.array([row_of(post) for post in posts])
    columns = timeline.catalog.features(np.full(len(rows), 7), rows, np.full(len(rows), timeline.catalog.now_us))
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    export = RankerExport.open(parts.ranker)
    stream = ParquetStream([tmp_path / "rows.parquet"], export.requests(), len(rows), seed=0, shuffle=False)
    expected = export.predict(next(stream)).probabilities
    found = torch.tensor([[ranked[post].probabilities[task] for task in export.tasks] for post in posts])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)  # rows of a batch differ in the last bits
    assert found.std(0).min() > 1e-4
    assert timeline.tasks == export.tasks == tuple(reversed(ENGAGEMENTS))


@pytest.mark.parametrize("weights", [None, WEIGHTS, WEIGHT_PRESETS["2026"]])
def test_rank_is_the_order_of_weighted_sums(timeline, weights):
    posts = [f"post_{row}" for row in (3, 77, 200, 201, 399, 12)]
    ranked = timeline.rank("user_7", posts, weights)
    used = WEIGHT_PRESETS["2023"] if weights is None else weights
    for post in ranked:
        expected = {task: used.get(task, 0.0) * chance for task, chance in post.probabilities.items()}
        assert post.contributions == expected
        assert post.score == sum(expected.values())
        assert (post.source == "in_network") == is_followed(timeline, 7, row_of(post.post_id))
    assert sorted(post.post_id for post in ranked) == sorted(posts)
    assert [post.score for post in ranked] == sorted((post.score for post in ranked), reverse=True)


@pytest.mark.parametrize("signs", ["all above 0", "some below 0"])
@pytest.mark.parametrize("user", [3, 17, LONELY])
def test_a_timeline_is_chosen_greedily(timeline, user, signs):
    """Post by post: whichever is worth most beside those that were chosen before."""
    name = f"user_{user}"
    candidates = [each.post_id for each in timeline.candidates(name)]
    weights = {"is_retweeted": 1.0, "is_good_clicked_v2": 0.0}
    if signs == "some below 0":
        ratios = [
            post.probabilities["is_retweeted"] / post.probabilities["is_good_clicked_v2"]
            for post in timeline.rank(name, candidates)
        ]
        weights["is_good_clicked_v2"] = -float(np.median(ratios))
    ranked = timeline.rank(name, candidates, weights)
    shown = timeline.timeline(name, 30, weights=weights)
    left = {post.post_id: post for post in ranked}
    authors = Counter()
    for position, post in enumerate(shown):
        worth = {name: worth_now(each, authors) for name, each in left.items()}
        best = min(left, key=lambda name: (-worth[name][0], name))
        final, network, diversity = worth[best]
        assert (post.post_id, post.position) == (best, position)
        assert post.final_score == pytest.approx(final, rel=1e-12)
        assert (post.network_factor, post.diversity_factor) == (network, pytest.approx(diversity))
        assert post.base_score == post.score == pytest.approx(left[best].score, rel=1e-6)
        authors[post.author_id] += 1
        del left[best]
    negative = sum(post.base_score < 0 for post in shown)
    assert (negative > 0) == (signs == "some below 0")


def worth_now(post, authors):
    network = 0.75 if post.source == "out_of_network" and post.score > 0 else 1.0
    diversity = 0.75 * 0.5 ** authors[post.author_id] + 0.25 if post.score > 0 else 1.0
    return post.score * network * diversity, network, diversity


def test_without_diversity_an_author_may_fill_it(timeline):
    plain = timeline.timeline("user_3", 50, weights={"is_retweeted": 1.0}, diversity=False)
    assert {post.diversity_factor for post in plain} == {1.0}
    assert [post.final_score for post in plain] == sorted((post.final_score for post in plain), reverse=True)
    varied = timeline.timeline("user_3", 50, weights={"is_retweeted": 1.0})
    assert [post.post_id for post in plain] != [post.post_id for post in varied]


def test_by_recency_the_same_posts_stand_by_age(timeline):
    by_score, by_age = timeline.timeline("user_3", 100), timeline.timeline("user_3", 100, order="recency")
    assert sorted(post.post_id for post in by_age) == sorted(post.post_id for post in by_score)
    assert [row_of(post.post_id) for post in by_age] == sorted(
        (row_of(post.post_id) for post in by_score), reverse=True
    )
    finals = {post.post_id: post.final_score for post in by_score}
    assert {post.post_id: post.final_score for post in by_age} == pytest.approx(finals)


def test_equal_scores_stand_by_id(timeline):
    posts = ["post_9", "post_10", "post_100", "post_1"]
    assert [post.post_id for post in timeline.rank("user_7", posts, {})] == sorted(posts)
    shown = timeline.timeline("user_3", 10, weights={})
    assert [post.post_id for post in shown] == sorted(each.post_id for each in timeline.candidates("user_3"))[:10]


def test_many_queries_at_once_are_answered_like_one_at_a_time(timeline):
    queries = [
        TimelineQuery("user_3", 7),
        RankQuery("user_4", ["post_1", "post_300"], WEIGHTS),
        RankQuery("user_4", []),
        TimelineQuery("user_9", 3, WEIGHTS, frozenset({"out_of_network"}), diversity=False),
    ]
    together = timeline.answer(queries)
    alone = [timeline.answer([query])[0] for query in queries]
    assert [len(posts) for posts in together] == [7, 2, 0, 3]
    for posts, others in zip(together, alone, strict=True):
        assert [post.post_id for post in posts] == [post.post_id for post in others]
        for post, other in zip(posts, others, strict=True):
            assert post.probabilities == pytest.approx(other.probabilities, rel=1e-5)
    assert timeline.answer([]) == []


def test_a_wrong_query_leaves_the_others_alone(timeline):
    good = RankQuery("user_4", ["post_1"])
    wrong = [
        RankQuery("user_nobody", ["post_1"]),
        RankQuery("user_4", ["post_1", "post_9999"]),
        TimelineQuery("user_4", 3, {"is_favorite": 1.0}),
    ]
    answers = timeline.answer([good, *wrong, good])
    assert [isinstance(each, UserError) for each in answers] == [False, True, True, True, False]
    assert [type(each) for each in answers[1:3]] == [UnknownId, UnknownId]
    assert answers[0][0].probabilities == pytest.approx(answers[4][0].probabilities, rel=1e-5)


@pytest.mark.parametrize(
    ("ask", "named"),
    [
        (lambda timeline: timeline.candidates("user_x"), "user_x"),
        (lambda timeline: timeline.timeline("user_x", 3), "user_x"),
        (lambda timeline: timeline.rank("user_1", ["post_x"]), "post_x"),
        (lambda timeline: timeline.user("user_x"), "user_x"),
        (lambda timeline: timeline.post("post_x"), "post_x"),
        (lambda timeline: timeline.neighbors("user_x", 3), "user_x"),
        (lambda timeline: timeline.similar("post_x", 3), "post_x"),
    ],
)
def test_who_is_not_known_is_named(timeline, ask, named):
    with pytest.raises(UnknownId, match=named):
        ask(timeline)


def test_facts_of_posts_and_users(timeline):
    catalog = timeline.catalog
    post = timeline.post("post_33")
    created = datetime.fromtimestamp(catalog.posts.created_us[33] // 1_000_000, timezone.utc)
    assert post == {
        "id": "post_33",
        "author_id": f"user_{catalog.posts.authors[33]}",
        "length": catalog.posts.lengths[33],
        "impressions": catalog.counts.posts[33, 0],
        "favorites": catalog.counts.posts[33, 1],
        "created_at": created.isoformat(),
        "topic": f"topic_{catalog.posts.topics[33]}",
        "media": MEDIA[catalog.posts.media[33]],
    }
    [ranked] = timeline.rank("user_2", ["post_33"])
    assert (ranked.created_at, ranked.topic, ranked.media) == (post["created_at"], post["topic"], post["media"])
    user = timeline.user("user_4")
    assert user["following"] == len(catalog.followed(4))
    assert user["followers"] == sum(4 in catalog.followed(other) for other in range(NUM_USERS))
    assert user["posts"] == np.count_nonzero(catalog.posts.authors == 4)
    favorites = [each["favorites"] for each in user["topics"]]
    assert favorites == sorted(catalog.counts.user_topics[4, :, 1].tolist(), reverse=True)[:5]


def test_users_by_the_beginning_of_their_ids(timeline):
    found = [user["id"] for user in timeline.users("user_", 100)]
    assert sorted(found) == sorted(f"user_{row}" for row in range(NUM_USERS))
    impressions = [timeline.user(user)["impressions"] for user in found]
    assert impressions == sorted(impressions, reverse=True)
    assert [user["id"] for user in timeline.users("user_", 3)] == found[:3]
    assert timeline.users("nobody") == []


@pytest.mark.parametrize("row", range(1, 5))
def test_who_is_named_whole_comes_before_longer_names(timeline, row):
    found = [user["id"] for user in timeline.users(f"user_{row}", 100)]
    assert found[0] == f"user_{row}"
    assert sorted(found[1:]) == [f"user_{10 * row + digit}" for digit in range(10)]
    impressions = [timeline.user(user)["impressions"] for user in found[1:]]
    assert impressions == sorted(impressions, reverse=True)
    assert [user["id"] for user in timeline.users(f"user_{row}", 1)] == [f"user_{row}"]


def test_neighbors_are_nearest_by_cosine(timeline):
    source = timeline.bundle.twhin
    for entity_type, name, found in (
        ("user", "user_4", timeline.neighbors("user_4", 5)),
        ("post", "post_33", timeline.similar("post_33", 5)),
    ):
        rows = torch.nn.functional.normalize(source.embeddings.rows[entity_type], dim=1)
        own = source.vocabularies[entity_type].rows([name])[0]
        scores = rows @ rows[own]
        scores[own] = -2
        best = scores.topk(5)
        assert [each.id for each in found] == source.vocabularies[entity_type].ids(best.indices.tolist())
        np.testing.assert_allclose([each.score for each in found], best.values, rtol=1e-5)
    assert timeline.neighbors(f"user_{MISSING}", 3) == timeline.similar("post_10", 3) == []


def test_truth_is_told_where_it_is_known(timeline, bundle):
    assert timeline.rank("user_7", ["post_1"])[0].true_probabilities is None

    def truth(users, posts, times_us):
        assert set(times_us.tolist()) == {timeline.catalog.now_us}
        return (users * 1000.0 + posts)[:, None] + np.arange(10) / 10

    knowing = Timeline.open(bundle, truth=truth)
    for post in (*knowing.rank("user_7", ["post_5", "post_1"]), *knowing.timeline("user_7", 4)):
        expected = {task: 7000 + row_of(post.post_id) + place / 10 for place, task in enumerate(ENGAGEMENTS)}
        assert post.true_probabilities == pytest.approx(expected)


def test_another_ranker_over_the_same_bundle(timeline, bundle, parts):
    other = Timeline(Bundle.open(bundle), RankerExport.open(parts.ranker_without))
    assert other.candidates("user_3") == timeline.candidates("user_3")
    assert other.rank("user_3", ["post_1"])[0].probabilities != timeline.rank("user_3", ["post_1"])[0].probabilities
