"""``rookery serve``: from a bundle to a server that runs until it is told to stop."""

from __future__ import annotations

import errno
import gc
import logging
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from rookery.config.token import find_token
from rookery.errors import ConfigError, RookeryError
from rookery.serve.app import create_app
from rookery.serve.bundle import BundleHolder, set_aside_what_stays
from rookery.serve.config import ServeConfig
from rookery.serve.lifecycle import Lifecycle
from rookery.serve.served import Opener, Served
from rookery.serve.server import Server

_ANOTHER_HOST = "name another with --host (127.0.0.1: this machine alone)"
_ANOTHER_PORT = "choose another with --port"
_REMEDIES = {
    errno.EADDRINUSE: f"{_ANOTHER_PORT} (0: any that is free)",
    errno.EACCES: f"{_ANOTHER_PORT}, of 1024 or more",
    errno.EADDRNOTAVAIL: _ANOTHER_HOST,
}


def serve(
    bundle: Path,
    opener: Opener,
    config: ServeConfig,
    environment: Mapping[str, str],
    notify: Callable[[str], None],
    refresh: Callable[[], None] = lambda: None,
) -> None:
    """Serve what ``opener`` makes of ``bundle`` until SIGTERM or Ctrl-C, and return once all that came is answered.

    ``notify`` is told the address; ``refresh`` brings the folder up to date, as ``BundleHolder`` says. Raises
    ``ConfigError`` where the host names no address, or the token is missing or unfit, what ``opener`` raises for the
    bundle, ``RookeryError`` where the address cannot be listened at.
    """
    _require_address(config)
    token = find_token(config.host, config.token_file, environment)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    holder: BundleHolder[Served] = BundleHolder(bundle, opener, refresh)
    set_aside_what_stays()
    lifecycle = Lifecycle()
    server = Server(create_app(holder, config, token, lifecycle), config, lifecycle, notify)
    try:
        server.run()
    except SystemExit as error:
        raise _cannot_listen(config, error.__context__) from error
    finally:
        gc.unfreeze()  # some libraries complain at the end of what was not looked through


def _require_address(config: ServeConfig) -> None:
    """Raise ``ConfigError`` for a host that is no address and no name of one; it would be found after the bundle."""
    try:
        socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:  # the latter: what cannot be a name at all
        raise ConfigError(f"host={config.host}: names no address ({error}); {_ANOTHER_HOST}") from error


def _cannot_listen(config: ServeConfig, cause: BaseException | None) -> RookeryError:
    """``cause`` is what the server ended with when it tried to listen."""
    number = cause.errno if isinstance(cause, OSError) else None
    remedy = _REMEDIES.get(number or 0, f"{_ANOTHER_HOST}, or {_ANOTHER_PORT}")
    return RookeryError(f"host={config.host}, port={config.port}: cannot be listened at ({cause}); {remedy}")
