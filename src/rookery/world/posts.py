"""Posts of a day: who writes, on what, and when."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rookery.data.catalog_counts import Posts
from rookery.data.catalog_features import DAY_US
from rookery.world.config import WorldConfig
from rookery.world.draws import Rows, Stream, cumulate, generator
from rookery.world.society import Society

MEDIA_SHARES = (0.4, 0.25, 0.35)

TOPIC_SHARPNESS = 5.0
"""An author writes on a topic with a probability in proportion to ``exp(TOPIC_SHARPNESS · style · topic)``."""

_MAX_LENGTH = 280


@dataclass(frozen=True)
class DrawnPosts:
    """What anybody can see, and the latent quality of each."""

    posts: Posts
    qualities: NDArray[np.float32]

    def then(self, later: DrawnPosts) -> DrawnPosts:
        """These, and ``later`` ones behind them."""
        return DrawnPosts(self.posts.then(later.posts), np.concatenate((self.qualities, later.qualities)))


def draw_posts(config: WorldConfig, society: Society, day: int, midnight_us: int) -> DrawnPosts:
    """The posts of one day, in order of creation."""
    rng = generator(config.seed, Stream.POSTS, day)
    size = config.posts_per_day
    cumulative = cumulate(society.posting)
    authors = np.searchsorted(cumulative, cumulative[-1] * rng.random(size), side="right") - 1
    topics = _topics(rng, society, authors)
    media = np.searchsorted(np.cumsum(MEDIA_SHARES)[:-1], rng.random(size), side="right")
    lengths = np.clip(rng.lognormal(4.4, 0.6, size), 5, _MAX_LENGTH)
    posts = Posts(
        authors=authors.astype(np.int64),
        topics=topics.astype(np.int16),
        media=media.astype(np.int8),
        lengths=lengths.astype(np.int16),
        created_us=midnight_us + times_of_day(rng, size),
    )
    return DrawnPosts(posts, rng.normal(size=size).astype(np.float32))


def times_of_day(rng: np.random.Generator, size: int) -> Rows:
    """Sorted microseconds since midnight; the evening has three times as much as the night."""
    position = rng.random(size)
    phase = 2 * np.pi * (position - 0.33)  # densest at 0.83 of the day
    shifted = (position + 0.08 * np.sin(phase)) % 1.0
    return np.sort((shifted * DAY_US).astype(np.int64))


def _topics(rng: np.random.Generator, society: Society, authors: Rows) -> Rows:
    """The largest of the logits with Gumbel noise: a draw from their softmax."""
    logits = TOPIC_SHARPNESS * np.einsum("nd,kd->nk", society.styles[authors], society.topic_vectors)
    noise = -np.log(-np.log(rng.random(logits.shape)))
    return np.asarray(np.argmax(logits + noise, axis=1))
