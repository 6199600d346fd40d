"""The batches of a step, which come when they come: they are waited for in short turns.

Between two turns the processes tell each other what they have, and whether one was sent a signal.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from rookery.data.prefetch import Batches, Prepared
from rookery.errors import ReadersGone, RookeryError, TrainingError
from rookery.parallel.world import patience_s, world_size
from rookery.train.agreement import Supply, agree_on_supply
from rookery.train.job import B

# How long a signal may go unseen; a turn costs one message of two numbers.
_TURN_S = 0.2


@dataclass(frozen=True)
class Supplied(Generic[B]):
    """The micro-batches of a step, or what kept this process from them; ``supply`` is the worst of all processes.

    ``LATE``: some process was still waiting when one of them had been sent ``signal``.
    """

    micro_batches: list[Prepared[B]]
    problem: RookeryError | None
    supply: Supply
    signal: str | None


class Collection(Generic[B]):
    """``wanted`` batches, as far as they have come; ``lacking`` is raised where there are no more."""

    def __init__(self, batches: Batches[Prepared[B]], wanted: int, lacking: Callable[[], TrainingError]) -> None:
        self._batches, self._wanted, self._lacking = batches, wanted, lacking
        self._gathered: list[Prepared[B]] = []
        self._problem: RookeryError | None = None
        self._overdue_at = time.monotonic() + (patience_s() if world_size() > 1 else math.inf)

    def take_turn(self) -> Supply:
        """Gather what comes within a turn; what this process has then."""
        if self._problem is None:
            ends = time.monotonic() + _TURN_S
            try:
                while len(self._gathered) < self._wanted and self._batches.wait(max(0.0, ends - time.monotonic())):
                    self._gathered.append(self._next())
            except RookeryError as problem:
                self._problem = problem
        if self._problem is not None:
            return Supply.CUT_OFF if isinstance(self._problem, ReadersGone) else Supply.REFUSED
        return Supply.THERE if len(self._gathered) == self._wanted else Supply.LATE

    def agreed(self, mine: Supply, received: str | None) -> Supplied[B] | None:
        """What all processes agree on; None: to take another turn."""
        is_overdue = time.monotonic() >= self._overdue_at
        supply, signal = agree_on_supply(max(mine, Supply.OVERDUE) if is_overdue else mine, received)
        if supply is Supply.LATE and signal is None:
            return None
        return Supplied(self._gathered, self._problem, supply, signal)

    def _next(self) -> Prepared[B]:
        try:
            return next(self._batches)
        except StopIteration:
            raise self._lacking() from None
