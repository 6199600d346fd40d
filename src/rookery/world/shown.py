"""Whether a user was shown a post in the last days, in memory that does not grow with the log."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rookery.world.draws import Rows

DAYS_KEPT = 4
_SLOTS_PER_ROW = 32


class ShownTable:
    """A byte for each slot of a hash table: the day on which a pair of user and post last fell there.

    Two pairs may share a slot; then a post is held back that the user has not seen, one candidate in about ten at most.
    None that was seen is ever let through.
    """

    def __init__(self, rows_per_day: int) -> None:
        slots = _SLOTS_PER_ROW * rows_per_day
        self._bits = max(16, int(np.ceil(np.log2(slots))))
        self._days = np.full(1 << self._bits, -1 - DAYS_KEPT, np.int16)

    def contains(self, users: Rows, posts: Rows, day: int) -> NDArray[np.bool_]:
        """Whether each pair was shown on ``day`` or one of the three before."""
        return np.asarray(self._days[self._slots(users, posts)] > day - DAYS_KEPT)

    def add(self, users: Rows, posts: Rows, day: int) -> None:
        """Remember that pairs were shown on ``day``."""
        self._days[self._slots(users, posts)] = day

    def _slots(self, users: Rows, posts: Rows) -> NDArray[np.uint64]:
        """The upper bits of a multiplicative hash (Fibonacci hashing) of the pair."""
        keys = (users.astype(np.uint64) << np.uint64(32)) | posts.astype(np.uint64)
        keys ^= keys >> np.uint64(29)
        mixed = keys * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(32)
        slots: NDArray[np.uint64] = (mixed * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(64 - self._bits)
        return slots
