"""Where each process of a run is, told to the others: when one hangs, those that wait for it can say where."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch.distributed as dist
from typing_extensions import Self

from rookery.parallel.world import CHIEF, rank, world_size

_BEAT_S = 1.0
_SILENT_BEATS = 3
_ASK_S = 5.0


@dataclass(frozen=True)
class Place:
    """What a process does: a part of a step, for so long."""

    step: int
    part: str
    seconds: float
    beats: int
    """How often it has said so."""
    chief_beats: int
    """How often it had heard the chief by then: a time that all share, for clocks of machines differ."""
    has_ended: bool = False

    def __str__(self) -> str:
        return f"{self.part} of step {self.step:,}"


class Heartbeat:
    """Publishes what ``enter`` was told once a second, in a thread, in the store that the processes met in.

    ``work`` is what all of them do meanwhile, each once in a start. In a world of one process it does nothing.
    """

    def __init__(self, work: str) -> None:
        self._work = work
        self._is_alone = world_size() == 1
        self._step, self._part, self._since = 0, "start", time.monotonic()
        self._beats = self._chief_beats = 0
        self._chief_heard = time.monotonic()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def enter(self, step: int, part: str) -> None:
        """From now on this process is in ``part`` of ``step``."""
        if (step, part) != (self._step, self._part):
            self._step, self._part, self._since = step, part, time.monotonic()

    def __enter__(self) -> Self:
        if not self._is_alone:
            self._store = _store()
            self._tell()
            self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=_ASK_S)

    def whereabouts(self) -> str:
        """A line for each process: where it is, whether it has ended, or since when it says nothing.

        Takes three beats, or 13 s where the chief, which keeps what they say, does not answer.
        """
        lines: list[str] = []
        # In a thread: a store whose process hangs is waited for without end, whatever its timeout is.
        asking = threading.Thread(target=lambda: lines.extend(self._ask()), name="whereabouts", daemon=True)
        asking.start()
        asking.join(_SILENT_BEATS * _BEAT_S + 2 * _ASK_S)
        if lines:
            return "\n".join(lines)
        return f"rank {CHIEF}: does not answer, and keeps what the others say\nrank {rank()}: in {self._here()}"

    def _ask(self) -> list[str]:
        """Nothing where the store is gone."""
        first = {number: self._place_of(number) for number in range(world_size())}
        time.sleep(_SILENT_BEATS * _BEAT_S)
        now = {number: self._place_of(number) for number in first}
        if now[rank()] is None:
            return []
        return [f"rank {number}: {self._said(number, first[number], place)}" for number, place in now.items()]

    def _said(self, number: int, before: Place | None, now: Place | None) -> str:
        if number == rank():
            return f"in {self._here()}"
        if before is None or now is None:
            return "not heard of"
        if now.has_ended:
            return f"has ended, in {now}"
        if now.beats > before.beats:
            return f"in {now} for {now.seconds:.0f} s"
        return f"silent for {self._silence_s(now):.0f} s, last heard of in {now}"

    def _silence_s(self, place: Place) -> float:
        """Since a process told its place: the beats that the chief has had since, and the silence of its own."""
        chief_silence_s = time.monotonic() - self._chief_heard
        beats_since = (self._chief_beats - place.chief_beats) * _BEAT_S
        return beats_since + (chief_silence_s if chief_silence_s > _SILENT_BEATS * _BEAT_S else 0.0)

    def _here(self) -> str:
        return f"{self._part} of step {self._step:,} for {time.monotonic() - self._since:.0f} s"

    def _beat(self) -> None:
        try:
            while not self._stop.wait(_BEAT_S):
                self._hear_chief()
                self._tell()
            self._tell(has_ended=True)
        except RuntimeError:  # the store is gone, and with it whoever could ask
            return

    def _hear_chief(self) -> None:
        chief = self._place_of(CHIEF)
        if chief is not None and chief.beats > self._chief_beats:
            self._chief_beats, self._chief_heard = chief.beats, time.monotonic()

    def _tell(self, *, has_ended: bool = False) -> None:
        self._beats += 1
        seconds = time.monotonic() - self._since
        place = Place(self._step, self._part, seconds, self._beats, self._chief_beats, has_ended)
        self._store.set(self._key(rank()), json.dumps(asdict(place)))

    def _place_of(self, number: int) -> Place | None:
        try:
            return Place(**json.loads(self._store.get(self._key(number))))
        except RuntimeError:  # it does not answer, or that process never said anything
            return None

    def _key(self, number: int) -> str:
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return f"rookery/{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{restart}/{self._work}/{number}"


def _store() -> Any:
    """A connection of its own: the group's is locked while a collective waits."""
    return dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timedelta(seconds=_ASK_S),
    )
