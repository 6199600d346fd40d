"""Where this machine keeps what can be had again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``ROOKERY_CACHE``, else ``rookery`` in the user's cache, ``~/.cache`` unless the system says otherwise."""
    chosen = os.environ.get("ROOKERY_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rookery"
