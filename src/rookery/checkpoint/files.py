"""What one checkpoint is on disk: tensors, a state, and the sums that tell a whole one from a damaged one.

checkpoints/step-000001000/model.safetensors, optimizer.safetensors, …   named groups of tensors, of one process
                           model/rank-00000.safetensors, …               the same of several: each rank's shards
                           state.json                                    everything that is no tensor
                           checksums.json                                {file: {"bytes": n, "crc32": "0123abcd"}}
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from zlib_ng import zlib_ng

from rookery.checkpoint.shards import box
from rookery.errors import CheckpointError
from rookery.storage.disk import force_to_disk

State = dict[str, Any]
"""JSON: numbers, strings, lists and maps of these."""

CHECKSUMS = "checksums.json"
STATE = "state.json"
TENSORS = ".safetensors"

# In the header of a file of shards, as torch.distributed.checkpoint reads and writes it: {tensor: {OFFSETS: [row, …]}}.
SHARDING = "DCP_SHARDING_INFO"
OFFSETS = "saved_offsets"

_READ_BYTES = 1 << 22


class DamagedCheckpoint(CheckpointError):
    """A stored checkpoint is not what was written: which file, and what differs, without ``remedy``, is ``damage``."""

    exit_code = 2  # the user can restore it, or name another one

    def __init__(self, damage: str, remedy: str = "") -> None:
        super().__init__(f"{damage}; {remedy}" if remedy else damage)
        self.damage = damage


@dataclass(frozen=True)
class _StoredShard:
    """A box of a tensor: where it begins in the whole, and the part of a file that it is, mapped from disk."""

    offset: Sequence[int]
    tensor: Tensor


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of one group by name: of one file, or of a folder of files that hold shards of them.

    What lies in one piece is mapped from disk when it is asked for: a caller that copies one after the other into
    tensors of its own never holds two copies in memory of its own. What lies in several is put together then.
    Raises ``DamagedCheckpoint`` where a file cannot be read as what it is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shards: dict[str, list[_StoredShard]] = {}
        for file in sorted(path.glob(f"*{TENSORS}")) if path.is_dir() else [path]:
            try:
                self._add(file)
            except (SafetensorError, OSError) as error:
                raise DamagedCheckpoint(f"{file}: not a readable safetensors file ({error})") from error

    def _add(self, file: Path) -> None:
        opened = safe_open(file, framework="pt")
        offsets = json.loads((opened.metadata() or {}).get(SHARDING, "{}"))  # type: ignore[no-untyped-call]
        for name in opened.keys():  # type: ignore[no-untyped-call]  # noqa: SIM118
            tensor = opened.get_tensor(name)  # type: ignore[no-untyped-call]
            offset = offsets[name][OFFSETS] if offsets else [0] * tensor.dim()
            self._shards.setdefault(name, []).append(_StoredShard(offset, tensor))

    def __getitem__(self, name: str) -> Tensor:
        size = self.shape(name)
        return self.part(name, [0] * len(size), size)

    def __contains__(self, name: object) -> bool:
        return name in self._shards

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)

    def shape(self, name: str) -> torch.Size:
        """The shape of a whole tensor; nothing is read."""
        ends = ([*map(sum, zip(each.offset, each.tensor.shape, strict=True))] for each in self._shards[name])
        return torch.Size(map(max, zip(*ends, strict=True)))

    def dtype(self, name: str) -> torch.dtype:
        """The type of a tensor; nothing is read."""
        return self._shards[name][0].tensor.dtype

    def part(self, name: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """The box of ``sizes`` that begins at ``offsets``; no other part of the tensor is read.

        Raises ``DamagedCheckpoint`` where the box, or a shard of it, is not stored.
        """
        pieces = [piece for shard in self._shards[name] if (piece := _overlap(shard, offsets, sizes)) is not None]
        if len(pieces) == 1 and list(pieces[0].tensor.shape) == list(sizes):
            return pieces[0].tensor
        part = torch.empty(tuple(sizes), dtype=self.dtype(name))
        if sum(piece.tensor.numel() for piece in pieces) != part.numel():
            raise DamagedCheckpoint(
                f"{self._path}: of {name}, the part of {list(sizes)} from {list(offsets)} on is not stored whole"
            )
        for piece in pieces:
            part[box(piece.offset, piece.tensor.shape)] = piece.tensor
        return part


def _overlap(shard: _StoredShard, offsets: Sequence[int], sizes: Sequence[int]) -> _StoredShard | None:
    """What of ``shard`` lies in a box, counted from where the box begins; None where that is nothing."""
    starts, index = [], []
    for begin, length, offset, size in zip(shard.offset, shard.tensor.shape, offsets, sizes, strict=True):
        start, stop = max(begin, offset), min(begin + length, offset + size)
        if start >= stop:
            return None
        starts.append(start - offset)
        index.append(slice(start - begin, stop - begin))
    return _StoredShard(starts, shard.tensor[tuple(index)])


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: its step, its state, and its groups of tensors."""

    path: Path
    step: int
    state: State

    def tensors(self, group: str) -> StoredTensors:
        """The tensors that were saved as ``group``, read lazily. ``CheckpointError`` when there is no such group."""
        for path in (self.path / f"{group}{TENSORS}", self.path / group):
            if path.exists():
                return StoredTensors(path)
        known = (path.name.removesuffix(TENSORS) for path in self.path.iterdir() if path.suffix != ".json")
        raise CheckpointError(f"{self.path}: holds no tensors {group!r}; it holds {', '.join(sorted(known)) or 'none'}")


