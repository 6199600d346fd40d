"""Warnings that come up whenever files are looked at, which is several times in a run."""

from __future__ import annotations

import functools
import logging

logger = logging.getLogger(__name__)


@functools.cache
def warn_once(message: str) -> None:
    """Log ``message``, the first time in this process."""
    logger.warning("%s", message)
