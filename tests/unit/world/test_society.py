from __future__ import annotations

import numpy as np
import pytest

from rookery.world.config import WorldConfig
from rookery.world.society import (
    FAME_EXPONENT,
    P_PRIMARY,
    P_SECONDARY,
    draw_follows,
    draw_society,
    load_society,
    save_society,
)

CONFIG = WorldConfig(
    num_users=20_000,
    num_communities=20,
    num_topics=10,
    mean_following=15,
    posts_per_day=10,
    impressions_per_day=10,
)


@pytest.fixture(scope="module")
def society():
    return draw_society(CONFIG)


@pytest.fixture(scope="module")
def follows(society):
    return draw_follows(CONFIG, society)


def test_fame_falls_with_rank_by_its_exponent(society):
    for community in range(CONFIG.num_communities):
        fame = np.sort(society.fame[society.communities[:, 0] == community])[::-1]
        assert fame.sum() == pytest.approx(1)
        np.testing.assert_allclose(fame / fame[0], np.arange(1, len(fame) + 1) ** -FAME_EXPONENT)


def test_in_degrees_follow_fame(society, follows):
    """As often as the three ways of a follow lead there; the famous, whom all know already, a little less."""
    out, communities = follows.lengths(), society.communities
    by_first = np.bincount(communities[:, 0], out, CONFIG.num_communities)
    by_second = np.bincount(communities[:, 1], out, CONFIG.num_communities)
    p_any = 1 - P_PRIMARY - P_SECONDARY
    home = communities[:, 0]
    anywhere = p_any * out.sum() / CONFIG.num_communities
    expected = society.fame * (P_PRIMARY * by_first[home] + P_SECONDARY * by_second[home] + anywhere)
    found = np.bincount(follows.values, minlength=CONFIG.num_users)
    for low, high in ((4, 6), (6, 10), (10, 30), (30, 80)):
        rows = (expected >= low) & (expected < high)
        error = np.sqrt(expected[rows].sum())
        assert rows.sum() > 50
        assert found[rows].sum() == pytest.approx(expected[rows].sum(), abs=4 * error + 0.08 * expected[rows].sum())


def test_in_degrees_have_a_heavy_tail(follows):
    """By Zipf's law of fame the tail is a Pareto's of exponent ``1 / FAME_EXPONENT`` (Hill's estimate)."""
    degrees = np.sort(np.bincount(follows.values))[::-1].astype(float)
    tail = degrees[:1_500]
    hill = 1 / np.log(tail / tail[-1]).mean()
    assert hill == pytest.approx(1 / FAME_EXPONENT, rel=0.15)
    assert degrees[0] > 20 * degrees.mean()


def test_out_degrees_are_lognormal_with_the_mean_that_was_asked(follows):
    degrees = follows.lengths()
    assert degrees.mean() == pytest.approx(CONFIG.mean_following, rel=0.03)
    logs = np.log(degrees[degrees > 3])
    assert np.quantile(logs, 0.9) - np.median(logs) == pytest.approx(0.8 * 1.2816, rel=0.15)
    assert degrees.min() >= 1


def test_nobody_follows_oneself_or_twice(follows):
    assert not (follows.owners() == follows.values).any()
    pairs = np.stack((follows.owners(), follows.values))
    assert np.unique(pairs, axis=1).shape == pairs.shape


def test_follows_stay_in_communities(society, follows):
    users, authors = follows.owners(), follows.values
    home = society.communities[authors, 0]
    inside = (society.communities[users, 0] == home).mean()
    second = (society.communities[users, 1] == home).mean()
    by_chance = 1 / CONFIG.num_communities
    p_any = 1 - P_PRIMARY - P_SECONDARY
    # Whoever wants more than the famous of a community is sent on, most often elsewhere.
    assert inside == pytest.approx(P_PRIMARY + p_any * by_chance, abs=0.03)
    assert second == pytest.approx(P_SECONDARY + p_any * by_chance, abs=0.03)


def test_tastes_are_near_in_a_community_and_styles_near_to_tastes(society):
    rng = np.random.default_rng(0)
    first, other = rng.integers(0, CONFIG.num_users, (2, 20_000))
    alike = (society.tastes[first] * society.tastes[other]).sum(1)
    same = society.communities[first, 0] == society.communities[other, 0]
    assert alike[same].mean() > 0.6
    assert abs(alike[~same].mean()) < 0.2
    assert (society.tastes * society.styles).sum(1).mean() > 0.9
    np.testing.assert_allclose(np.linalg.norm(society.tastes, axis=1), 1, rtol=1e-5)


def test_a_quarter_writes(society):
    assert (society.posting > 0).mean() == pytest.approx(0.25, abs=0.01)
    assert society.posting.sum() == pytest.approx(1)
    assert society.activity.sum() == pytest.approx(1)


def test_a_society_comes_back_as_it_was(society, tmp_path):
    save_society(society, {"intercepts": np.arange(3.0)}, tmp_path / "society.safetensors")
    again, extra = load_society(tmp_path / "society.safetensors")
    assert all(np.array_equal(value, getattr(again, name)) for name, value in vars(society).items())
    assert extra["intercepts"].tolist() == [0, 1, 2]
    assert list(extra) == ["intercepts"]
