"""The HTTP application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

import rookery
from rookery.config.token import Token
from rookery.serve.bundle import BundleHolder
from rookery.serve.config import ServeConfig
from rookery.serve.failures import ErrorResponse, install_failures
from rookery.serve.guard import Gate, Observed
from rookery.serve.lifecycle import Lifecycle
from rookery.serve.messages import Health
from rookery.serve.metrics import ServiceMetrics
from rookery.serve.routes import make_router
from rookery.serve.served import Served
from rookery.serve.service import Service

_PAGE = Path(__file__).with_name("page")

_DESCRIPTION = (
    "Ranked timelines of a bundle: candidates for a user, the probability of each engagement with each post, what they "
    "add to its score, and the users and posts nearest to one."
)

_WITH_WEIGHTS = ("RankRequest", "TimelineRequest")


def create_app(
    holder: BundleHolder[Served], config: ServeConfig, token: Token | None = None, lifecycle: Lifecycle | None = None
) -> FastAPI:
    """The application that serves ``holder``'s bundle; with ``token``, to those who carry it.

    ``lifecycle`` tells it that the server is about to stop.
    """
    metrics, lifecycle = ServiceMetrics(), lifecycle or Lifecycle()
    service = Service(holder, config, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    # The framework's own pages of documentation load scripts from elsewhere.
    app = FastAPI(title="Rookery", version=rookery.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.include_router(make_router(service))
    _add_health(app, metrics, lifecycle)
    _add_page(app)
    install_failures(app)
    any_host = token is not None
    app.add_middleware(Gate, limits=config.limits, token=token, metrics=metrics, any_host=any_host)
    app.add_middleware(Observed, metrics=metrics, lifecycle=lifecycle)  # the last one added is the first one passed
    app.openapi = lambda: _openapi(app, service.served, with_token=token is not None)  # type: ignore[method-assign]
    return app


def _add_health(app: FastAPI, metrics: ServiceMetrics, lifecycle: Lifecycle) -> None:
    @app.get("/healthz")
    async def healthz() -> Health:
        """Whether the process answers."""
        return Health(status="ok")

    @app.get("/readyz", response_model=Health, responses={503: {"model": Health, "description": "About to stop."}})
    async def readyz() -> JSONResponse:
        """Whether to send requests here."""
        stopping = lifecycle.is_stopping
        return JSONResponse({"status": "stopping" if stopping else "ready"}, 503 if stopping else 200)

    @app.get("/metrics", response_class=Response, responses=_METRICS_RESPONSES)
    async def prometheus() -> Response:
        """Counters for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


_METRICS_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus' text format."},
    401: {"model": ErrorResponse, "description": "The token is missing or wrong."},
}


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=_PAGE), name="page")


def _openapi(app: FastAPI, served: Served, *, with_token: bool) -> dict[str, Any]:
    """The OpenAPI document: examples ask for a user and a post of the bundle of now, weights are its engagements."""
    document = get_openapi(title=app.title, version=app.version, description=_DESCRIPTION, routes=app.routes)
    schemas = document["components"]["schemas"]
    for name in _WITH_WEIGHTS:
        schemas[name]["properties"]["weights"]["anyOf"][0]["propertyNames"] = {"enum": list(served.tasks)}
    for operation in (each for operations in document["paths"].values() for each in operations.values()):
        _name_known_ids(operation, schemas, served.example)
    if with_token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, operations in document["paths"].items():
            if path.startswith(("/v1/", "/metrics")):
                for operation in operations.values():
                    operation["security"] = [{"token": []}]
    return document


def _name_known_ids(operation: dict[str, Any], schemas: dict[str, Any], known: Mapping[str, str]) -> None:
    """Let the example of an operation ask for what there is."""
    for parameter in operation.get("parameters", []):
        if parameter["name"] in known:
            parameter["schema"]["examples"] = [known[parameter["name"]]]
    if "requestBody" in operation:
        reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        schema = schemas[reference.rpartition("/")[2]]
        [example] = schema["examples"]
        ids = {**known, "post_ids": [known["post_id"]]}
        schema["examples"] = [{name: ids.get(name, value) for name, value in example.items()}]
