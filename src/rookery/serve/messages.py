"""Requests and responses of ``/v1``, as the OpenAPI document describes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from rookery.timeline.posts import SOURCES, Order, SourceName

MAX_CANDIDATES = 2_000
"""Posts that one request may have ranked."""

MAX_K = 100
"""Posts of a timeline, neighbours, users of a list."""


def _whole(value: Any) -> Any:
    """To JSON Schema ``20.0`` is an integer; strict validation would refuse it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


K = Annotated[int, Field(ge=1, le=MAX_K), BeforeValidator(_whole)]
Limit = Annotated[int, Field(ge=1, le=MAX_CANDIDATES), BeforeValidator(_whole)]
Id = Annotated[str, Field(min_length=1, max_length=256)]
Weight = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Weights = Annotated[
    dict[str, Weight],
    Field(max_length=64, description="A weight for each engagement; one that is not named weighs 0."),
]

_POST = {
    "post_id": "post_204",
    "author_id": "user_9",
    "source": "in_network",
    "probabilities": {"is_favorited": 0.21, "is_replied": 0.04},
    "contributions": {"is_favorited": 0.105, "is_replied": 0.54},
    "score": 0.645,
    "created_at": "2026-01-14T18:05:00+00:00",
    "topic": "topic_3",
    "media": "image",
}


def _request(example: dict[str, Any]) -> ConfigDict:
    """Strict: a number in quotes is not a number, and an unknown field is an error rather than ignored."""
    return ConfigDict(strict=True, extra="forbid", json_schema_extra={"examples": [example]})


def _response(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [example]})


class _Part(BaseModel):
    """Of a response: it has these fields and no others."""

    model_config = ConfigDict(extra="forbid")


class CandidatesRequest(BaseModel):
    """Whose candidates."""

    model_config = _request({"user_id": "user_17", "limit": 100})

    user_id: Id
    limit: Limit | None = Field(default=None, description="The first so many; all if left out.")


class RankRequest(BaseModel):
    """Posts to rank for a user."""

    model_config = _request(
        {"user_id": "user_17", "post_ids": ["post_204", "post_9"], "weights": {"is_favorited": 1.0}}
    )

    user_id: Id
    post_ids: list[Id] = Field(min_length=1, max_length=MAX_CANDIDATES)
    weights: Weights | None = Field(default=None, description="The bundle's own if left out.")


class TimelineRequest(BaseModel):
    """Whose timeline, and how it is put together."""

    model_config = _request({"user_id": "user_17", "k": 20, "sources": list(SOURCES), "order": "score"})

    user_id: Id
    k: K
    weights: Weights | None = Field(default=None, description="The bundle's own if left out.")
    sources: list[SourceName] = Field(default=list(SOURCES), min_length=1, max_length=2)
    diversity: bool = Field(default=True, description="Whether further posts of an author count less.")
    order: Order = "score"


class NeighborsRequest(BaseModel):
    """Users near a user."""

    model_config = _request({"user_id": "user_17", "k": 10})

    user_id: Id
    k: K


class SimilarRequest(BaseModel):
    """Posts near a post."""

    model_config = _request({"post_id": "post_204", "k": 10})

    post_id: Id
    k: K


class UsersQuery(BaseModel):
    """Which users to list."""

    model_config = ConfigDict(extra="forbid")

    prefix: str = Field(default="", max_length=256, description="How their ids begin.")
    limit: int = Field(default=20, ge=1, le=MAX_K)


class Candidate(_Part):
    """A post that may stand in the timeline."""

    post_id: str
    author_id: str
    source: SourceName
    retrieval_score: float


class CandidatesResponse(BaseModel):
    """Candidates, those in network first."""

    model_config = _response(
        {
            "candidates": [
                {"post_id": "post_204", "author_id": "user_9", "source": "in_network", "retrieval_score": 0.82}
            ],
            "version": "1f3a90c2",
        }
    )

    candidates: list[Candidate]
    version: str


class RankedPost(_Part):
    """A post with why it ranks where it does."""

    post_id: str
    author_id: str
    source: SourceName
    probabilities: dict[str, float] = Field(description="Of each engagement.")
    contributions: dict[str, float] = Field(description="Weight times probability of each engagement.")
    score: float = Field(description="The sum of the contributions.")
    created_at: str
    topic: str
    media: Literal["none", "image", "video"]
    true_probabilities: dict[str, float] | None = Field(
        default=None, description="Where the truth is known, in a simulated world; else absent."
    )


