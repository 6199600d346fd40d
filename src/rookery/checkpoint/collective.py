"""The collective write of a checkpoint: each process its own shards, through torch.distributed.checkpoint.

checkpoints/step-000001000/model/rank-00000.safetensors, rank-00001.safetensors, …

Planning, agreement and the gathering of results are torch's. The storage is safetensors: nothing is pickled to disk.
torch's own ``HuggingFaceStorageWriter`` keys a file by the tensor's name, and so loses all but one of a tensor's
shards on one rank, and builds the whole file in memory; this writer does neither. torch's reader reads its folders.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from rookery.checkpoint.draft import Draft
from rookery.checkpoint.files import OFFSETS, SHARDING, TENSORS
from rookery.checkpoint.shards import Groups, Shards
from rookery.errors import PeerFailed
from rookery.parallel.world import is_chief, rank

_SEPARATOR = "/"


class RanksRefused(OSError):
    """The write failed on some ranks: which, and why. Raised on all."""


def write_together(draft: Draft, groups: Groups, process_group: dist.ProcessGroup | None) -> None:
    """Write and publish ``draft`` with the shards of all ranks; what several hold, the lowest of them writes.

    Raises ``RanksRefused`` where a rank cannot write, ``PeerFailed`` where one is gone.
    """
    held = {f"{group}{_SEPARATOR}{name}": shards for group, named in groups.items() for name, shards in named.items()}
    try:
        save(held, storage_writer=_Writer(draft, list(groups)), planner=_Planner(), process_group=process_group)
    except CheckpointException as failed:
        reasons = (f"rank {number}: {error}" for number, (error, _) in sorted(failed.failures.items()))
        raise RanksRefused("; ".join(reasons)) from failed
    except RuntimeError as error:  # what gloo and NCCL raise for a connection that is lost or silent
        raise PeerFailed(
            f"rank {rank()}: another process died or does not answer ({error}) while a checkpoint is written; earlier "
            "ones are untouched: start again"
        ) from error


class _Planner(DefaultSavePlanner):
    """Plans ``Shards`` instead of tensors."""

    state_dict: dict[str, Shards]

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False, dedup_save_to_lowest_rank=True)

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan(
            [
                _write_item(name, shards.size, offset, shard)
                for name, shards in self.state_dict.items()
                for offset, shard in shards.held.items()
            ]
        )
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        return self.state_dict[index.fqn].held[tuple(index.offset)]


def _write_item(name: str, size: torch.Size, offset: Sequence[int], shard: Tensor) -> WriteItem:
    start = torch.Size(offset)
    data = TensorWriteData(ChunkStorageMetadata(start, shard.shape), TensorProperties(dtype=shard.dtype), size)
    return WriteItem(MetadataIndex(name, start), WriteItemType.SHARD, tensor_data=data)


class _Writer(StorageWriter):
    """Writes the items of one rank into files of the draft, a folder a group."""

    def __init__(self, draft: Draft, groups: Sequence[str]) -> None:
        self._draft = draft
        self._groups = groups

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """A writer serves one draft."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:  # noqa: ARG003
        return False  # the draft says where

    def set_up_storage_writer(self, is_coordinator: bool, *args: object, **kwargs: object) -> None:
        """Nothing to prepare before there is a plan."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Runs on the chief, before any rank writes."""
        self._draft.begin()
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        written: Future[list[WriteResult]] = Future()
        written.set_result([self._write(file, items, planner) for file, items in self._files(plan).items()])
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Runs on the chief, once all ranks have written."""
        self._draft.publish({each.index.fqn: each.storage_data for of_rank in results for each in of_rank})

    def _files(self, plan: SavePlan) -> dict[str, list[WriteItem]]:
        """A file holds one shard of a tensor: a second one goes to a second file."""
        # A group without tensors is found by its empty file.
        files: dict[str, list[WriteItem]] = {_file(group, 0): [] for group in self._groups if is_chief()}
        seen: dict[str, int] = defaultdict(int)
        for item in plan.items:
            name = item.index.fqn
            group, _ = name.split(_SEPARATOR, 1)
            files.setdefault(_file(group, seen[name]), []).append(item)
            seen[name] += 1
        return files

    def _write(self, file: str, items: Sequence[WriteItem], planner: SavePlanner) -> WriteResult:
        tensors: dict[str, Tensor] = {}
        offsets: dict[str, dict[str, list[int]]] = {}
        for item in items:
            _, name = item.index.fqn.split(_SEPARATOR, 1)
            shard, offset = planner.resolve_data(item), item.index.offset
            assert isinstance(shard, Tensor)
            assert offset is not None
            tensors[name], offsets[name] = shard, {OFFSETS: list(offset)}
        found = self._draft.write(file, tensors, {SHARDING: json.dumps(offsets)})
        return WriteResult(MetadataIndex(file), int(found["bytes"]), found)


def _file(group: str, number: int) -> str:
    suffix = f"-{number}" if number else ""
    return f"{group}/rank-{rank():05d}{suffix}{TENSORS}"
