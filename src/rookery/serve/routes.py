"""The routes of ``/v1``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic_core import to_json
from starlette.responses import Response

from rookery.serve.failures import ErrorResponse
from rookery.serve.messages import (
    CandidatesRequest,
    CandidatesResponse,
    ConfigResponse,
    MapResponse,
    MetricsResponse,
    NeighborsRequest,
    NeighborsResponse,
    RankRequest,
    RankResponse,
    SimilarRequest,
    SimilarResponse,
    TimelineRequest,
    TimelineResponse,
    User,
    UsersQuery,
    UsersResponse,
)
from rookery.serve.served import Served
from rookery.serve.service import Service
from rookery.timeline.posts import RankQuery, TimelineQuery

_REFUSALS = {
    401: "The token is missing or wrong.",
    403: "Without a token the service is open under the names of this machine alone.",
    408: "The body came too slowly.",
    422: "A value is not allowed, or the body is not JSON.",
    503: "Too much is under way; try again after Retry-After seconds.",
    504: "The answer took too long.",
}
_UNKNOWN = {404: "The user or post is not known."}
_WITH_BODY = {400: "The body is not UTF-8.", 413: "The body is too large."}


def _refusals(*more: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    described = {status: text for each in (_REFUSALS, *more) for status, text in each.items()}
    return {status: {"model": ErrorResponse, "description": text} for status, text in sorted(described.items())}


def make_router(service: Service) -> APIRouter:
    """Routes that answer from ``service``."""
    router = APIRouter(prefix="/v1")
    _add_rankings(router, service)
    _add_lookups(router, service)
    _add_descriptions(router, service)
    return router


def _add_rankings(router: APIRouter, service: Service) -> None:
    @router.post("/rank", response_model=RankResponse, responses=_refusals(_UNKNOWN, _WITH_BODY))
    async def rank(request: RankRequest) -> Response:
        """Rank these posts for a user, by falling score."""
        served = service.served
        query = RankQuery(request.user_id, request.post_ids, request.weights)

        async def work() -> bytes:
            posts = await service.posts(served, query)
            return await service.look_up(lambda: _json({"posts": _fields(posts), "version": served.version}))

        return _answer(await service.in_time(work()))

    @router.post("/timeline", response_model=TimelineResponse, responses=_refusals(_UNKNOWN, _WITH_BODY))
    async def timeline(request: TimelineRequest) -> Response:
        """The first posts of a user's timeline, each with why it stands there."""
        start = time.perf_counter()
        served = service.served
        query = TimelineQuery(
            request.user_id, request.k, request.weights, frozenset(request.sources), request.diversity, request.order
        )

        async def work() -> bytes:
            posts = await service.posts(served, query)
            batch_ms = _milliseconds_since(start)

            def encode() -> bytes:
                return _json(
                    {
                        "posts": _fields(posts),
                        "user": served.user(query.user_id),
                        "weights": served.weights if query.weights is None else query.weights,
                        "version": served.version,
                        "timings_ms": {"batch": batch_ms, "total": _milliseconds_since(start)},
                    }
                )

            return await service.look_up(encode)

        return _answer(await service.in_time(work()))


def _add_lookups(router: APIRouter, service: Service) -> None:
    @router.post("/candidates", response_model=CandidatesResponse, responses=_refusals(_UNKNOWN, _WITH_BODY))
    async def candidates(request: CandidatesRequest) -> Response:
        """The posts that a user's timeline is chosen from."""
        return await _look_up(
            service,
            lambda served: {
                "candidates": served.candidates(request.user_id)[: request.limit],
                "version": served.version,
            },
        )

    @router.post("/neighbors", response_model=NeighborsResponse, responses=_refusals(_UNKNOWN, _WITH_BODY))
    async def neighbors(request: NeighborsRequest) -> Response:
        """The users nearest to a user."""
        return await _look_up(
            service,
            lambda served: {"neighbors": served.neighbors(request.user_id, request.k), "version": served.version},
        )

    @router.post("/similar", response_model=SimilarResponse, responses=_refusals(_UNKNOWN, _WITH_BODY))
    async def similar(request: SimilarRequest) -> Response:
        """The posts nearest to a post."""
        return await _look_up(
            service, lambda served: {"neighbors": served.similar(request.post_id, request.k), "version": served.version}
        )

    @router.get("/users", response_model=UsersResponse, responses=_refusals())
    async def users(query: Annotated[UsersQuery, Query()]) -> Response:
        """Users by the beginning of their ids."""
        return await _look_up(service, lambda served: {"users": served.users(query.prefix, query.limit)})

    @router.get("/users/{user_id}", response_model=User, responses=_refusals(_UNKNOWN))
    async def user(user_id: Annotated[str, Path(min_length=1, max_length=256, examples=["user_17"])]) -> Response:
        """What is known of a user."""
        return await _look_up(service, lambda served: served.user(user_id))


def _add_descriptions(router: APIRouter, service: Service) -> None:
    @router.get("/config", response_model=ConfigResponse, responses=_refusals())
    async def config() -> Response:
        """Engagements, weights and factors of the bundle."""
        return await _look_up(service, lambda served: served.describe())

    @router.get("/map", response_model=MapResponse, responses=_refusals())
    async def embedding_map() -> Response:
        """Users and recent posts in the plane: near each other where their vectors are."""
        return _answer(service.served.map())

    @router.get("/metrics", response_model=MetricsResponse, responses=_refusals())
    async def metrics() -> Response:
        """What was measured when the bundle was made; empty where nothing was."""
        return _answer(service.served.metrics())


async def _look_up(service: Service, find: Callable[[Served], Any]) -> Response:
    served = service.served
    return _answer(await service.in_time(service.look_up(lambda: _json(find(served)))))


def _milliseconds_since(start: float) -> float:
    return round((time.perf_counter() - start) * 1e3, 3)


def _fields(posts: Sequence[object]) -> list[dict[str, Any]]:
    """Of each post what it has: the truth is there in simulated worlds alone."""
    return [{name: value for name, value in vars(post).items() if value is not None} for post in posts]


def _json(value: Any) -> bytes:
    return to_json(value, inf_nan_mode="null")


def _answer(body: bytes) -> Response:
    return Response(body, media_type="application/json")
