"""The people of a world: communities, latent tastes, moods, fame, and who follows whom (docs/world.md)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from rookery.data.adjacency import Adjacency, distinct
from rookery.data.catalog_features import DAY_US, MEDIA
from rookery.world.config import WorldConfig
from rookery.world.draws import Floats, Rows, Stream, by_weight, cumulate, generator

TASTE_DIM = 16

FAME_EXPONENT = 0.75
"""Fame falls with the rank among the members of a community as ``rank ** -FAME_EXPONENT``."""

AUTHOR_SHARE = 0.25
"""Of the users; the others only read."""

P_PRIMARY, P_SECONDARY = 0.55, 0.2
"""Where a follow leads: into the first community of a user, into the second one, or anywhere."""

_AUTHORS_AHEAD = 0.8
_FOLLOWING_SIGMA = 0.8
_ACTIVITY_SIGMA = 0.9
_FOLLOW_ROUNDS = 6
_OLDEST_DAYS = 2_000

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Society:
    """Latent causes of behaviour; none of it is in a log. Vectors ``[·, TASTE_DIM]`` have length 1."""

    communities: NDArray[np.int16]
    """The first and the second community of each user ``[users, 2]``."""
    tastes: Matrix
    """What users like ``[users, TASTE_DIM]``."""
    styles: Matrix
    """What they write ``[users, TASTE_DIM]``: near to their taste."""
    topic_vectors: Matrix
    media_tastes: Matrix
    """``[users, media]``."""
    moods: NDArray[np.float32]
    """How readily a user engages at all."""
    author_qualities: NDArray[np.float32]
    fame: Floats
    """Weight of a user in being followed, sums to 1 over a community's members."""
    activity: Floats
    """Share of the sessions, sums to 1."""
    posting: Floats
    """Share of the posts, sums to 1; 0 for three quarters of the users."""
    joined_days: NDArray[np.float64]
    """Days before the first one of the world."""

    def joined_us(self, first_day_us: int) -> Rows:
        """When each user came."""
        joined: Rows = first_day_us - (self.joined_days * DAY_US).astype(np.int64)
        return joined


def draw_society(config: WorldConfig) -> Society:
    """The people, without their follows."""
    rng = generator(config.seed, Stream.SOCIETY)
    users = config.num_users
    topic_vectors = _unit(rng.normal(size=(config.num_topics, TASTE_DIM)))
    centers = _community_centers(rng, config.num_communities, topic_vectors)
    communities = _memberships(rng, users, config.num_communities)
    tastes = _unit(
        centers[communities[:, 0]] + 0.5 * centers[communities[:, 1]] + 0.09 * rng.normal(size=(users, TASTE_DIM))
    )
    is_author = rng.random(users) < AUTHOR_SHARE
    is_author[0] = True  # in the smallest of worlds chance may leave none
    fame = _fame(rng, communities[:, 0], is_author)
    activity = rng.lognormal(0.0, _ACTIVITY_SIGMA, users)
    posting = is_author * fame**0.5 * rng.lognormal(0.0, 0.5, users)
    return Society(
        communities=communities,
        tastes=tastes,
        styles=_unit(tastes + 0.06 * rng.normal(size=(users, TASTE_DIM))),
        topic_vectors=topic_vectors,
        media_tastes=(np.array([-0.2, 0.1, 0.2]) + 0.6 * rng.normal(size=(users, len(MEDIA)))).astype(np.float32),
        moods=rng.normal(size=users).astype(np.float32),
        author_qualities=rng.normal(size=users).astype(np.float32),
        fame=fame,
        activity=activity / activity.sum(),
        posting=posting / posting.sum(),
        joined_days=_OLDEST_DAYS * rng.random(users),
    )


def _unit(vectors: Floats) -> Matrix:
    unit: Matrix = (vectors / np.sqrt((vectors**2).sum(-1, keepdims=True))).astype(np.float32)
    return unit


