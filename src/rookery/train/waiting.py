"""What a process says where it waited in vain for the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rookery.errors import PeerFailed, TrainingError
from rookery.parallel.collectives import failed_collective
from rookery.parallel.heartbeat import Heartbeat
from rookery.parallel.world import is_broken_message, rank, world_size


@contextmanager
def told_of_others(heartbeat: Heartbeat) -> Iterator[None]:
    """Where a message between processes fails, say where each of them is."""
    with heartbeat:
        try:
            yield
        except (RuntimeError, PeerFailed) as error:
            cause = error.__cause__ if isinstance(error, PeerFailed) else error
            if world_size() == 1 or not isinstance(cause, RuntimeError) or not is_broken_message(cause):
                raise
            raise waited_in_vain(heartbeat, str(cause).splitlines()[0], failed_collective(cause)) from error


def waited_in_vain(heartbeat: Heartbeat, problem: str, collective: str | None = None) -> TrainingError:
    """The error of a process for which another one did not come in time; says where each of them is."""
    told = "" if collective is None else f" in {collective}"
    return TrainingError(
        f"rank {rank()} waited in vain for the others{told}: {problem}\n{heartbeat.whereabouts()}\n"
        "the newest checkpoint is whole: start the run again. Of a process that hangs, py-spy dump --pid PID "
        "shows the line; where it was only slow, raise parallel.timeout_s"
    )
