"""What every request passes before a route sees it: who asks, how much is under way, and what the body may be.

Plain ASGI, so that nothing of a body is kept or parsed before it was measured.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rookery.config.token import Token, is_loopback
from rookery.serve.config import Limits
from rookery.serve.failures import Refused, internal, overloaded
from rookery.serve.lifecycle import Lifecycle
from rookery.serve.metrics import ServiceMetrics

logger = logging.getLogger(__name__)

API = "/v1/"
_PROTECTED = (API, "/metrics")

SECURITY_HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

_DISCARDED_BODIES = 8
"""Of too large a body so many times the limit is read and thrown away, so that the client gets to its answer."""

_HOST = re.compile(r"(\[(?P<bracketed>[0-9a-f:.]+)\]|(?P<plain>[a-z0-9.]+))(:\d+)?", re.IGNORECASE | re.ASCII)

_STRING_OR_PLAIN = re.compile(rb'"(?:[^"\\]+|\\.)*"?|[^][{}"]+', re.DOTALL)
_STEPS = {bracket: 1 if bracket in b"[{" else -1 for bracket in b"[]{}"}


class Observed:
    """Counts and times every answer and gives it the headers that all have.

    What nobody foresaw is answered here: behind it, the framework's own 500 would be neither counted nor have them.
    """

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics, lifecycle: Lifecycle) -> None:
        self._app, self._metrics, self._lifecycle = app, metrics, lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 0

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._add_headers(scope, MutableHeaders(scope=message))
            await send(message)

        try:
            await self._app(scope, receive, observed_send)
        except Exception:
            if status:  # in the middle of an answer: the server cuts it off
                raise
            logger.exception("%s %s", scope["method"], _route(scope))
            await internal()(scope, receive, observed_send)
        finally:
            route = _route(scope)
            self._metrics.requests.labels(route, str(status or "none")).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - start)

    def _add_headers(self, scope: Scope, headers: MutableHeaders) -> None:
        headers.update(SECURITY_HEADERS)
        headers.setdefault("cache-control", "no-store" if scope["path"].startswith(_PROTECTED) else "no-cache")
        if self._lifecycle.is_stopping:
            headers["connection"] = "close"  # the client's next request goes elsewhere


def _route(scope: Scope) -> str:
    """The template of the path, of which there are few; clients could ask for any number of paths."""
    route = scope.get("route")
    return str(getattr(route, "path", "none"))


def _is_own_name(host: str) -> bool:
    """Whether a ``Host`` names this machine: as localhost, or by a number, which no website can have for a name."""
    parts = _HOST.fullmatch(host)
    return parts is not None and is_loopback(parts["bracketed"] or parts["plain"])


class Gate:
    """Turns away who may not ask, what does not fit in, and what is too large or too slow."""

    def __init__(
        self, app: ASGIApp, limits: Limits, token: Token | None, metrics: ServiceMetrics, any_host: bool
    ) -> None:
        self._app, self._limits, self._token = app, limits, token
        self._metrics, self._any_host = metrics, any_host
        self._num_under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or answer why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_sender(scope)
            if not scope["path"].startswith(API):
                await self._app(scope, receive, send)
                return
            body = await read_body(receive, self._limits)
            with self._place():  # behind the body: slow clients take no places
                await self._serve(scope, body, receive, send)
        except Refused as refused:
            await refused.response()(scope, receive, send)

    def _check_sender(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if not self._any_host and not _is_own_name(headers.get("host", "")):
            # A page elsewhere can point a name of its own at this machine; without a token it could read along.
            raise Refused(403, "forbidden_host", "open the service as localhost, or by the address that it listens at")
        if self._token is None or not scope["path"].startswith(_PROTECTED):
            return
        authorization = headers.get("authorization")
        if not self._token.admits(authorization.encode("latin-1") if authorization is not None else None):
            challenge = {"WWW-Authenticate": "Bearer"}
            raise Refused(401, "unauthorized", "send the token as Authorization: Bearer <token>", challenge)

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._num_under_way >= self._limits.queued_requests:
            raise overloaded("too many requests are under way; try again soon")
        self._num_under_way += 1
        self._metrics.under_way.set(self._num_under_way)
        try:
            yield
        finally:
            self._num_under_way -= 1
            self._metrics.under_way.set(self._num_under_way)

    async def _serve(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Serve a request whose body is known, until it is answered or its client has left."""
        answering = asyncio.ensure_future(self._app(scope, _replay(body), send))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                self._metrics.abandoned.inc()
                return
            await answering
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)


async def read_body(receive: Receive, limits: Limits) -> bytes:
    """The whole body.

    Raises ``Refused``: 413 for one that is too large, 408 for one that comes too slowly or not to its end, 400 for one
    that is not UTF-8 (RFC 8259, 8.1; a parser would guess at UTF-16, in which depth is not counted), 422 for JSON that
    nests too deeply.
    """
    try:
        body = await asyncio.wait_for(_collect(receive, limits.body_bytes), limits.client_s)
    except asyncio.TimeoutError:
        raise Refused(
            408, "request_timeout", f"the body took longer than {limits.client_s:g} s", {"Connection": "close"}
        ) from None
    if not _is_utf8(body):
        raise Refused(400, "not_utf8", "the body is not UTF-8; JSON is sent in no other encoding")
    if nests_deeper(body, limits.json_depth):
        raise Refused(422, "invalid_request", f"the body nests deeper than {limits.json_depth}")
    return body


def _is_utf8(body: bytes) -> bool:
    """UTF-16 and UTF-32 of plain ASCII are UTF-8 too, with zero bytes, which no JSON text has."""
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return b"\0" not in body


async def _collect(receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while size <= _DISCARDED_BODIES * limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(408, "request_timeout", "the body ended early", {"Connection": "close"})
        part = message.get("body", b"")
        size += len(part)
        if size <= limit:
            parts.append(part)
        if not message.get("more_body", False):
            break
    if size > limit:
        raise Refused(413, "body_too_large", f"a body has at most {limit:,} bytes", {"Connection": "close"})
    return b"".join(parts)


def nests_deeper(body: bytes, depth: int) -> bool:
    """Whether lists and objects of JSON text lie more than ``depth`` deep; no parser has seen it yet."""
    if body.count(b"[") + body.count(b"{") <= depth:
        return False
    levels = itertools.accumulate(map(_STEPS.__getitem__, _STRING_OR_PLAIN.sub(b"", body)))
    return max(levels, default=0) > depth


def _replay(body: bytes) -> Receive:
    """Gives ``body`` at once; after it, nothing: who serves is cancelled when the client leaves."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            await asyncio.Event().wait()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
