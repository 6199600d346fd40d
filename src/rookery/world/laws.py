"""How likely each engagement is. docs/world.md writes it out as formulas.

An impression has causes (affinity to the author's style, to the topic, the follow, …). Ten events are drawn from
them, independently given the causes, each with a logit that is linear in the causes; the engagements are made of
events, so that what implies what holds by construction and every probability has a closed form.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rookery.data.catalog_features import HOUR_US, MEDIA
from rookery.data.engagements import ENGAGEMENTS
from rookery.world.draws import Floats, Rows
from rookery.world.posts import DrawnPosts
from rookery.world.society import Society

BASE_RATES = dict(zip(ENGAGEMENTS, (0.15, 0.02, 0.03, 0.01, 0.10, 0.004, 0.02, 0.03, 0.003, 1e-4), strict=True))
"""Mean probability of each engagement over what the mixed policy shows; the intercepts are solved for these."""

CAUSES = (
    "affinity",
    "topic",
    "follows",
    "mood",
    "quality",
    "freshness",
    "media",
    "length",
    "position",
    "repeats",
    "shown",
)

EVENTS = {
    #                affinity topic follows mood quality fresh media length position repeats shown
    "favorite":       (0.90, 0.40,  0.50,  0.50, 0.40, 0.35,  0.5, -0.10, -0.05, -0.35, -0.10),
    "retweet":        (0.90, 0.40,  0.30,  0.50, 0.60, 0.45,  0.3,  0.00, -0.05, -0.35, -0.10),
    "reply":          (0.80, 0.30,  0.90,  0.60, 0.20, 0.60,  0.0,  0.20, -0.06, -0.35, -0.10),
    "profile":        (0.90, 0.30, -0.80,  0.40, 0.40, 0.10,  0.1,  0.00, -0.05, -0.20, -0.10),
    "playback":       (0.60, 0.50,  0.10,  0.30, 0.50, 0.00,  1.0,  0.00, -0.04, -0.20, -0.20),
    "author_answers": (0.50, 0.00,  0.80,  0.00, 0.00, 0.60,  0.0,  0.10,  0.00,  0.00,  0.00),
    "click":          (0.70, 0.50,  0.10,  0.40, 0.40, 0.30,  0.3,  0.30, -0.08, -0.30, -0.15),
    "stay":           (0.40, 0.40,  0.00,  0.00, 0.50, 0.00,  0.2,  0.60,  0.00, -0.10, -0.10),
    "reject":         (-0.90, -0.50, -0.60, 0.20, -0.70, -0.10, 0.0, 0.10, -0.02,  0.50,  0.20),
    "report":         (-0.30, -0.10, -0.50, 0.20, -0.90, 0.00,  0.0, 0.00,  0.00,  0.10,  0.00),
}  # fmt: skip
"""The weight of each cause in the logit of each event."""

EVENT_OF_ENGAGEMENT = {
    "is_favorited": "favorite",
    "is_retweeted": "retweet",
    "is_replied": "reply",
    "is_good_profile_clicked": "profile",
    "is_video_playback_50": "playback",
    "is_reply_engaged_by_author": "author_answers",
    "is_good_clicked_v1": "click",
    "is_good_clicked_v2": "stay",
    "is_negative_feedback": "reject",
    "is_reported": "report",
}
"""The event whose intercept sets the base rate of an engagement; those before it are solved first."""

_NAMES = tuple(EVENTS)
_WEIGHTS = np.array([EVENTS[name] for name in _NAMES])
_VIDEO = MEDIA.index("video")
_TASTE_SCALE = 0.35
_QUALITY_OF_AUTHOR = 0.6
_FRESH_HOURS = 12.0
_LENGTH_SCALE = 70.0
_MEAN_LENGTH = 95.0
_BISECTIONS = 50


@dataclass(frozen=True)
class Showing:
    """Impressions, ``[rows]`` each: of which post to whom, when and where."""

    users: Rows
    posts: Rows
    times_us: Rows
    positions: Rows
    author_repeats: Rows
    """Posts of the same author higher up in the same session."""
    shown_today: Rows
    """Posts that the user was shown since midnight, before the session."""


@dataclass(frozen=True)
class Causes:
    """``values [rows, len(CAUSES)]`` and which posts are videos."""

    values: Floats
    is_video: NDArray[np.bool_]


def causes_of(society: Society, drawn: DrawnPosts, showing: Showing, follows: NDArray[np.bool_]) -> Causes:
    """The causes; ``follows [rows]``: whether the user follows the author."""
    users, posts = showing.users, drawn.posts
    authors, topics, media = (column[showing.posts] for column in (posts.authors, posts.topics, posts.media))
    tastes = society.tastes[users]
    age_hours = (showing.times_us - posts.created_us[showing.posts]) / HOUR_US
    own, of_author = drawn.qualities[showing.posts], society.author_qualities[authors]
    values = np.stack(
        [
            np.einsum("nd,nd->n", tastes, society.styles[authors]) / _TASTE_SCALE,
            np.einsum("nd,nd->n", tastes, society.topic_vectors[topics]) / _TASTE_SCALE,
            follows,
            society.moods[users],
            _QUALITY_OF_AUTHOR * of_author + np.sqrt(1 - _QUALITY_OF_AUTHOR**2) * own,
            -np.log1p(age_hours / _FRESH_HOURS),
            society.media_tastes[users, media],
            (posts.lengths[showing.posts] - _MEAN_LENGTH) / _LENGTH_SCALE,
            showing.positions,
            showing.author_repeats,
            np.log1p(showing.shown_today / 10),
        ],
        axis=1,
    ).astype(np.float64)
    return Causes(values, media == _VIDEO)


def event_probabilities(causes: Causes, intercepts: Floats) -> Floats:
    """Of each event, given those that it rests on ``[rows, events]``; only a video is played."""
    return _sigmoid(causes.values @ _WEIGHTS.T + intercepts) * _possible(causes)


def engagement_probabilities(events: Floats) -> Floats:
    """Of each engagement ``[rows, 10]``, from the probabilities of events, or from drawn events (0 and 1)."""
    event = dict(zip(_NAMES, events.T, strict=True))
    engaged = 1 - (1 - event["favorite"]) * (1 - event["reply"])
    return np.stack(
        [
            event["favorite"],
            event["retweet"],
            event["reply"],
            event["profile"],
            event["playback"],
            event["reply"] * event["author_answers"],
            event["click"] * engaged,
            event["click"] * event["stay"],
            event["reject"],
            event["reject"] * event["report"],
        ],
        axis=1,
    )


def draw_engagements(rng: np.random.Generator, events: Floats) -> NDArray[np.int8]:
    """Labels ``[rows, 10]``: each event happens or not, and the engagements follow."""
    happened = (rng.random(events.shape) < events).astype(np.float64)
    return engagement_probabilities(happened).astype(np.int8)


def solve_intercepts(causes: Causes) -> Floats:
    """Intercepts ``[events]`` with which the mean probability of each engagement over ``causes`` is its base rate.

    One after the other by bisection: an engagement's mean rises with the intercept of its own event, and rests on
    events that are solved before it.
    """
    logits, possible = causes.values @ _WEIGHTS.T, _possible(causes)
    intercepts = np.zeros(len(_NAMES))
    events = np.zeros_like(logits)
    for column, engagement in enumerate(ENGAGEMENTS):
        place = _NAMES.index(EVENT_OF_ENGAGEMENT[engagement])
        low, high = -30.0, 30.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            events[:, place] = _sigmoid(logits[:, place] + middle) * possible[:, place]
            mean = engagement_probabilities(events)[:, column].mean()
            low, high = (middle, high) if mean < BASE_RATES[engagement] else (low, middle)
        intercepts[place] = middle
    return intercepts


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logits)))


def _possible(causes: Causes) -> Floats:
    """1 where an event can happen ``[rows, events]``: only a video is played."""
    possible = np.ones((len(causes.values), len(_NAMES)))
    possible[:, _NAMES.index("playback")] = causes.is_video
    return possible
