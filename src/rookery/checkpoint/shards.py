"""What one process holds of a tensor that may be spread over several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

Offset = tuple[int, ...]
"""Where in the whole tensor the first element of a shard stands."""


@dataclass(frozen=True)
class Shards:
    """The shards of a tensor of ``size`` that this process holds; of a tensor that is not spread, the only one."""

    size: torch.Size
    dtype: torch.dtype
    held: Mapping[Offset, Tensor]

    def whole(self) -> Tensor:
        """The tensor itself, where no other process holds any of it."""
        if len(self.held) == 1:
            (tensor,) = self.held.values()
            return tensor
        whole = torch.empty(self.size, dtype=self.dtype)
        for offset, shard in self.held.items():
            whole[box(offset, shard.shape)] = shard
        return whole


Groups = Mapping[str, Mapping[str, Shards]]
"""What this process holds of each tensor, by group and name."""


def held_of(tensors: Mapping[str, Mapping[str, Tensor]]) -> Groups:
    """What this process holds of ``tensors``; nothing is copied."""
    return {group: {name: shards_of(tensor) for name, tensor in named.items()} for group, named in tensors.items()}


def shards_of(tensor: Tensor) -> Shards:
    """What this process holds of ``tensor``, a plain one or a ``ShardedTensor``; nothing is copied or sent.

    Shards without elements are left out, unless the tensor has none at all.
    """
    if not isinstance(tensor, ShardedTensor):
        return Shards(tensor.shape, tensor.dtype, {(0,) * tensor.dim(): tensor.detach()})
    about = tensor.metadata()  # its own size() and dtype warn
    size = torch.Size(about.size)
    shards = {tuple(shard.metadata.shard_offsets): shard.tensor.detach() for shard in tensor.local_shards()}
    held = {
        offset: shard for offset, shard in shards.items() if shard.numel() or (not size.numel() and not any(offset))
    }
    return Shards(size, about.tensor_properties.dtype, held)


def box(offset: Sequence[int], sizes: Sequence[int]) -> tuple[slice, ...]:
    """The index of a shard in the whole tensor."""
    return tuple(slice(start, start + size) for start, size in zip(offset, sizes, strict=True))