def is_checkpoint(folder: Path) -> bool:
    """Whether ``folder`` itself is one checkpoint (not a run that holds some)."""
    return (folder / CHECKSUMS).exists()


def read_checkpoint(folder: Path, part: int = 0, num_parts: int = 1) -> Checkpoint:
    """Open a checkpoint after comparing every file with its recorded size and crc32.

    Of ``num_parts`` that share the work, one compares the state and only those other files that are of its ``part``.
    Raises ``DamagedCheckpoint`` naming the file and what differs.
    """
    try:
        sums = json.loads((folder / CHECKSUMS).read_text())
        # The largest first, in turn: the parts come out about equal.
        by_size = sorted(sums.keys() - {STATE}, key=lambda name: (-int(sums[name]["bytes"]), name))
        for name in (STATE, *by_size[part::num_parts]):
            require_sum(folder / name, sums[name])
        state = json.loads((folder / STATE).read_text())
        return Checkpoint(folder, state.pop("step"), state)
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"{error.filename}: missing") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"{folder / CHECKSUMS}: not the JSON that was written ({error})") from error


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by ``text``: a reader sees the old or the new text, also after a crash.

    Of several processes that write at once, one wins.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.writing")
    beside.write_text(text)
    force_to_disk(beside)
    beside.replace(path)
    force_to_disk(path.parent)


def file_sum(file: Path) -> dict[str, int | str]:
    """Size in ``bytes`` and ``crc32`` of a file."""
    crc = 0
    with file.open("rb") as stream:
        while block := stream.read(_READ_BYTES):
            crc = zlib_ng.crc32(block, crc)
    return {"bytes": file.stat().st_size, "crc32": f"{crc:08x}"}


def require_sum(file: Path, expected: Mapping[str, int | str]) -> None:
    """Raise ``DamagedCheckpoint`` where a file is not what ``file_sum`` was taken of."""
    # The size first: it tells a truncated file without reading it.
    size = file.stat().st_size
    if size != expected["bytes"]:
        raise DamagedCheckpoint(f"{file}: {size:,} bytes, {expected['bytes']:,} were written")
    found = file_sum(file)["crc32"]
    if found != expected["crc32"]:
        raise DamagedCheckpoint(f"{file}: crc32 is {found}, {expected['crc32']} was written")
