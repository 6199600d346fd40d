"""What goes wrong, as clients see it: a status and ``{"error": {"code", "message"}}``, never a stack trace."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from rookery.errors import UnknownId, UserError

logger = logging.getLogger(__name__)

_MAX_LISTED = 5
_MAX_KEY_LENGTH = 64

_CODES = {401: "unauthorized", 404: "not_found", 405: "method_not_allowed"}


class ErrorBody(BaseModel):
    """What went wrong."""

    code: str = Field(description="A word for programs.")
    message: str = Field(description="A sentence for people.")


class ErrorResponse(BaseModel):
    """The body of every answer that is not a success."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"error": {"code": "unknown_id", "message": "user 'user_x' is not known"}}]}
    )

    error: ErrorBody


class Refused(Exception):
    """A request that is answered with an error; ``headers`` go with the answer."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers

    def response(self) -> Response:
        """The answer."""
        return failure(self.status, self.code, self.message, self.headers)


def overloaded(message: str) -> Refused:
    """503, to be tried again after a second."""
    return Refused(503, "overloaded", message, {"Retry-After": "1"})


def envelope(code: str, message: str) -> bytes:
    """The JSON of an error. ASCII: a message may hold half a surrogate pair of the client's."""
    return json.dumps({"error": {"code": code, "message": message}}).encode("ascii")


def failure(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An answer that is not a success."""
    return Response(envelope(code, message), status, headers, media_type="application/json")


def internal() -> Response:
    """500: our mistake, of which clients learn nothing."""
    return failure(500, "internal", "something went wrong in the service; its log has more")


def install_failures(app: FastAPI) -> None:
    """Answer what is raised while a request is served in one form; ``Observed`` answers what nobody foresaw."""

    @app.exception_handler(Refused)
    async def _refused(_: Request, error: Refused) -> Response:
        return error.response()

    @app.exception_handler(UnknownId)
    async def _unknown_id(_: Request, error: UnknownId) -> Response:
        return failure(404, "unknown_id", str(error))

    @app.exception_handler(UserError)
    async def _user_error(_: Request, error: UserError) -> Response:
        return failure(422, "invalid_request", str(error))

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> Response:
        return failure(422, "invalid_request", _sentence(error))

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> Response:
        status = 422 if error.status_code == 400 else error.status_code  # 400: the framework could not parse the body
        return failure(status, _CODES.get(status, "invalid_request"), error.detail, error.headers)


def _sentence(error: RequestValidationError) -> str:
    """Where and what; never the value, which may be anything."""
    found = error.errors()
    listed = [f"{_place(each)}: {each['msg']}" for each in found[:_MAX_LISTED]]
    more = len(found) - len(listed)
    return "; ".join(listed) + (f"; and {more} more" if more else "")


def _place(details: Mapping[str, Any]) -> str:
    """Keys may be as long as a body."""
    inside = details["loc"][1:]
    if details["type"] == "json_invalid":
        return f"character {inside[0]} of the body"
    return ".".join(str(key)[:_MAX_KEY_LENGTH] for key in inside) or "body"
