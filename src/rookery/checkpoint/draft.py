"""A checkpoint on its way to disk: beside its place until it is whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from rookery.checkpoint.files import CHECKSUMS, STATE, State, file_sum
from rookery.storage.disk import force_to_disk

FileSum = dict[str, int | str]


class Draft:
    """The checkpoint of ``step`` under a hidden name; at ``folder`` it is whole or absent whenever the machine stops.

    Of several processes the chief alone begins, publishes and discards; all may write files in between.
    """

    def __init__(self, folder: Path, step: int, state: State) -> None:
        self._folder = folder
        self._beside = folder.with_name(f".{folder.name}.writing")
        self._state = json.dumps({"step": step, **state}, indent=1)

    def begin(self) -> None:
        """Make room for it; what an earlier attempt left goes."""
        shutil.rmtree(self._beside, ignore_errors=True)
        self._beside.mkdir(parents=True)

    def write(self, name: str, tensors: Mapping[str, Tensor], about: dict[str, str] | None = None) -> FileSum:
        """Write one file of tensors, with ``about`` in its header, and force it to disk."""
        file = self._beside / name
        file.parent.mkdir(exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, about)
        force_to_disk(file)
        return file_sum(file)

    def publish(self, sums: Mapping[str, FileSum]) -> None:
        """Make it visible, with the sums of all its files of tensors; a predecessor of the same name is replaced."""
        state = self._beside / STATE
        state.write_text(self._state)
        checksums = self._beside / CHECKSUMS
        checksums.write_text(json.dumps({**sums, STATE: file_sum(state)}, indent=1))
        folders = [path for path in self._beside.iterdir() if path.is_dir()]
        for path in (state, checksums, *folders, self._beside):
            force_to_disk(path)
        if self._folder.exists():
            shutil.rmtree(self._folder)
        self._beside.rename(self._folder)
        force_to_disk(self._folder.parent)

    def discard(self) -> None:
        """Leave nothing of it."""
        shutil.rmtree(self._beside, ignore_errors=True)