class RankResponse(BaseModel):
    """Posts by falling score."""

    model_config = _response({"posts": [_POST], "version": "1f3a90c2"})

    posts: list[RankedPost]
    version: str


class TimelinePost(RankedPost):
    """A post at its place."""

    position: int
    base_score: float = Field(description="The sum of the contributions.")
    diversity_factor: float
    network_factor: float
    final_score: float = Field(description="base_score times both factors.")


class Timings(_Part):
    """Milliseconds of this request: waiting for its batch and being served with it, and all together."""

    batch: float
    total: float


class TimelineResponse(BaseModel):
    """A timeline, its first post first."""

    model_config = _response(
        {
            "posts": [
                _POST
                | {
                    "position": 0,
                    "base_score": 0.645,
                    "diversity_factor": 1.0,
                    "network_factor": 1.0,
                    "final_score": 0.645,
                }
            ],
            "user": {"id": "user_17", "favorites": 41, "following": 12, "followers": 30},
            "weights": {"is_favorited": 0.5, "is_replied": 13.5},
            "version": "1f3a90c2",
            "timings_ms": {"batch": 18.2, "total": 19.0},
        }
    )

    posts: list[TimelinePost]
    user: dict[str, Any]
    weights: dict[str, float]
    version: str
    timings_ms: Timings


class Neighbor(_Part):
    """A user or a post that is near."""

    id: str
    score: float = Field(
        description="The cosine of both vectors, or minus their distance where TwHIN learnt distances."
    )


class NeighborsResponse(BaseModel):
    """The nearest users first; none where the user has no vector."""

    model_config = _response({"neighbors": [{"id": "user_9", "score": 0.93}], "version": "1f3a90c2"})

    neighbors: list[Neighbor]
    version: str


class SimilarResponse(BaseModel):
    """The nearest posts first; none where the post has no vector."""

    model_config = _response({"neighbors": [{"id": "post_77", "score": 0.88}], "version": "1f3a90c2"})

    neighbors: list[Neighbor]
    version: str


class User(BaseModel):
    """What is known of a user."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"examples": [{"id": "user_17", "favorites": 41, "following": 12, "followers": 30}]},
    )

    id: str


class UsersResponse(BaseModel):
    """Users, those who were shown most first."""

    model_config = _response({"users": [{"id": "user_17", "favorites": 41, "following": 12, "followers": 30}]})

    users: list[User]


class Diversity(_Part):
    """The n-th post of an author counts ``(1 - floor) * decay ** n + floor`` times."""

    decay: float
    floor: float


class ConfigResponse(BaseModel):
    """What the order of a timeline follows from."""

    model_config = _response(
        {
            "tasks": ["is_favorited", "is_replied"],
            "weights": {"is_favorited": 0.5, "is_replied": 13.5},
            "presets": {"2023": {"is_favorited": 0.5, "is_replied": 13.5}},
            "author_diversity": {"decay": 0.5, "floor": 0.25},
            "out_of_network_factor": 0.75,
            "now": "2026-01-15T00:00:00+00:00",
            "version": "1f3a90c2",
        }
    )

    tasks: list[str]
    weights: dict[str, float] = Field(description="Those of the bundle.")
    presets: dict[str, dict[str, float]] = Field(description="Sets of weights that have a name.")
    author_diversity: Diversity
    out_of_network_factor: float
    now: str = Field(description="The moment of the catalog; ages count from it.")
    version: str


class UserPoints(_Part):
    """Columns: the i-th of each belong together."""

    id: list[str]
    x: list[float]
    y: list[float]


class PostPoints(UserPoints):
    """Columns: the i-th of each belong together."""

    topic: list[str]


class MapResponse(BaseModel):
    """Points in [-1, 1] x [-1, 1]."""

    model_config = _response(
        {
            "method": "t-SNE",
            "users": {"id": ["user_17"], "x": [0.1], "y": [-0.4]},
            "posts": {"id": ["post_204"], "x": [0.2], "y": [-0.3], "topic": ["topic_3"]},
        }
    )

    method: str
    users: UserPoints
    posts: PostPoints


class MetricsResponse(BaseModel):
    """Tables, curves and reliability diagrams, as they were attached to the bundle."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {"tables": [{"title": "What was reached", "columns": ["", "AUROC"], "rows": [["is_favorited", 0.77]]}]}
            ]
        },
    )


class Health(BaseModel):
    """How the service is."""

    status: Literal["ok", "ready", "stopping"]
