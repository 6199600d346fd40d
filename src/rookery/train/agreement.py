"""What the processes of a run must do at the same step: stop, or give up."""

from __future__ import annotations

import enum
import signal
from dataclasses import dataclass

import torch

from rookery.parallel.world import all_max, world_size


@dataclass(frozen=True)
class Verdict:
    """``is_finite``: no process has lost its loss. ``signal``: one that some process was sent, None if none was."""

    is_finite: bool
    signal: str | None


class Supply(enum.IntEnum):
    """Whether the batches of a step are there; of several processes the worst of them."""

    THERE = 0
    LATE = 1
    """They may still come."""
    OVERDUE = 2
    """Some process waits for them, and all wait longer than one may wait for another."""
    REFUSED = 3
    """Data cannot be used."""
    CUT_OFF = 4
    """Readers are gone: data are good, and training can go on another time."""


def agree_on_supply(mine: Supply, received: str | None) -> tuple[Supply, str | None]:
    """The same on every process, of what each has and of the signals they got; one small message."""
    if world_size() == 1:
        return mine, received
    worst, sent = all_max(torch.tensor([mine, _number(received)])).tolist()
    return Supply(worst), _name(sent)


def agree(*, is_finite: bool, received: str | None) -> Verdict:
    """The same verdict on every process, of what each has seen; one small message."""
    if world_size() == 1:
        return Verdict(is_finite, received)
    lost, sent = all_max(torch.tensor([not is_finite, _number(received)], dtype=torch.int64)).tolist()
    return Verdict(not lost, _name(sent))


def _number(received: str | None) -> int:
    return 0 if received is None else signal.Signals[received].value


def _name(number: int) -> str | None:
    return None if number == 0 else signal.Signals(number).name
