"""The rows of a step that cannot be taken, kept so that they can be looked at and tried again.

RUN/not-finite/step-<step>/rank-<rank>-<micro-batch>.parquet   rows of a process, columns as its stream gives them
RUN/not-finite/step-<step>/positions.json                      where the stream stood behind each micro-batch
RUN/not-finite/step-<step>/config.yaml                         the configuration of that start
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.checkpoint.files import Checkpoint, write_atomically
from rookery.checkpoint.layout import PREFIX, checkpoint_steps, listed
from rookery.data.row_groups import list_row_groups, read_rows
from rookery.data.stream import BatchStream, Columns, StreamPosition
from rookery.errors import DataError, RunNotFound
from rookery.parallel.world import on_all, rank
from rookery.storage.disk import force_to_disk
from rookery.train.run import Run

FOLDER = "not-finite"
_NOTE = b"rookery"
PLACES_SHOWN = 10


class _Note(BaseModel):
    """What a file of kept rows says of them. ``lanes`` are ``(number, rows)`` in the order of the rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    position: dict[str, int]
    lanes: tuple[tuple[int, int], ...]
    total_rows: int
    batches_per_epoch: int


@dataclass(frozen=True)
class KeptBatch:
    """One micro-batch of a step that was not taken, of all processes.

    ``lanes`` are the rows of each lane, in their order, before a reader left out any to down-sample.
    ``position`` is the stream's behind it, ``total_rows`` are those of the batch with what could not be decoded,
    ``files`` the kept ones with their numbers of rows.
    """

    columns: Columns
    position: StreamPosition
    lanes: Mapping[int, int]
    total_rows: int
    batches_per_epoch: int
    files: tuple[tuple[str, int], ...]

    @property
    def num_rows(self) -> int:
        return sum(num_rows for _, num_rows in self.files)

    def place(self, row: int) -> str:
        """Where a row lies, for people."""
        for name, num_rows in self.files:
            if row < num_rows:
                return f"{name} row {row}"
            row -= num_rows
        raise IndexError(row)


@dataclass(frozen=True)
class KeptStep:
    """A step that was not taken: its number, from 1, the configuration of that start, its micro-batches."""

    step: int
    config: Path
    batches: tuple[KeptBatch, ...]


@dataclass(frozen=True)
class Finding:
    """``count`` of ``total`` that are not finite, and where the ``first`` are.

    ``kind`` is "column" (of the kept rows), "weight" (of the checkpoint), or what the model calls its own parts.
    """

    kind: str
    name: str
    count: int
    total: int
    first: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReplayedBatch:
    """The loss of a kept micro-batch, and what of it is not finite."""

    loss: float
    num_rows: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Replay:
    """A step replayed with the weights behind ``weights_of_step`` (0: those that the run began with).

    ``weights`` are those that are not finite, ``largest`` the tensor with the largest of the others, and that.
    """

    step: int
    weights_of_step: int
    weights: tuple[Finding, ...]
    largest: tuple[str, float]
    batches: tuple[ReplayedBatch, ...]


def keep_batches(stream: BatchStream, positions: Sequence[StreamPosition], step: int, run: Run) -> Path:
    """Read the batches behind which ``positions`` stand once more and write this process's rows of them.

    The stream is elsewhere afterwards. Returns the folder, once all processes have written theirs: torchrun ends the
    others, and what they are writing, as soon as one has ended.
    """
    folder = run.save_dir / FOLDER / f"{PREFIX}{step:09d}"
    on_all(lambda: _keep(stream, positions, folder, run.config_yaml))
    return folder


def read_kept(run: Path, step: int | None = None) -> KeptStep:
    """The rows that a run kept of ``step``, or of the latest that it could not take.

    Raises ``RunNotFound`` where none are kept of it, ``DataError`` where what is kept cannot be read or is not all.
    """
    found = {folder.name.removeprefix(PREFIX): folder for folder in (run / FOLDER).glob(f"{PREFIX}*")}
    folders = {int(name): folder for name, folder in sorted(found.items()) if name.isdecimal()}
    if not folders:
        raise RunNotFound(f"{run}: no rows are kept in {FOLDER}/: no loss of this run was not finite; name another run")
    step = max(folders) if step is None else step
    if step not in folders:
        raise RunNotFound(f"{run}: no rows are kept of step {step}; steps with rows: {listed(list(folders))}")
    files = sorted((_numbers(file), file) for file in folders[step].glob("rank-*.parquet"))
    by_batch = groupby(files, key=lambda numbered: numbered[0][0])
    batches = tuple(_read([file for _, file in numbered]) for _, numbered in by_batch)
    if not batches:
        raise DataError(f"{folders[step]}: no rows lie there; start the run again, and they are kept again")
    return KeptStep(step, folders[step] / "config.yaml", batches)


def checkpoint_before(run: Path, step: int) -> Checkpoint | None:
    """The newest checkpoint from before ``step`` was to be taken, None where the run had none yet."""
    earlier = [each for each in checkpoint_steps(run) if each < step]
    return load_checkpoint(run, earlier[-1]) if earlier else None


