"""How large a simulated world is, and its seed. The laws are in ``laws.py`` and the same for every size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from rookery.config.base import StrictModel

Size: TypeAlias = Literal["tiny", "small", "medium", "large"]

MAX_TOPICS = 24

_Count: TypeAlias = Annotated[int, Field(ge=1)]


class WorldConfig(StrictModel):
    """Numbers of a world. A size names the usual ones: ``WorldConfig.of_size``."""

    num_users: _Count
    num_communities: _Count
    num_topics: int = Field(ge=1, le=MAX_TOPICS)
    mean_following: float = Field(gt=0.0)
    """Authors that a user follows, drawn; one that is drawn again is drawn anew."""
    posts_per_day: _Count
    impressions_per_day: _Count
    """About: a session that finds too few posts is shorter."""
    history_days: _Count = 4
    """Days before the log. They leave edges, and counts for the features of the log's first day."""
    log_days: _Count = 10
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _communities_have_members(self) -> WorldConfig:
        if self.num_communities * 4 > self.num_users:
            raise ValueError(f"num_communities={self.num_communities}: must be at most a quarter of num_users")
        return self

    @property
    def num_days(self) -> int:
        """History and log."""
        return self.history_days + self.log_days

    @staticmethod
    def of_size(size: Size, seed: int) -> WorldConfig:
        """A world of a named size."""
        return SIZES[size].model_copy(update={"seed": seed})


SIZES: Mapping[Size, WorldConfig] = {
    "tiny": WorldConfig(
        num_users=300,
        num_communities=6,
        num_topics=8,
        mean_following=12,
        posts_per_day=120,
        impressions_per_day=2_000,
        log_days=6,
    ),
    "small": WorldConfig(
        num_users=4_000,
        num_communities=16,
        num_topics=12,
        mean_following=25,
        posts_per_day=900,
        impressions_per_day=20_000,
    ),
    "medium": WorldConfig(
        num_users=100_000,
        num_communities=64,
        num_topics=16,
        mean_following=40,
        posts_per_day=9_000,
        impressions_per_day=200_000,
    ),
    "large": WorldConfig(
        num_users=500_000,
        num_communities=200,
        num_topics=24,
        mean_following=40,
        posts_per_day=40_000,
        impressions_per_day=4_000_000,
        log_days=25,
    ),
}
"""``large`` logs 100 million impressions."""
