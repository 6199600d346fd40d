"""The HTTP server: it sweeps its connections, and stops without dropping a request."""

from __future__ import annotations

import logging
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from rookery.serve.config import ServeConfig
from rookery.serve.connections import GuardedProtocol, guarded
from rookery.serve.lifecycle import Lifecycle

logger = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Serves one application until SIGTERM or Ctrl-C; a second signal cuts the waiting short."""

    def __init__(self, app: FastAPI, config: ServeConfig, lifecycle: Lifecycle, notify: Callable[[str], None]) -> None:
        """``notify`` is told the address once it is listened at."""
        limits = config.limits
        super().__init__(
            uvicorn.Config(
                app,
                host=config.host,
                port=config.port,
                http=guarded(limits.connections, limits.client_s),
                ws="none",
                access_log=False,  # who saw what is nobody's business; /metrics counts
                log_config=None,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=limits.keep_alive_s,  # type: ignore[arg-type]  # seconds, handed to call_later
                timeout_graceful_shutdown=config.stop_s,  # type: ignore[arg-type]  # seconds, handed to wait_for
            )
        )
        self._drain_s, self._lifecycle, self._notify = config.drain_s, lifecycle, notify

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; the second time, do it at once."""
        if self._lifecycle.is_stopping:
            self.should_exit = self.force_exit = True
            return
        logger.info("%s: finishing what is under way; once more to stop at once", signal.Signals(sig).name)
        self._lifecycle.stop()

    async def on_tick(self, counter: int) -> bool:
        """What is due ten times a second; True ends the server."""
        now_s = time.monotonic()
        for connection in list(self.server_state.connections):
            if isinstance(connection, GuardedProtocol):
                connection.sweep(now_s)
        if self._lifecycle.has_drained(self._drain_s):
            self.should_exit = True
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where: with the port that was found if 0 was asked for."""
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        self._notify(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