def find_in_columns(kept: KeptBatch) -> list[Finding]:
    """Numbers of the kept rows that are not finite, by column."""
    return [
        finding
        for name, column in kept.columns.items()
        if column.is_floating_point() and (finding := find_rows("column", name, column, range(kept.num_rows), kept))
    ]


def find_in_weights(
    tensors: Mapping[str, Tensor], name_of: Callable[[str, int], str] = lambda _, row: f"row {row}"
) -> tuple[Finding, ...]:
    """Tensors with numbers that are not finite, one by one; ``name_of`` names a row of a tensor."""
    found = []
    for name in tensors:
        is_wrong = ~tensors[name].isfinite()
        if is_wrong.any():
            rows = is_wrong.reshape(len(is_wrong), -1).any(1).nonzero().squeeze(1).tolist() if is_wrong.dim() else []
            first = tuple(name_of(name, row) for row in rows[:PLACES_SHOWN])
            found.append(Finding("weight", name, int(is_wrong.sum()), is_wrong.numel(), first))
    return tuple(found)


def largest_weight(tensors: Mapping[str, Tensor]) -> tuple[str, float]:
    """The tensor with the largest finite number, by magnitude, and that; what overflows does so by such ones."""
    largest = "", 0.0
    for name in tensors:  # one by one: a table may be half of the memory
        sizes = tensors[name].abs()
        if sizes.numel():
            size = float(sizes.masked_fill(~sizes.isfinite(), 0).amax())
            largest = max(largest, (name, size), key=lambda each: each[1])
    return largest


def find_rows(kind: str, name: str, values: Tensor, rows: Sequence[int], kept: KeptBatch) -> Finding | None:
    """Which of ``values`` ``[rows]`` or ``[rows, …]`` are not finite; ``rows`` are those of ``kept``."""
    is_wrong = ~values.isfinite().reshape(len(values), -1).all(1)
    wrong = is_wrong.nonzero().squeeze(1).tolist()
    first = tuple(kept.place(rows[row]) for row in wrong[:PLACES_SHOWN])
    return Finding(kind, name, len(wrong), len(values), first) if wrong else None


def _keep(stream: BatchStream, positions: Sequence[StreamPosition], folder: Path, config_yaml: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, position in enumerate(positions):
        stream.seek(replace(position, num_batches=position.num_batches - 1))
        columns = next(stream)
        note = _Note(
            position=position.to_json(),
            lanes=tuple(zip(stream.lanes, stream.lane_rows(position), strict=True)),
            total_rows=stream.total_rows(position),
            batches_per_epoch=stream.batches_per_epoch,
        )
        _write(columns, note, folder / f"rank-{rank()}-{number}.parquet")
    write_atomically(folder / "positions.json", json.dumps([position.to_json() for position in positions]))
    write_atomically(folder / "config.yaml", config_yaml)


def _write(columns: Mapping[str, Tensor], note: _Note, file: Path) -> None:
    beside = file.with_name(f".{file.name}.{os.getpid()}.writing")
    table = pa.table({name: _array(column) for name, column in columns.items()})
    pq.write_table(table.replace_schema_metadata({_NOTE: note.model_dump_json()}), beside)
    force_to_disk(beside)
    beside.replace(file)


def _array(column: Tensor) -> pa.Array:
    values = column.contiguous().numpy()
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _numbers(file: Path) -> tuple[int, int]:
    """Micro-batch and rank of ``rank-<rank>-<micro-batch>.parquet``."""
    _, of_rank, batch = file.stem.split("-")
    return int(batch), int(of_rank)


def _read(files: Sequence[Path]) -> KeptBatch:
    """The parts of one micro-batch, by rank."""
    parts = [_read_part(file) for file in files]
    notes = [note for _, note in parts]
    position = StreamPosition(**notes[0].position)
    lanes = {lane: num_rows for note in notes for lane, num_rows in note.lanes}
    if any(note.position != notes[0].position for note in notes) or len(lanes) != position.num_lanes:
        raise DataError(
            f"{files[0].parent}: has {len(lanes)} of {position.num_lanes} lanes of rows, or of several starts; bring "
            "what each process wrote there together, or delete the folder and start the run again"
        )
    return KeptBatch(
        columns={name: torch.cat([columns[name] for columns, _ in parts]) for name in parts[0][0]},
        position=position,
        lanes=lanes,
        total_rows=notes[0].total_rows,
        batches_per_epoch=notes[0].batches_per_epoch,
        files=tuple((file.name, len(next(iter(part[0].values())))) for file, part in zip(files, parts, strict=True)),
    )


def _read_part(file: Path) -> tuple[Columns, _Note]:
    _, types = list_row_groups([file], [])
    schema = pq.read_schema(file)
    try:
        note = _Note.model_validate_json((schema.metadata or {}).get(_NOTE, b""))
    except ValidationError as error:
        raise DataError(
            f"{file}: does not tell where its rows come from; start the run again, and they are kept again"
        ) from error
    slices, types = list_row_groups([file], schema.names)
    return read_rows(slices, types), note
