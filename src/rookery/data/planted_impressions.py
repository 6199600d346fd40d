"""A generated impression log on a planted graph, whose true probabilities of engagement are known.

An impression is of an item that was drawn by activity, now and then (``P_AT_HOME``) from the user's own community. The
logit of an engagement is its base, plus ``EFFECTS`` times: whether user and item share a community, the item's
quality, the user's mood, minus the position, minus the item's age. Community and quality are in no column of the log:
a ranker has to learn them from ids, from histories, or from the vectors of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rookery.data.planted import Population

BASES: Mapping[str, float] = {"click": -1.4, "like": -3.4, "hide": -4.2}
EFFECTS: Mapping[str, tuple[float, float, float, float, float]] = {
    # home, quality, mood, position, age in days
    "click": (1.6, 0.8, 0.6, -0.08, -0.05),
    "like": (1.8, 1.0, 0.4, -0.04, -0.02),
    "hide": (-1.2, -0.8, 0.2, 0.02, 0.05),
}
P_AT_HOME = 0.3
NUM_DAYS = 10
NUM_POSITIONS = 10
MAX_HISTORY = 20
_DAY_MS = 86_400_000
_FIRST_DAY_MS = 1_767_225_600_000  # 2026-01-01 00:00 UTC
_DEVICES = np.array(["phone", "tablet", "web"])

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PlantedImpressions:
    """``log`` by rising time, and the true probabilities of the same rows as ``truth`` (a column an engagement)."""

    log: pa.Table
    truth: pa.Table


def draw_impressions(rng: np.random.Generator, users: Population, items: Population, size: int) -> PlantedImpressions:
    """``size`` impressions over ``NUM_DAYS`` days, and what they are worth."""
    user = users.draw(rng, size)
    item = items.draw(rng, size)
    at_home = rng.random(size) < P_AT_HOME
    item[at_home] = items.draw_inside(rng, users.communities[user[at_home]])
    time_ms = _FIRST_DAY_MS + np.sort(rng.integers(0, NUM_DAYS * _DAY_MS, size))
    uploaded_ms = _FIRST_DAY_MS - rng.integers(0, 20 * _DAY_MS, len(items.activity))
    age_days = (time_ms - uploaded_ms[item]) / _DAY_MS
    position = rng.integers(0, NUM_POSITIONS, size)
    home = (users.communities[user] == items.communities[item]).astype(np.float64)
    quality = rng.normal(size=len(items.activity))[item]
    mood = rng.normal(size=len(users.activity))[user]
    causes = np.stack([home, quality, mood, position.astype(np.float64), age_days])
    truth = {task: 1 / (1 + np.exp(-(base + EFFECTS[task] @ causes))) for task, base in BASES.items()}
    labels = {task: (rng.random(size) < probability) for task, probability in truth.items()}
    log = {
        "user_id": _ids("user", user),
        "item_id": _ids("item", item),
        "time": pa.array(time_ms, pa.timestamp("ms", "UTC")),
        "position": position.astype(np.int8),
        "device": pa.array(_DEVICES[user % len(_DEVICES)]),
        "item_age_hours": (24 * age_days).astype(np.float32),
        "item_length_s": np.exp(3 + 0.8 * rng.normal(size=len(items.activity)))[item].astype(np.float32),
        "is_follower": rng.random(size) < 0.1 + 0.2 * home,
        "clicked_before": _histories(user, item, time_ms, labels["click"]),
        **{task: label.astype(np.int8) for task, label in labels.items()},
    }
    return PlantedImpressions(pa.table(log), pa.table(truth))


def _ids(prefix: str, numbers: NDArray[np.int64]) -> pa.Array:
    return pa.array(np.char.add(f"{prefix}_", numbers.astype(str)))


def _histories(
    user: NDArray[np.int64], item: NDArray[np.int64], time_ms: NDArray[np.int64], clicked: NDArray[np.bool_]
) -> pa.ListArray:
    """For each row the last ``MAX_HISTORY`` items that its user clicked on earlier days."""
    day = (time_ms - _FIRST_DAY_MS) // _DAY_MS
    clicks = np.flatnonzero(clicked)
    clicks = clicks[np.lexsort((clicks, user[clicks]))]  # by user, then by time
    # Of each row: its user's clicks begin at `first`; those of earlier days end before `last`.
    keys = user[clicks] * NUM_DAYS + day[clicks]
    first = np.searchsorted(keys, user * NUM_DAYS)
    last = np.searchsorted(keys, user * NUM_DAYS + day)
    start = np.maximum(first, last - MAX_HISTORY)
    offsets = np.concatenate(([0], np.cumsum(last - start)))
    places = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - start, last - start)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), _ids("item", item[clicks[places]]))
