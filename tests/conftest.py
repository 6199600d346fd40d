"""What holds for every test."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Take SIGINT even where the shell that runs the tests in the background has it ignored, which children inherit."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
