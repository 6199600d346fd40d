"""Tensors spread over ranks in every way that tables are, beside the whole ones that they are made of."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from rookery.parallel.world import rank, world_size

Box = tuple[list[int], list[int]]
"""First element and sizes of a shard."""


def whole_tensors(seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Random bits of several types; sizes that divide by no number of ranks, fewer rows than ranks, none at all."""
    generator = torch.Generator().manual_seed(seed)

    def bits(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    model = {
        "rows": bits(torch.float32, 11, 6),
        "few rows": bits(torch.float64, 2, 3),
        "columns": bits(torch.float16, 5, 12),
        "two columns a rank": bits(torch.float32, 4, 12),
        "one rank": bits(torch.bfloat16, 7, 3),
        "grid": bits(torch.float32, 6, 4),
        "no rows": torch.empty(0, 4),
        "dense": bits(torch.float32, 3, 2).T,
        "scalar": bits(torch.float64),
    }
    optimizer = {"rows.sum": bits(torch.float32, 11), "step": torch.tensor(3 + seed)}
    return {"model": model, "optimizer": optimizer, "nothing": {}}


def sharded_tensors(seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """The same as this rank holds them, and a state of its own; whole in a process that is alone."""
    groups = whole_tensors(seed)
    size, last = world_size(), world_size() - 1
    groups["random"] = {f"rank{rank()}.cpu": torch.tensor([rank()])}
    if size == 1:
        return groups
    model, optimizer = groups["model"], groups["optimizer"]
    for table, name in ((model, "rows"), (model, "few rows"), (model, "no rows"), (optimizer, "rows.sum")):
        table[name] = spread(table[name], [[each] for each in _cuts(table[name].shape, 0, size)])
    model["columns"] = spread(model["columns"], [[each] for each in _cuts(model["columns"].shape, 1, size)])
    narrow = _cuts(model["two columns a rank"].shape, 1, 2 * size)
    model["two columns a rank"] = spread(model["two columns a rank"], [narrow[at::size] for at in range(size)])
    model["one rank"] = spread(model["one rank"], [[]] * last + [[([0, 0], [7, 3])]])
    quarters = [([row, column], [3, 2]) for row in (0, 3) for column in (0, 2)]
    model["grid"] = spread(model["grid"], [quarters[at::size] for at in range(size)])
    return groups


def spread(whole: Tensor, boxes: Sequence[Sequence[Box]]) -> ShardedTensor:
    """``whole`` with the boxes of each rank on that rank."""
    shards = [
        Shard(whole[_index(box)].clone(), ShardMetadata(*box, placement=f"rank:{rank()}/cpu")) for box in boxes[rank()]
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please use DTensor instead", FutureWarning)
        return ShardedTensor._init_from_local_shards(shards, *whole.shape)


def held_here(tensor: Tensor) -> list[Tensor]:
    """The memory of a tensor that is this rank's."""
    return [shard.tensor for shard in tensor.local_shards()] if isinstance(tensor, ShardedTensor) else [tensor]


def _index(box: Box) -> tuple[slice, ...]:
    return tuple(slice(start, start + size) for start, size in zip(*box, strict=True))


def _cuts(shape: Sequence[int], axis: int, count: int) -> list[Box]:
    """Equal parts along an axis, the last ones shorter or empty, as torchrec cuts."""
    length = -(-shape[axis] // count)
    boxes = []
    for number in range(count):
        offset, sizes = [0] * len(shape), list(shape)
        offset[axis] = min(number * length, shape[axis])
        sizes[axis] = min(length, shape[axis] - offset[axis])
        boxes.append((offset, sizes))
    return boxes
