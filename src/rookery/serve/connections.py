"""Connections whose clients are too slow are dropped, and what is not HTTP is answered like every other error."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from rookery.serve.failures import envelope, overloaded
from rookery.serve.guard import SECURITY_HEADERS

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, Scope


async def _too_many(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    refused = overloaded("too many connections are open; try again soon")
    refused.headers = {**(refused.headers or {}), **SECURITY_HEADERS, "Connection": "close"}
    await refused.response()(scope, receive, send)  # type: ignore[arg-type]


class GuardedProtocol(H11Protocol):
    """HTTP/1.1 whose every wait for the client ends.

    The server's own timer ends connections that idle between two requests. What else waits for a client, it waits for
    in one of three phases: the headers, the body, taking the answer. ``sweep`` notes since when.
    """

    max_connections: int
    client_s: float

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a new connection; one too many is answered 503, far too many are dropped."""
        super().connection_made(transport)
        self._phase: tuple[str | None, Any] = (None, None)
        self._since_s = time.monotonic()
        if len(self.connections) > 2 * self.max_connections:
            transport.abort()
        elif len(self.connections) > self.max_connections:
            self.app: ASGI3Application = _too_many

    def sweep(self, now_s: float) -> None:
        """Drop the connection if it has waited for its client for too long; called every now and then."""
        phase = (self._waits_for(), self.cycle)
        if phase[0] is None or phase != self._phase:
            self._phase, self._since_s = phase, now_s
            return
        # A body that is late is answered 408 after ``client_s``, which then has to be taken.
        patience = 2 if phase[0] == "body" else 1
        if now_s - self._since_s > patience * self.client_s:
            self.transport.abort()

    def _waits_for(self) -> str | None:
        if self.transport.get_write_buffer_size():
            return "taking the answer"
        if self.conn.their_state is h11.SEND_BODY:
            return "body"
        first = cast("RequestResponseCycle | None", self.cycle) is None  # so it is until the first request
        if self.conn.their_state is h11.IDLE and (first or self.conn.trailing_data[0]):
            return "headers"
        return None

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, and close."""
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.abort()  # in the middle of another answer
            return
        body = envelope("not_http", msg)
        headers = [
            *(("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")),
            *SECURITY_HEADERS.items(),
        ]
        events = (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage())
        self.transport.write(b"".join(self.conn.send(event) for event in events))
        self.transport.close()


def guarded(max_connections: int, client_s: float) -> type[GuardedProtocol]:
    """The protocol with its bounds: the server makes the instances itself."""
    bounds = {"max_connections": max_connections, "client_s": client_s}
    return type("BoundedProtocol", (GuardedProtocol,), bounds)
