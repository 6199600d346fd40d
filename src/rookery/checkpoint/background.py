"""A write that goes on beside training: copies that training does not touch, and one thread that works through them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from rookery.checkpoint.shards import Groups, Offset, Shards


class Staging:
    """Copies in memory of the CPU; the memory is taken at the first copy and used again for every further one."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str, Offset], Tensor] = {}

    def copy(self, groups: Groups) -> Groups:
        """What is held now; valid until the next copy."""
        before, self._buffers = self._buffers, {}
        for group, named in groups.items():
            for name, shards in named.items():
                for offset, shard in shards.held.items():
                    place = (group, name, offset)
                    buffer = _fitting(before.pop(place, None), shard)
                    self._buffers[place] = buffer.copy_(shard, non_blocking=shard.is_cuda)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
        return {
            group: {name: self._staged(group, name, shards) for name, shards in named.items()}
            for group, named in groups.items()
        }

    def _staged(self, group: str, name: str, shards: Shards) -> Shards:
        held = {offset: self._buffers[group, name, offset] for offset in shards.held}
        return Shards(shards.size, shards.dtype, held)


def _fitting(buffer: Tensor | None, shard: Tensor) -> Tensor:
    if buffer is not None and buffer.shape == shard.shape and buffer.dtype == shard.dtype:
        return buffer
    # Pinned: a GPU copies into it at the full rate of the bus.
    return torch.empty(shard.shape, dtype=shard.dtype, pin_memory=shard.is_cuda)


class Background:
    """One thread that does what it is given, in order; what that raises is kept until somebody waits."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._given: list[Future[None]] = []

    def give(self, work: Callable[[], None]) -> None:
        self._given.append(self._thread.submit(work))

    @property
    def is_idle(self) -> bool:
        """Whether all that was given is done; it may have failed."""
        return all(each.done() for each in self._given)

    @property
    def is_awaited(self) -> bool:
        """Whether anything was given since somebody waited."""
        return bool(self._given)

    def wait(self) -> None:
        """Return when all is done. Raises the first error among them."""
        given, self._given = self._given, []
        errors = [each.exception() for each in given]
        for error in errors:
            if error is not None:
                raise error
