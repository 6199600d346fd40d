"""The rows of a step that cannot be taken, kept so that they can be looked at and tried again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from rookery.checkpoint.files import write_atomically
from rookery.data.stream import BatchStream, StreamPosition
from rookery.parallel.world import rank
from rookery.storage.disk import force_to_disk

FOLDER = "not-finite"


def keep_batches(stream: BatchStream, positions: Sequence[StreamPosition], step: int, save_dir: Path) -> Path:
    """Read the batches behind which ``positions`` stand once more and write this process's rows of them.

    ``save_dir/not-finite/step-<step>/rank-<rank>-<micro-batch>.parquet`` has the columns as the stream gives them,
    ``positions.json`` beside them where they stood. The stream is elsewhere afterwards. Returns the folder.
    """
    folder = save_dir / FOLDER / f"step-{step:09d}"
    folder.mkdir(parents=True, exist_ok=True)
    for number, position in enumerate(positions):
        stream.seek(replace(position, num_batches=position.num_batches - 1))
        _write(next(stream), folder / f"rank-{rank()}-{number}.parquet")
    write_atomically(folder / "positions.json", json.dumps([position.to_json() for position in positions]))
    return folder


def _write(columns: Mapping[str, Tensor], file: Path) -> None:
    beside = file.with_name(f".{file.name}.{os.getpid()}.writing")
    pq.write_table(pa.table({name: _array(column) for name, column in columns.items()}), beside)
    force_to_disk(beside)
    beside.replace(file)


def _array(column: Tensor) -> pa.Array:
    values = column.contiguous().numpy()
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
