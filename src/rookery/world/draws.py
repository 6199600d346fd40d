"""Random streams by name and day, and draws by weight."""

from __future__ import annotations

import enum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Rows: TypeAlias = NDArray[np.int64]


class Stream(enum.IntEnum):
    """What random numbers are for. Each has a stream of its own a day: a longer world begins with the shorter one."""

    SOCIETY = 0
    FOLLOWS = 1
    POSTS = 2
    SESSIONS = 3
    OUTCOMES = 4
    REHEARSAL = 5


def generator(seed: int, stream: Stream, day: int = 0) -> np.random.Generator:
    """The generator of a stream and a day; days before the first are negative."""
    return np.random.default_rng([seed, stream, day + 1_000])


def by_weight(rng: np.random.Generator, cumulative: Floats, first: Rows, last: Rows) -> Rows:
    """For each interval ``[first, last)`` of places one of them, by weight; -1 for an empty one.

    ``cumulative [places + 1]`` begins with 0; shapes of ``first`` and ``last`` may be any.
    """
    low, high = cumulative[first], cumulative[last]
    position = np.searchsorted(cumulative, low + rng.random(low.shape) * (high - low), side="right") - 1
    drawn = np.minimum(np.maximum(position, first), last - 1)  # rounding may step over an end
    return np.where(first < last, drawn, -1)


def cumulate(weights: Floats) -> Floats:
    """Sums of the weights before each place, and of all ``[places + 1]``."""
    return np.concatenate(([0.0], np.cumsum(weights)))
