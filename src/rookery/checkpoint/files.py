"""What one checkpoint is on disk: tensors, a state, and the sums that tell a whole one from a damaged one.

checkpoints/step-000001000/model.safetensors, optimizer.safetensors, …   named groups of tensors
                           state.json                                    everything that is no tensor
                           checksums.json                                {file: {"bytes": n, "crc32": "0123abcd"}}
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rookery.errors import CheckpointError

State = dict[str, Any]
"""JSON: numbers, strings, lists and maps of these."""

_CHECKSUMS = "checksums.json"
_STATE = "state.json"
_TENSORS = ".safetensors"
_READ_BYTES = 1 << 22


class DamagedCheckpoint(CheckpointError):
    """A stored checkpoint is not what was written: which file, and what differs."""

    exit_code = 2  # the user can restore it, or name another one


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of one file by name, each mapped from disk when it is asked for.

    A caller that copies one after the other into tensors of its own never holds two copies in memory of its own.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise DamagedCheckpoint(f"{path}: not a readable safetensors file ({error})") from error
        self._names = tuple(self._file.keys())  # type: ignore[no-untyped-call]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)  # type: ignore[no-untyped-call]
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: its step, its state, and its groups of tensors."""

    path: Path
    step: int
    state: State

    def tensors(self, group: str) -> Mapping[str, Tensor]:
        """The tensors that were saved as ``group``, read lazily. ``CheckpointError`` when there is no such group."""
        file = self.path / f"{group}{_TENSORS}"
        if not file.exists():
            known = ", ".join(sorted(path.name.removesuffix(_TENSORS) for path in self.path.glob(f"*{_TENSORS}")))
            raise CheckpointError(f"{self.path}: holds no tensors {group!r}; it holds {known or 'none'}")
        return StoredTensors(file)


def is_checkpoint(folder: Path) -> bool:
    """Whether ``folder`` itself is one checkpoint (not a run that holds some)."""
    return (folder / _CHECKSUMS).exists()


def write_checkpoint(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: State) -> None:
    """Write a checkpoint so that ``folder`` is whole or absent, whenever the process or the machine stops.

    Everything is written beside, forced to disk, then renamed; a predecessor of the same name is replaced.
    Raises ``CheckpointError`` when the disk refuses.
    """
    beside = folder.with_name(f".{folder.name}.writing")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        for group, named in tensors.items():
            save_file(
                {name: tensor.detach().contiguous() for name, tensor in named.items()}, beside / f"{group}{_TENSORS}"
            )
        (beside / _STATE).write_text(json.dumps({"step": step, **state}, indent=1))
        sums = {file.name: file_sum(file) for file in sorted(beside.iterdir())}
        (beside / _CHECKSUMS).write_text(json.dumps(sums, indent=1))
        for path in (*beside.iterdir(), beside):
            force_to_disk(path)
        if folder.exists():
            shutil.rmtree(folder)
        beside.rename(folder)
        force_to_disk(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise CheckpointError(
            f"{folder}: the checkpoint of step {step} could not be written ({error}); earlier ones are untouched: "
            "make room or permission there and start again"
        ) from error


def read_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint after comparing every file with its recorded size and crc32.

    Raises ``DamagedCheckpoint`` naming the file and what differs.
    """
    try:
        sums = json.loads((folder / _CHECKSUMS).read_text())
        for name, expected in sums.items():
            require_sum(folder / name, expected)
        state = json.loads((folder / _STATE).read_text())
        return Checkpoint(folder, state.pop("step"), state)
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"{error.filename}: missing") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"{folder / _CHECKSUMS}: not the JSON that was written ({error})") from error


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by ``text``: a reader sees the old or the new text, also after a crash.

    Of several processes that write at once, one wins.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.writing")
    beside.write_text(text)
    force_to_disk(beside)
    beside.replace(path)
    force_to_disk(path.parent)


def force_to_disk(path: Path) -> None:
    """Wait until a file's content, or a directory's entries, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sum(file: Path) -> dict[str, int | str]:
    """Size in ``bytes`` and ``crc32`` of a file."""
    crc = 0
    with file.open("rb") as stream:
        while block := stream.read(_READ_BYTES):
            crc = zlib.crc32(block, crc)
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
