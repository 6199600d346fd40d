"""A polite end: the first SIGINT or SIGTERM lets the loop finish its step and save."""

from __future__ import annotations

import logging
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from typing_extensions import Self

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# SLURM sends SIGTERM to every process of a step, and torchrun passes its own on: two that come together are one.
_TOGETHER_S = 5.0


class Interrupt:
    """Within the context, ``received`` names the first signal; a second one has its usual effect. A SIGTERM that
    comes within 5 s is not a second one.

    Outside the main thread, where Python cannot take signals, nothing is installed.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._since = signal.Signals(number).name, time.monotonic()
            logger.warning("%s: finishing this step, then saving; once more to stop at once", self.received)
        elif number != signal.SIGTERM or time.monotonic() - self._since > _TOGETHER_S:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
