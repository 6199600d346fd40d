"""How a timeline is put together: ``timeline.yaml`` of a bundle. ``docs/timeline.md`` has the formulas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from rookery.config.base import StrictModel

Preset: TypeAlias = Literal["2023", "2026"]

WEIGHT_PRESETS: Mapping[Preset, Mapping[str, float]] = {
    "2023": {
        "is_favorited": 0.5,
        "is_retweeted": 1.0,
        "is_replied": 13.5,
        "is_good_profile_clicked": 12.0,
        "is_video_playback_50": 0.005,
        "is_reply_engaged_by_author": 75.0,
        "is_good_clicked_v1": 11.0,
        "is_good_clicked_v2": 10.0,
        "is_negative_feedback": -74.0,
        "is_reported": -369.0,
    },
    # The successor has engagements of its own. Those that ours mean keep their weight, a click that was worth it takes
    # that of a click; what it does not score weighs nothing.
    "2026": {
        "is_favorited": 0.5,
        "is_retweeted": 1.0,
        "is_replied": 5.0,
        "is_good_profile_clicked": 0.0,
        "is_video_playback_50": 0.0,
        "is_reply_engaged_by_author": 0.0,
        "is_good_clicked_v1": 0.4,
        "is_good_clicked_v2": 0.4,
        "is_negative_feedback": -43.2,
        "is_reported": -234.0,
    },
}
"""Weights of the engagements in a post's score, as published on 5 April 2023 and by the successor in 2026."""

MAX_WEIGHT = 1e6
"""Of either sign; the published ones are within 369."""


def _no_switch(value: object) -> object:
    """``True`` would silently weigh 1."""
    if value is True or value is False:
        raise ValueError("must be a number, not a truth value")
    return value


def _weighs_something(weights: dict[str, float]) -> dict[str, float]:
    if not any(weights.values()):
        raise ValueError("every post would score 0; give an engagement a weight other than 0, or name a set")
    return weights


_Weight: TypeAlias = Annotated[
    float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False), BeforeValidator(_no_switch)
]
_WeightMap: TypeAlias = Annotated[dict[str, _Weight], AfterValidator(_weighs_something)]
_Weights: TypeAlias = Annotated[
    Annotated[Preset, Tag("set")] | Annotated[_WeightMap, Tag("map")],
    # Of one that is wrong only what is wrong as what it was meant for is told.
    Discriminator(lambda value: "map" if isinstance(value, Mapping) else "set"),
]


class AuthorDiversity(StrictModel):
    """The n-th post of an author, n from 0 in the order of scores, counts ``(1 − floor) · decay^n + floor`` times."""

    decay: float = Field(default=0.5, ge=0.0, le=1.0)
    floor: float = Field(default=0.25, ge=0.0, le=1.0)


class Filters(StrictModel):
    """What does not come up again. One's own posts never do."""

    seen: bool = True
    """Leave out posts that the user was shown already."""
    muted_authors: bool = True
    """Leave out authors whom the user gave negative feedback on."""


class Interests(StrictModel):
    """Which questions TwHIN is asked for a user's posts out of network."""

    relation: str = "favorite"
    """From users to posts."""
    num_clusters: int = Field(default=3, ge=1)
    """The posts favourited last are asked for as so many clusters, by how many of them each holds."""
    own_share: float = Field(default=0.75, ge=0.0, le=1.0)
    """The share of places for the user's own vector under the relation; all of them where nothing was favourited."""
    author_share: float = Field(default=0.75, ge=0.0, le=1.0)
    """How much of a post's vector is its author's: a recent post has had few engagements to learn its own from."""


class TimelineConfig(StrictModel):
    """Candidates, weights and what is done to scores."""

    weights: _Weights = "2023"
    """The name of a set, of which counts what the ranker predicts; or a weight for each engagement, 0 if not named."""
    num_in_network: int = Field(default=200, ge=0)
    """The newest posts of followed authors."""
    num_out_of_network: int = Field(default=300, ge=0)
    """Posts of others that TwHIN finds."""
    max_age_hours: float = Field(default=48.0, gt=0.0, allow_inf_nan=False)
    interests: Interests = Interests()
    author_diversity: AuthorDiversity = AuthorDiversity()
    out_of_network_factor: float = Field(default=0.75, ge=0.0, le=1.0)
    filters: Filters = Filters()
    exact_search_up_to: int = Field(default=200_000, ge=0)
    """Of more recent posts than this an approximate index is built."""

    @field_validator("weights", mode="before")
    @classmethod
    def _year(cls, value: object) -> object:
        """YAML reads ``weights: 2023`` as a number."""
        if isinstance(value, Mapping) or str(value) in PRESETS:
            return value if isinstance(value, Mapping) else str(value)
        raise ValueError(f"must name a set of weights, {' or '.join(PRESETS)}, or map engagements to weights")

    @model_validator(mode="after")
    def _has_candidates(self) -> TimelineConfig:
        if not self.num_in_network and not self.num_out_of_network:
            raise ValueError(
                "num_in_network=0 and num_out_of_network=0: no timeline would have a post; give one of them more than 0"
            )
        return self


PRESETS: tuple[Preset, ...] = get_args(Preset)
