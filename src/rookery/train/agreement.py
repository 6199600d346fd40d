"""What the processes of a run must do at the same step: stop, or give up."""

from __future__ import annotations

import enum
import signal
from dataclasses import dataclass

import torch

from rookery.errors import ReadersGone
from rookery.parallel.world import all_max, world_size


@dataclass(frozen=True)
class Verdict:
    """``is_finite``: no process has lost its loss. ``signal``: one that some process was sent, None if none was."""

    is_finite: bool
    signal: str | None


class Supply(enum.IntEnum):
    """Whether the batches of a step are there; of several processes the worst of them."""

    THERE = 0
    REFUSED = 1
    """Data cannot be used."""
    CUT_OFF = 2
    """Readers are gone: data are good, and training can go on another time."""


def agree_on_supply(problem: Exception | None) -> Supply:
    """The same on every process, of what kept each from its batches, None if nothing did."""
    mine = Supply.THERE
    if problem is not None:
        mine = Supply.CUT_OFF if isinstance(problem, ReadersGone) else Supply.REFUSED
    return Supply(int(all_max(torch.tensor([mine])))) if world_size() > 1 else mine


def agree(*, is_finite: bool, received: str | None) -> Verdict:
    """The same verdict on every process, of what each has seen; one small message."""
    if world_size() == 1:
        return Verdict(is_finite, received)
    number = 0 if received is None else signal.Signals[received].value
    lost, sent = all_max(torch.tensor([not is_finite, number], dtype=torch.int64)).tolist()
    return Verdict(not lost, None if sent == 0 else signal.Signals(sent).name)
