"""The readers of one trainer process: who is asked for what, and what becomes of those that fail."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rookery.data.flight_discovery import Address
from rookery.data.flight_reader import Access, Expected, Failed, Mismatch, Reader, refused
from rookery.data.flight_wire import Ticket
from rookery.data.stream import LaneRows
from rookery.errors import ReadersGone

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_LOOK_EVERY_S = 0.2
_FIND_EVERY_S = 10.0


class Closed(Exception):
    """Nobody wants the batches any more."""


@dataclass
class _Member:
    """A reader and what is known of it. ``pause_ends`` is when one that was put aside is greeted again."""

    reader: Reader
    is_ready: bool = False
    num_failures: int = 0
    pause_ends: float = 0.0
    problem: str = "it was not greeted yet"


class ReaderPool:
    """Gives batches as long as one reader does.

    ``find`` lists the readers that there are. Of these, rank ``rank`` of ``world_size`` prefers its own: a run of
    neighbours, or one reader that it shares with other ranks. A reader that fails is put aside, for twice as long each
    time in a row, and greeted before it is asked again.
    """

    def __init__(
        self,
        find: Callable[[], Sequence[Address]],
        access: Access,
        expected: Expected,
        *,
        wait_s: float,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._find, self._access, self._expected, self._wait_s = find, access, expected, wait_s
        self._rank, self._world_size = rank, world_size
        self._members: dict[Address, _Member] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        self._is_told = False
        self._found_at = 0.0
        self._watch: threading.Thread | None = None

    @property
    def num_own(self) -> int:
        """Readers that this rank prefers."""
        return len(self._own(max(1, len(self._members))))

    def connect(self) -> None:
        """Greet all readers, and wait until one is ready.

        Raises ``ConfigError`` for a reader that serves something else or does not admit this trainer, ``ReadersGone``
        where none answers in time.
        """
        ends = time.monotonic() + self._wait_s
        while True:
            self._look_for_readers()
            pending = [member for member in self._members.values() if not member.is_ready]
            with ThreadPoolExecutor(max(1, len(pending)), thread_name_prefix="readers") as greeters:
                for member, problem in zip(pending, greeters.map(_greeted, pending), strict=True):
                    if isinstance(problem, Mismatch):
                        raise refused(member.reader, problem)
                    self._enter(member, problem)
            if any(member.is_ready for member in self._members.values()):
                for member in self._members.values():
                    if not member.is_ready:
                        logger.warning(
                            "reader %s: %s; training begins with the others, and it is asked again",
                            member.reader.address,
                            member.problem,
                        )
                return
            if time.monotonic() >= ends:
                raise self._gone()
            if not self._is_told:
                logger.warning("waiting up to %g s for readers:\n%s", self._wait_s, self._problems())
                self._is_told = True
            time.sleep(_LOOK_EVERY_S)

    def fetch(self, ticket: Ticket, number: int) -> list[LaneRows]:
        """The batches of a ticket, from whichever reader gives them; ``number`` spreads tickets over readers.

        Raises ``DataError`` for data that cannot be read, ``ReadersGone`` where no reader gives them for ``wait_s``,
        ``Closed`` after ``close``.
        """
        ends: float | None = None
        while True:
            member = self._choose(number, ends or time.monotonic() + self._wait_s)
            try:
                batches = member.reader.fetch(ticket)
            except Failed as problem:
                self._put_aside(member, problem)
                ends = ends or time.monotonic() + self._wait_s
            else:
                member.num_failures = 0
                return batches

    def start(self) -> None:
        """Begin to greet readers that were put aside."""
        if self._watch is None:
            self._watch = threading.Thread(target=self._greet_again, name="readers", daemon=True)
            self._watch.start()

    def close(self) -> None:
        """Let go of all readers; whoever waits for batches gets ``Closed``."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for member in self._members.values():
            member.reader.close()

    def _choose(self, number: int, ends: float) -> _Member:
        """A reader that is ready, of the own ones by turns; waits for one until ``ends``."""
        with self._changed:
            while True:
                if self._is_closed:
                    raise Closed
                members = list(self._members.values())
                own = self._own(len(members))
                turn = [members[each] for each in (*own[number % len(own) :], *own[: number % len(own)])] if own else []
                ready: list[_Member] = [member for member in (*turn, *members) if member.is_ready]
                if ready and time.monotonic() < ends:
                    return ready[0]
                if time.monotonic() >= ends:
                    raise self._gone()
                if not self._is_told:
                    logger.warning("no reader answers; training waits up to %g s:\n%s", self._wait_s, self._problems())
                    self._is_told = True
                self._changed.wait(_LOOK_EVERY_S)

    def _own(self, num_readers: int) -> range:
        """The readers that this rank prefers, by place."""
        if num_readers <= self._world_size:
            mine = self._rank * num_readers // self._world_size
            return range(mine, min(mine + 1, num_readers))
        first, end = (-(-each * num_readers // self._world_size) for each in (self._rank, self._rank + 1))
        return range(first, end)

    def _put_aside(self, member: _Member, problem: Failed) -> None:
        with self._changed:
            if not member.is_ready or self._is_closed:  # another thread was quicker
                return
            self._enter(member, problem)
            is_last = not any(other.is_ready for other in self._members.values())
        logger.warning(
            "reader %s: %s; %s, and it is asked again in %.0f s",
            member.reader.address,
            problem,
            "no other one answers" if is_last else "its tickets go to the others",
            member.pause_ends - time.monotonic(),
        )

    def _enter(self, member: _Member, problem: Failed | None) -> None:
        member.is_ready = problem is None
        if problem is None:
            self._is_told = False
        else:
            member.problem = str(problem)
            pause_s = min(_FIRST_PAUSE_S * 2**member.num_failures, _LONGEST_PAUSE_S)
            member.num_failures = min(member.num_failures + 1, 16)
            member.pause_ends = time.monotonic() + pause_s

    def _greet_again(self) -> None:
        """Look after readers that were put aside, and for new ones, until ``close``."""
        while not self._is_closed:
            if time.monotonic() - self._found_at > _FIND_EVERY_S:
                self._look_for_readers()
            for member in list(self._members.values()):
                if not member.is_ready and time.monotonic() >= member.pause_ends and not self._is_closed:
                    problem = _greeted(member)
                    if problem is None:
                        logger.warning("reader %s answers", member.reader.address)
                    with self._changed:
                        self._enter(member, problem)
                        self._changed.notify_all()
            with self._changed:
                self._changed.wait(_LOOK_EVERY_S)

    def _look_for_readers(self) -> None:
        """Take up new readers; those that are listed no more and do not answer are forgotten."""
        found = self._find()
        with self._changed:
            self._found_at = time.monotonic()
            kept = [address for address, member in self._members.items() if address not in found and member.is_ready]
            self._members = {
                address: self._members.get(address) or _Member(Reader(address, self._access, self._expected))
                for address in (*found, *kept)
            }

    def _gone(self) -> ReadersGone:
        return ReadersGone(
            f"no reader has given what this trainer needs for {self._wait_s:g} s:\n{self._problems()}\nstart readers "
            "(rookery reader CONFIG) and the run again, which goes on where it stopped; parallel.readers.wait_s is "
            "how long it waits"
        )

    def _problems(self) -> str:
        lines = [f"  {member.reader.address}: {member.problem}" for member in self._members.values()]
        return "\n".join(lines) or "  parallel.readers.addresses names none that has an address now"


def _greeted(member: _Member) -> Failed | None:
    """What is wrong with a reader, None where it is ready."""
    try:
        member.reader.greet()
    except Failed as problem:
        return problem
    return None
