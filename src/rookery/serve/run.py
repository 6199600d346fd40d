"""``rookery serve``: from a bundle to a server that runs until it is told to stop."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from rookery.errors import RookeryError
from rookery.serve.app import create_app
from rookery.serve.bundle import BundleHolder, set_aside_what_stays
from rookery.serve.config import ServeConfig
from rookery.serve.lifecycle import Lifecycle
from rookery.serve.served import Opener, Served
from rookery.serve.server import Server
from rookery.serve.token import find_token


def serve(
    bundle: Path,
    opener: Opener,
    config: ServeConfig,
    environment: Mapping[str, str],
    notify: Callable[[str], None],
) -> None:
    """Serve what ``opener`` makes of ``bundle`` until SIGTERM or Ctrl-C, and return once all that came is answered.

    ``notify`` is told the address. Raises ``ConfigError`` where the token is missing or unfit, what ``opener`` raises
    for the bundle, ``RookeryError`` where the address cannot be listened at.
    """
    token = find_token(config, environment)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    holder: BundleHolder[Served] = BundleHolder(bundle, opener)
    set_aside_what_stays()
    lifecycle = Lifecycle()
    server = Server(create_app(holder, config, token, lifecycle), config, lifecycle, notify)
    try:
        server.run()
    except SystemExit as error:
        raise RookeryError(f"{config.host}:{config.port}: cannot be listened at; choose another port") from error
    finally:
        gc.unfreeze()  # some libraries complain at the end of what was not looked through
