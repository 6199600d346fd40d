"""Scores and their order against loops that do what the formulas say, one post at a time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rookery.errors import UserError
from rookery.timeline.config import AuthorDiversity
from rookery.timeline.scoring import (
    best_first,
    diversity_factors,
    left_out_of,
    of_positive,
    score,
    weight_vector,
    weights_for,
)

SCORES = st.floats(-50, 50, allow_nan=False)


@st.composite
def posts(draw):
    scores = draw(st.lists(SCORES, max_size=40))
    authors = draw(st.lists(st.integers(0, 5), min_size=len(scores), max_size=len(scores)))
    share = st.floats(0, 1)
    return scores, authors, AuthorDiversity(decay=draw(share), floor=draw(share))


def greedy(scores, authors, diversity):
    """Take the post that is worth most now, again and again: ``(place, worth)``."""
    left, shown, chosen = list(range(len(scores))), Counter(), []
    while left:
        worth = {}
        for place in left:
            factor = (1 - diversity.floor) * diversity.decay ** shown[authors[place]] + diversity.floor
            worth[place] = scores[place] * factor if scores[place] >= 0 else scores[place]
        best = max(left, key=lambda place: (worth[place], scores[place], -place))
        chosen.append((best, worth[best]))
        left.remove(best)
        shown[authors[best]] += 1
    return chosen


@given(posts())
def test_diversity_is_greedy_selection(drawn):
    scores, authors, diversity = np.array(drawn[0]), np.array(drawn[1], np.int64), drawn[2]
    final = scores * of_positive(scores, diversity_factors(scores, authors, diversity))
    expected = greedy(drawn[0], drawn[1], diversity)
    np.testing.assert_allclose(final[best_first(final)], [worth for _, worth in expected], rtol=1e-12)


@given(posts())
def test_the_factor_counts_an_authors_better_posts(drawn):
    scores, authors, diversity = drawn
    expected = []
    for place, author in enumerate(authors):
        better = sum(
            1
            for other, score in enumerate(scores)
            if authors[other] == author and (score > scores[place] or (score == scores[place] and other < place))
        )
        expected.append((1 - diversity.floor) * diversity.decay**better + diversity.floor)
    found = diversity_factors(np.array(scores), np.array(authors, np.int64), diversity)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@given(posts())
def test_no_factor_raises_a_post(drawn):
    scores, authors, diversity = np.array(drawn[0]), np.array(drawn[1], np.int64), drawn[2]
    final = scores * of_positive(scores, diversity_factors(scores, authors, diversity))
    assert (final <= np.maximum(scores, 0) + np.minimum(scores, 0)).all()


@given(posts(), st.integers(0, 2**31))
def test_a_score_is_the_weighted_sum_times_its_factors(drawn, seed):
    authors, diversity = np.array(drawn[1], np.int64), drawn[2]
    generator = np.random.default_rng(seed)
    num_posts = len(authors)
    probabilities, weights = generator.random((num_posts, 3)), np.array([0.5, 13.5, -20.0])
    factors = np.where(generator.random(num_posts) < 0.5, 1.0, 0.75)
    found = score(np.arange(num_posts), authors, probabilities, weights, factors, diversity)
    bases = [sum(weights[task] * probabilities[post, task] for task in range(3)) for post in range(num_posts)]
    networked = [base * (factor if base >= 0 else 1.0) for base, factor in zip(bases, factors, strict=True)]
    np.testing.assert_array_equal(found.base, bases)
    np.testing.assert_array_equal(found.contributions.sum(0), (probabilities * weights).sum(0))
    np.testing.assert_allclose(found.base * found.network, networked, rtol=1e-15)
    chosen = greedy(networked, drawn[1], diversity)
    np.testing.assert_allclose(found.final[best_first(found.final)], [worth for _, worth in chosen], rtol=1e-12)
    assert (score(found.posts, authors, probabilities, weights, factors, None).diversity == 1).all()


def test_weights_stand_in_the_order_of_the_tasks():
    assert weight_vector({"b": -2.0, "a": 1.5}, ("a", "c", "b")).tolist() == [1.5, 0.0, -2.0]


def test_a_weight_of_nothing_that_is_predicted_is_refused():
    with pytest.raises(UserError, match=r"weights\.is_favorite=1\.0: .* did you mean 'is_favorited'\?"):
        weight_vector({"is_favorite": 1.0}, ("is_favorited", "is_replied"))
    assert weight_vector({"unknown": 0.0}, ("a",)).tolist() == [0.0]


def test_a_named_set_counts_for_what_is_predicted():
    tasks = ("is_video_playback_50", "is_replied", "is_favorited")
    assert weights_for("2026", tasks) == {"is_favorited": 0.5, "is_replied": 5.0, "is_video_playback_50": 0.0}
    left_out = ("is_retweeted", "is_good_clicked_v1", "is_good_clicked_v2", "is_negative_feedback", "is_reported")
    assert left_out_of("2026", tasks) == left_out
    given = {"is_reported": -1.0}
    assert weights_for(given, tasks) is given
    assert left_out_of(given, tasks) == ()
    with pytest.raises(UserError, match=r"weights=2026: the ranker predicts none .* of is_video_playback_50"):
        weights_for("2026", tasks[:1])


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_is_finite(weight):
    with pytest.raises(UserError, match="must be finite"):
        weight_vector({"a": weight}, ("a",))


def test_equal_scores_keep_their_order():
    assert best_first(np.array([1.0, 3.0, 1.0, 3.0])).tolist() == [1, 3, 0, 2]
