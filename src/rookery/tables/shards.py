"""Tensors of which each process has a part, on torch's ``ShardedTensor``; a process alone has plain tensors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor import init_from_local_shards
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.shard import Shard

from rookery.parallel.world import rank, world_size

Part = tuple[Sequence[int], Tensor]
"""What a process has of a tensor: the place of its first element, and the numbers."""


@runtime_checkable
class ReadsParts(Protocol):
    """A map of tensors that can read a slice of one without the rest."""

    def part(self, name: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor: ...


def held(parts: Sequence[Part], size: Sequence[int]) -> Tensor:
    """The tensor of which this process has ``parts``; it shares their memory. A collective at several processes.

    Every process calls it, also one without a part. A process alone has one part, the whole.
    """
    if world_size() == 1:
        ((_, whole),) = parts
        return whole
    shards = [Shard.from_tensor_and_offsets(tensor, list(offsets), rank()) for offsets, tensor in parts]
    with _no_word_of_dtensor():
        return init_from_local_shards(shards, *size)


def parts_of(tensor: Tensor) -> list[Part]:
    """What this process has of it."""
    if isinstance(tensor, ShardedTensor):
        return [(shard.metadata.shard_offsets, shard.tensor) for shard in tensor.local_shards()]
    return [([0] * tensor.dim(), tensor)]


def whole(tensor: Tensor) -> Tensor:
    """All of it in every process, a view where there is no need to ask others; else a collective.

    One part after another goes from its owner to the others: memory is the whole and one part.
    """
    if not isinstance(tensor, ShardedTensor):
        return tensor
    mine, described = {tuple(offsets): part for offsets, part in parts_of(tensor)}, tensor.metadata()
    dtype = described.tensor_properties.dtype
    gathered = torch.empty(described.size, dtype=dtype)
    for shard in described.shards_metadata:
        offsets, sizes = shard.shard_offsets, shard.shard_sizes
        owner: Any = shard.placement
        part = mine.get(tuple(offsets))
        part = torch.empty(sizes, dtype=dtype) if part is None else part
        dist.broadcast(part, src=owner.rank())
        gathered[_slices(offsets, sizes)] = part
    return gathered


def fill(tensor: Tensor, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Overwrite what this process has of ``tensor`` from ``tensors[name]``, reading no more than that if it can."""
    for offsets, mine in parts_of(tensor):
        sizes = list(mine.shape)
        if isinstance(tensors, ReadsParts):
            mine.copy_(tensors.part(name, offsets, sizes))
        else:
            mine.copy_(tensors[name][_slices(offsets, sizes)])


def _slices(offsets: Sequence[int], sizes: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))


@contextmanager
def _no_word_of_dtensor() -> Iterator[None]:
    """torch prefers DTensor to ShardedTensor and says so; torchrec's tables on CPU are ShardedTensors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please use DTensor instead", FutureWarning)
        yield
