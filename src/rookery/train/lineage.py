"""Whether a resumed run is still the run that it was: the configuration now against the one that it began with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rookery.config.fields import leaves
from rookery.errors import ConfigError

logger = logging.getLogger(__name__)


def require_same_meaning(
    run: Path, then: Mapping[str, Any], now: Mapping[str, Any], *, meaning: Sequence[str], free: Sequence[str]
) -> None:
    """Compare two configurations, dumped as JSON, field by field; ``meaning`` and ``free`` are prefixes of paths.

    Raises ``ConfigError`` for changes under ``meaning``, which give the numbers of a checkpoint another meaning; warns
    of others, except under ``free``.
    """
    before, after = dict(leaves(then)), dict(leaves(now))
    names = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    changed = [name for name in names if not name.startswith(tuple(free))]
    refused = [_change(name, before, after) for name in changed if name.startswith(tuple(meaning))]
    if refused:
        listed = "\n".join(f"  {change}" for change in refused)
        raise ConfigError(
            f"{run}: its checkpoint was trained as another model:\n{listed}\nrestore the configuration to resume, or "
            "train in another training.save_dir; there training.initial_checkpoint_dir starts from these weights, if "
            "their shapes are still the same"
        )
    for name in changed:
        logger.warning("%s: resumed with another %s", run, _change(name, before, after))


def _change(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return f"{name}={now.get(name)} (was {then.get(name)})"
