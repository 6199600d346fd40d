"""Dropout that draws for lanes of rows: what a row loses does not depend on which process has it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

# The golden ratio of 2**64, odd: layers of one seed have seeds far from each other and from those of other lanes.
_BETWEEN_LAYERS = 0x9E3779B97F4A7C15


class Draws(NamedTuple):
    """What the random layers of a network draw from for the rows of a batch: a seed for each lane, and the number of
    its rows, which lie one lane after another. Both ``[lanes]``, int64, on the CPU.
    """

    seeds: Tensor
    rows: Tensor


class Dropout(nn.Module):
    """In training zeroes each element with probability ``rate`` and divides the others by ``1 - rate``.

    What it zeroes is a function of ``draws``, ``number`` and the shape. Without draws it is torch's own generator's.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.number = 0
        """Of this layer among those of its network: each draws other numbers."""
        self.draws: Draws | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, *] → [batch, *]``."""
        if not self.training or not self.rate:
            return x
        return x * self.kept(x.detach()).mul_(1 / (1 - self.rate))

    def kept(self, like: Tensor) -> Tensor:
        """1 for what is kept of ``like [batch, *]``, else 0; of its type."""
        if not self.rate:
            return torch.ones_like(like)
        draws = self.draws
        if draws is not None:
            return _kept(like, draws.seeds, draws.rows, self.number, 1 - self.rate)  # type: ignore[no-any-return]
        kept = torch.empty_like(like, memory_format=torch.contiguous_format)
        _draw(kept, None, 1 - self.rate)
        return kept

    def extra_repr(self) -> str:
        return f"{self.rate}"


def numbered_dropouts(network: nn.Module) -> tuple[Dropout, ...]:
    """The random layers of a network, each with a number of its own."""
    found = tuple(module for module in network.modules() if isinstance(module, Dropout))
    for number, module in enumerate(found):
        module.number = number
    return found


def draw_from(dropouts: Iterable[Dropout], draws: Draws | None) -> None:
    """Let them draw from ``draws`` until they are told otherwise."""
    for dropout in dropouts:
        dropout.draws = draws


def as_draws(seeds: Sequence[int], rows: Sequence[int]) -> Draws:
    """Of 64 bits a seed."""
    signed = [_signed(seed) for seed in seeds]
    return Draws(torch.tensor(signed, dtype=torch.int64), torch.tensor(rows, dtype=torch.int64))


# An operator: a compiled network calls it as it is, and its seeds, which are tensors, are no constants of the program.
@torch.library.custom_op("rookery::kept", mutates_args=())
def _kept(like: Tensor, seeds: Tensor, rows: Tensor, number: int, probability: float) -> Tensor:
    kept = torch.empty_like(like, memory_format=torch.contiguous_format)
    for seed, part in zip(seeds.tolist(), torch.split(kept, rows.tolist()), strict=True):
        generator = torch.Generator(like.device).manual_seed(_signed(seed + number * _BETWEEN_LAYERS))
        _draw(part, generator, probability)
    return kept


@_kept.register_fake
def _(like: Tensor, seeds: Tensor, rows: Tensor, number: int, probability: float) -> Tensor:  # noqa: ARG001
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def _draw(kept: Tensor, generator: torch.Generator | None, probability: float) -> None:
    """Set each element to 1 with ``probability``, else to 0.

    By comparing random bits with it: on a CPU that takes a third of the time of ``bernoulli_``, which makes dropout
    of many elements twice as fast as ``nn.Dropout`` (``benchmarks/dropout.py``).
    """
    bits = torch.empty((kept.numel() + 1) // 2, dtype=torch.int64, device=kept.device)
    bits.random_(-(2**63), None, generator=generator)
    numbers = bits.view(torch.int32)[: kept.numel()].view(kept.shape)
    torch.lt(numbers, min(round(probability * 2**32) - 2**31, 2**31 - 1), out=kept)


def _signed(seed: int) -> int:
    """The number of 64 bits with sign that has the last 64 bits of ``seed``."""
    return (seed + 2**63) % 2**64 - 2**63
