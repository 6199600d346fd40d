"""What timelines are worth where the truth is known, beside what others would show and the best that can be shown.

The worth of a list is the sum of what its posts truly score, each over the logarithm of its place:
``Σ_p s_p / log2(p + 2)`` for places ``p = 0 … k − 1``. Truth is a function that is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rookery.data.engagements import ENGAGEMENTS
from rookery.metrics.bootstrap import Resampling, interval
from rookery.timeline.candidates import CandidateRows
from rookery.timeline.pool import Rows
from rookery.timeline.posts import Truth
from rookery.timeline.scoring import Floats, best_first, weight_vector
from rookery.timeline.timeline import Timeline

RECALL_AT = (10, 50, 100)
_FAVORITES = 1  # the column of favourites among a post's counts
_NUM_BOOTSTRAP = 400


@dataclass(frozen=True)
class PolicyValue:
    """A policy's mean worth to a user, its share of the oracle's, and 95% intervals by resampling users."""

    policy: str
    value: float
    value_interval: tuple[float, float]
    share: float
    share_interval: tuple[float, float]


@dataclass(frozen=True)
class CandidateRecall:
    """The share of the ``best`` posts by true score that are among the candidates; means over users.

    ``all``: of all that may be shown, ``all_chance`` if as many candidates were drawn at random. The others are of
    posts out of network alone: what TwHIN finds, as many of the most favourited, as many at random.
    """

    best: int
    all: float
    all_chance: float
    twhin: float
    popular: float
    out_of_network_chance: float


@dataclass(frozen=True)
class TimelineEvaluation:
    """The policies that were compared, in the order of ``POLICIES``, and the recall of candidates."""

    k: int
    num_users: int
    mean_allowed: float
    """Posts that may be shown to a user."""
    mean_candidates: float
    policies: list[PolicyValue]
    recall: list[CandidateRecall]


POLICIES: Mapping[str, str] = {
    "random": "any posts that may be shown",
    "recency": "the newest candidates",
    "popularity": "the posts with the most favourites",
    "ranker_in_network": "the best by the ranker's score of the candidates in network",
    "ranker_without_twhin": "the best candidates by the score of a ranker that knows no vectors",
    "ranker": "the best candidates by the ranker's score",
    "timeline": "the same as it is served: with the factor out of network and the diversity of authors",
    "best_of_candidates": "the best candidates by true score",
    "oracle": "the best posts by true score",
}
"""What is compared."""


@dataclass(frozen=True)
class _Allowed:
    """The posts that may be shown to a user, newest first, with what decides which are."""

    posts: Rows
    followed: NDArray[np.bool_]
    favorites: Rows
    true_scores: Floats


def evaluate_timelines(
    timeline: Timeline,
    truth: Truth,
    users: Sequence[int] | Rows,
    k: int,
    *,
    without_twhin: Timeline | None = None,
    seed: int = 0,
    notify: Callable[[int], None] = lambda num_users: None,
) -> TimelineEvaluation:
    """Compare ``timeline`` for ``users`` (rows of its catalog) with the other policies of ``POLICIES``.

    ``without_twhin`` ranks the same candidates by another ranker. Users to whom nothing may be shown are left out.
    ``notify`` is told of users that were done.
    """
    weights = weight_vector(timeline.weights, ENGAGEMENTS)
    values: list[Mapping[str, float]] = []
    recalls: list[dict[int, CandidateRecall]] = []
    sizes = []
    for number, user in enumerate(users):
        allowed = _allowed(timeline, truth, int(user), weights)
        notify(number + 1)
        if not len(allowed.posts):
            continue
        found = timeline.candidate_rows(int(user))
        shown = _shown(timeline, without_twhin, int(user), found, allowed, np.random.default_rng((seed, int(user))), k)
        true_score = dict(zip(allowed.posts.tolist(), allowed.true_scores.tolist(), strict=True))
        values.append({name: worth([true_score[post] for post in posts.tolist()]) for name, posts in shown.items()})
        recalls.append({best: recall_of(allowed, found, best) for best in RECALL_AT if best <= len(allowed.posts)})
        sizes.append((len(allowed.posts), len(found.posts)))
    means = np.mean(sizes, axis=0) if sizes else np.full(2, np.nan)
    return TimelineEvaluation(
        k=k,
        num_users=len(values),
        mean_allowed=float(means[0]),
        mean_candidates=float(means[1]),
        policies=_compared(values, seed),
        recall=[_mean_recall(best, [each[best] for each in recalls if best in each]) for best in RECALL_AT],
    )


def worth(scores: Sequence[float]) -> float:
    """``Σ_p s_p / log2(p + 2)`` of the true scores of a list, from its first post on."""
    places = np.arange(len(scores))
    return float((np.asarray(scores) / np.log2(places + 2)).sum())


def _allowed(timeline: Timeline, truth: Truth, user: int, weights: Floats) -> _Allowed:
    catalog, recent = timeline.catalog, timeline.recent
    places = np.flatnonzero(recent.allowed(user, timeline.config.filters))
    posts = recent.rows[places]
    times_us = np.full(len(posts), catalog.now_us)
    probabilities = truth(np.full(len(posts), user), posts, times_us) if len(posts) else np.empty((0, len(weights)))
    return _Allowed(
        posts,
        recent.followed(user)[places],
        catalog.counts.posts[posts, _FAVORITES].astype(np.int64),
        probabilities @ weights,
    )


def _shown(
    timeline: Timeline,
    without_twhin: Timeline | None,
    user: int,
    found: CandidateRows,
    allowed: _Allowed,
    rng: np.random.Generator,
    k: int,
) -> dict[str, Rows]:
    """The first ``k`` posts of each policy."""
    scored = timeline.scored(user, found, weight_vector(timeline.weights, timeline.tasks))
    inside = np.flatnonzero(found.in_network)
    true_scores = dict(zip(allowed.posts.tolist(), allowed.true_scores.tolist(), strict=True))
    truly = np.array([true_scores[post] for post in found.posts.tolist()])
    created_us = timeline.catalog.posts.created_us[found.posts].astype(np.float64)
    shown = {
        "random": rng.permutation(allowed.posts),
        "recency": found.posts[best_first(created_us)],
        "popularity": allowed.posts[best_first(allowed.favorites.astype(np.float64))],
        "ranker_in_network": found.posts[inside[best_first(scored.base[inside])]],
        "ranker": found.posts[best_first(scored.base)],
        "timeline": found.posts[best_first(scored.final)],
        "best_of_candidates": found.posts[best_first(truly)],
        "oracle": allowed.posts[best_first(allowed.true_scores)],
    }
    if without_twhin is not None:
        other = without_twhin.scored(user, found, weight_vector(without_twhin.weights, without_twhin.tasks))
        shown["ranker_without_twhin"] = found.posts[best_first(other.base)]
    return {name: shown[name][:k] for name in POLICIES if name in shown}


def recall_of(allowed: _Allowed, found: CandidateRows, best: int) -> CandidateRecall:
    """For one user; NaN out of network where fewer than ``best`` posts may be shown."""
    outside = np.flatnonzero(~allowed.followed)
    found_outside = found.posts[~found.in_network]
    popular = outside[best_first(allowed.favorites[outside].astype(np.float64))[: len(found_outside)]]
    best_outside = allowed.posts[outside[best_first(allowed.true_scores[outside])[:best]]]
    is_defined = len(best_outside) == best
    return CandidateRecall(
        best=best,
        all=_share(allowed.posts[best_first(allowed.true_scores)[:best]], found.posts),
        all_chance=len(found.posts) / len(allowed.posts),
        twhin=_share(best_outside, found_outside) if is_defined else np.nan,
        popular=_share(best_outside, allowed.posts[popular]) if is_defined else np.nan,
        out_of_network_chance=len(found_outside) / len(outside) if is_defined else np.nan,
    )


def _share(wanted: Rows, found: Rows) -> float:
    return float(np.isin(wanted, found).mean())


def _mean_recall(best: int, recalls: Sequence[CandidateRecall]) -> CandidateRecall:
    fields = ("all", "all_chance", "twhin", "popular", "out_of_network_chance")
    return CandidateRecall(best, *(_mean(getattr(each, field) for each in recalls) for field in fields))


def _mean(values: Iterable[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _compared(values: Sequence[Mapping[str, float]], seed: int) -> list[PolicyValue]:
    """The same users are drawn for all policies, so that the share of the oracle is one of the same users."""
    if not values:
        return []
    names = [name for name in POLICIES if name in values[0]]
    table = torch.tensor([[each[name] for name in names] for each in values], dtype=torch.float64)  # [users, policies]
    weightings = torch.cat(list(Resampling(len(values), _NUM_BOOTSTRAP, seed).chunks(_NUM_BOOTSTRAP + 1)), dim=1)
    means = weightings.T @ table / len(values)  # [1 + replicates, policies]
    shares = means / means[:, -1:]
    return [
        PolicyValue(
            name,
            float(means[0, column]),
            interval(means[1:, column]),
            float(shares[0, column]),
            interval(shares[1:, column]),
        )
        for column, name in enumerate(names)
    ]
