"""Processes of one world read row groups of their own, and together each row of an epoch once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ranks import run_ranks

from rookery.data.ledger import Ledger
from rookery.data.prefetch import Prefetcher, prepare
from rookery.data.stream import ParquetStream, StreamPosition
from rookery.parallel import world

# Uneven on purpose: the lanes of some ranks end before those of others.
ROW_GROUPS = [[40, 7, 7, 3], [20, 19, 1], [64]]
NUM_ROWS = sum(map(sum, ROW_GROUPS))


@dataclass(frozen=True)
class Seen:
    """What one rank read: the rows of each batch, its row groups, and the world's merged ledger of each epoch."""

    batches: list[list[int]]
    row_groups: list[tuple[str, int]]
    sums: list[int]
    epochs: list[Ledger]


def write_files(folder: Path) -> list[Path]:
    files, start = [], 0
    for number, sizes in enumerate(ROW_GROUPS):
        files.append(folder / f"part-{number}.parquet")
        with pq.ParquetWriter(files[-1], pa.schema({"row": pa.int64()})) as writer:
            for size in sizes:
                writer.write_table(pa.table({"row": np.arange(start, start + size)}))
                start += size
    return files


def open_stream(files: list[Path]) -> ParquetStream:
    return ParquetStream(
        files,
        ["row"],
        14,
        seed=7,
        shuffle=True,
        buffer_rows=60,
        num_lanes=6,
        rank=world.rank(),
        world_size=world.world_size(),
        num_epochs=2,
    )


def read_my_part(files: list[Path], position: StreamPosition | None = None, ledger: Ledger | None = None) -> Seen:
    """Through the prefetcher, as training does; a sum over all ranks for each batch waits for every rank."""
    stream = open_stream(files)
    if position is not None:
        stream.seek(position)
        if ledger is not None and world.is_chief():
            stream.resume_ledger(ledger)
    batches, sums, epochs = [], [], []
    with Prefetcher(prepare(stream, lambda columns, _: columns["row"]), 4) as prepared_batches:
        for prepared in prepared_batches:
            batches.append(prepared.batch.tolist())
            sums.append(int(world.all_sum(prepared.batch.sum())))
            if prepared.position.num_batches == stream.batches_per_epoch:
                epochs.append(Ledger.merged(world.gather_objects(prepared.ledger)))
    return Seen(batches, [(piece.file.name, piece.row_group) for piece in stream.slices], sums, epochs)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_read_rows_of_their_own_and_the_batches_of_one(tmp_path: Path, world_size: int) -> None:
    files = write_files(tmp_path)
    alone = read_my_part(files)
    ranks = run_ranks(world_size, read_my_part, files)
    pieces = [piece for rank in ranks for piece in rank.row_groups]
    assert len(set(pieces)) == sum(map(len, ROW_GROUPS))
    for mine, others in permutations([set(rank.row_groups) for rank in ranks], 2):
        assert mine and len(mine & others) <= 1  # the one that the boundary falls into
    together = [list(chain(*parts)) for parts in zip(*(rank.batches for rank in ranks), strict=True)]
    assert together == alone.batches
    for rank in ranks:
        assert rank.sums == [sum(batch) for batch in alone.batches]
        assert rank.epochs == alone.epochs
    assert [epoch.rows for epoch in alone.epochs] == [NUM_ROWS, NUM_ROWS]
    assert all(epoch.accounts_for(open_stream(files).expected()) for epoch in alone.epochs)


def test_another_number_of_ranks_goes_on(tmp_path: Path) -> None:
    files = write_files(tmp_path)
    alone = read_my_part(files)
    stream = open_stream(files)
    for _ in range(5):
        next(stream)
    ranks = run_ranks(2, read_my_part, files, stream.position(), stream.ledger())
    together = [list(chain(*parts)) for parts in zip(*(rank.batches for rank in ranks), strict=True)]
    assert together == alone.batches[5:]
    assert ranks[0].epochs == ranks[1].epochs == alone.epochs
    assert torch.tensor(list(chain(*alone.batches))).bincount().tolist() == [2] * NUM_ROWS