def _community_centers(rng: np.random.Generator, num_communities: int, topic_vectors: Matrix) -> Matrix:
    """Each lies between two topics and a direction of its own."""
    topics = rng.integers(0, len(topic_vectors), (num_communities, 2))
    own = 0.25 * rng.normal(size=(num_communities, TASTE_DIM))
    return _unit(topic_vectors[topics].sum(1) * 0.7 + own)


def _memberships(rng: np.random.Generator, num_users: int, num_communities: int) -> NDArray[np.int16]:
    first = rng.permutation(np.arange(num_users) % num_communities)
    second = (first + rng.integers(1, max(2, num_communities), num_users)) % num_communities
    return np.stack((first, second), axis=1).astype(np.int16)


def _fame(rng: np.random.Generator, communities: NDArray[np.int16], is_author: NDArray[np.bool_]) -> Floats:
    """By rank among the members of a community; who writes ranks before most who do not."""
    fame = np.empty(len(communities))
    rank_key = rng.random(len(communities)) + _AUTHORS_AHEAD * ~is_author
    members = Adjacency.in_order(communities.astype(np.int64), int(communities.max()) + 1)
    for community in range(len(members)):
        rows = members.row(community)
        weights = np.arange(1, len(rows) + 1, dtype=np.float64) ** -FAME_EXPONENT
        fame[rows[np.argsort(rank_key[rows], kind="stable")]] = weights / weights.sum()
    return fame


def draw_follows(config: WorldConfig, society: Society) -> Adjacency:
    """Whom each user follows: as many distinct others as a lognormal number says, by community and fame.

    A pair that is drawn again, or oneself, is drawn anew, a few times: whoever wants to follow more than the famous of
    a small community ends with fewer.
    """
    rng = generator(config.seed, Stream.FOLLOWS)
    wanted = _num_following(rng, config)
    members = Adjacency.in_order(society.communities[:, 0].astype(np.int64), config.num_communities)
    cumulative = cumulate(society.fame[members.values])
    keys = np.empty(0, np.int64)
    for _ in range(_FOLLOW_ROUNDS):
        missing = wanted - np.bincount(keys // config.num_users, minlength=config.num_users)
        users = np.repeat(np.arange(config.num_users), missing)
        first, last = _where_to(rng, society, members, users)
        authors = members.values[by_weight(rng, cumulative, first, last)]
        keys = distinct(np.concatenate((keys, (users * config.num_users + authors)[users != authors])))
    return Adjacency.of_pairs(keys // config.num_users, keys % config.num_users, config.num_users)


def _num_following(rng: np.random.Generator, config: WorldConfig) -> Rows:
    """Lognormal with mean ``mean_following``, from 1 to a fifth of all users."""
    median = config.mean_following * np.exp(-(_FOLLOWING_SIGMA**2) / 2)
    drawn = np.round(rng.lognormal(np.log(median), _FOLLOWING_SIGMA, config.num_users))
    return np.clip(drawn, 1, max(1, config.num_users // 5)).astype(np.int64)


def _where_to(rng: np.random.Generator, society: Society, members: Adjacency, users: Rows) -> tuple[Rows, Rows]:
    """The interval of members from which each follow is drawn."""
    choice = rng.random(len(users))
    community = society.communities[users, (choice >= P_PRIMARY).astype(np.int64)]
    anywhere = choice >= P_PRIMARY + P_SECONDARY
    first, last = members.offsets[community], members.offsets[community + 1]
    return np.where(anywhere, 0, first), np.where(anywhere, len(society.fame), last)


def save_society(society: Society, extra: dict[str, np.ndarray], file: Path) -> None:
    """Write the society, and what else the laws need, under the names of its fields."""
    arrays = {field.name: getattr(society, field.name) for field in fields(society)}
    save_file({name: np.ascontiguousarray(array) for name, array in (arrays | extra).items()}, file)


def load_society(file: Path) -> tuple[Society, dict[str, np.ndarray]]:
    """The society and the other arrays of the file."""
    arrays = load_file(file)
    society = Society(**{field.name: arrays.pop(field.name) for field in fields(Society)})
    return society, arrays
