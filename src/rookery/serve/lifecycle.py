"""Whether the service is about to stop."""

from __future__ import annotations

import time


class Lifecycle:
    """Runs until it is told to stop; between that and the end lies the time in which others take notice."""

    def __init__(self) -> None:
        self._stopping_since: float | None = None

    def stop(self) -> None:
        """Be about to stop from now on."""
        self._stopping_since = time.monotonic()

    @property
    def is_stopping(self) -> bool:
        """Whether ``stop`` was called."""
        return self._stopping_since is not None

    def has_drained(self, drain_s: float) -> bool:
        """Whether ``stop`` was called ``drain_s`` or more ago."""
        return self._stopping_since is not None and time.monotonic() - self._stopping_since >= drain_s
