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
_ASK_S = 5.0


@dataclass(frozen=True)
class Place:
    """What a process does: a part of a step, for so long."""

    step: int
    part: str
    seconds: float
    told: float
    """When it said so, by its own clock that never goes back."""

    def __str__(self) -> str:
        return f"{self.part} of step {self.step:,} for {self.seconds:.0f} s"


class Heartbeat:
    """Publishes what ``enter`` was told once a second, in a thread, in the store that the processes met in.

    In a world of one process it does nothing.
    """

    def __init__(self) -> None:
        self._is_alone = world_size() == 1
        self._step, self._part, self._since = 0, "start", time.monotonic()
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
        """A line for each process: where it is, and whether it still says so. Takes two beats, or 12 s where the chief,
        which keeps what they say, does not answer.
        """
        lines: list[str] = []
        # In a thread: a store whose process hangs is waited for without end, whatever its timeout is.
        asking = threading.Thread(target=lambda: lines.append(self._ask()), name="whereabouts", daemon=True)
        asking.start()
        asking.join(2 * _BEAT_S + 2 * _ASK_S)
        if lines:
            return lines[0]
        here = Place(self._step, self._part, time.monotonic() - self._since, 0.0)
        return f"rank {CHIEF}: does not answer, and keeps what the others say\nrank {rank()}: in {here}"

    def _ask(self) -> str:
        first = {number: self._place_of(number) for number in range(world_size())}
        time.sleep(2 * _BEAT_S)
        lines = []
        for number, before in first.items():
            now = self._place_of(number)
            if before is None or now is None:
                lines.append(f"rank {number}: not heard of")
            elif now.told == before.told and number != rank():
                lines.append(f"rank {number}: silent, last in {now}")
            else:
                lines.append(f"rank {number}: in {now}")
        return "\n".join(lines)

    def _beat(self) -> None:
        while not self._stop.wait(_BEAT_S):
            try:
                self._tell()
            except RuntimeError:  # the store is gone, and with it whoever could ask
                return

    def _tell(self) -> None:
        now = time.monotonic()
        place = Place(self._step, self._part, now - self._since, now)
        self._store.set(_key(rank()), json.dumps(asdict(place)))

    def _place_of(self, number: int) -> Place | None:
        try:
            return Place(**json.loads(self._store.get(_key(number))))
        except RuntimeError:  # it does not answer, or that process never said anything
            return None


def _store() -> Any:
    """A connection of its own: the group's is locked while a collective waits."""
    return dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timedelta(seconds=_ASK_S),
    )


def _key(number: int) -> str:
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return f"rookery/{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{restart}/{number}"
