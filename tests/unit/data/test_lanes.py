"""Lanes: however many ranks read them, together they read the same batches."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rookery.data import row_groups
from rookery.data.lanes import BatchLayout, lanes_of_rank
from rookery.data.ledger import Ledger
from rookery.data.stream import Columns, ParquetStream, StreamPosition
from rookery.errors import DataError

FAST = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write_files(folder: Path, sizes: list[list[int]]) -> list[Path]:
    """Files whose row groups have ``sizes`` rows; ``row`` counts on over all of them, ``pair`` follows from it."""
    files, start = [], 0
    for number, row_group_sizes in enumerate(sizes):
        files.append(folder / f"part-{number}.parquet")
        schema = pa.schema({"row": pa.int64(), "pair": pa.list_(pa.float32(), 2)})
        with pq.ParquetWriter(files[-1], schema) as writer:
            for size in row_group_sizes:
                row = np.arange(start, start + size)
                pair = pa.array(np.stack([row, -row], 1).ravel().astype(np.float32))
                table = pa.table({"row": row, "pair": pa.FixedSizeListArray.from_arrays(pair, 2)})
                writer.write_table(table, row_group_size=max(size, 1))
                start += size
    return files


UNEVEN = [[10] * 7 + [3], [25, 1, 1, 1], [6, 40, 2, 9, 9, 5], [11, 8]]  # 191 rows in 20 row groups


def open_ranks(files: list[Path], world_size: int, **options: Any) -> list[ParquetStream]:
    defaults = {"seed": 3, "shuffle": True, "num_lanes": 12, "buffer_rows": 120, "num_epochs": 2, "batch_size": 26}
    return [
        ParquetStream(files, ["row", "pair"], rank=rank, world_size=world_size, **{**defaults, **options})
        for rank in range(world_size)
    ]


def global_batches(streams: list[ParquetStream]) -> list[Columns]:
    """The parts of all ranks laid one after another; raises when one rank has fewer than another."""
    batches = zip(*streams, strict=True)
    return [{name: torch.cat([part[name] for part in parts]) for name in parts[0]} for parts in batches]


def rows_of(batches: list[Columns]) -> list[list[int]]:
    return [batch["row"].tolist() for batch in batches]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 12])
def test_any_number_of_ranks_reads_the_same_batches(tmp_path: Path, world_size: int, shuffle: bool) -> None:
    files = write_files(tmp_path, UNEVEN)
    alone = global_batches(open_ranks(files, 1, shuffle=shuffle))
    together = global_batches(open_ranks(files, world_size, shuffle=shuffle))
    assert rows_of(together) == rows_of(alone)
    for batch in together:
        torch.testing.assert_close(batch["pair"], torch.stack([batch["row"], -batch["row"]], 1).float())


@given(
    sizes=st.lists(st.lists(st.integers(1, 30), max_size=6), min_size=1, max_size=3).filter(any),
    num_lanes=st.integers(1, 6),
    world_size=st.integers(1, 6),
    rows_more=st.integers(0, 20),
    buffer_rows=st.integers(1, 100),
    shuffle=st.booleans(),
)
@FAST
def test_an_epoch_is_every_row_once_over_all_ranks(
    tmp_path: Path,
    sizes: list[list[int]],
    num_lanes: int,
    world_size: int,
    rows_more: int,
    buffer_rows: int,
    shuffle: bool,
) -> None:
    files = write_files(tmp_path, sizes)
    num_lanes = min(num_lanes, sum(map(len, sizes)))
    world_size = min(world_size, num_lanes)
    options = {"num_lanes": num_lanes, "batch_size": num_lanes + rows_more}
    streams = open_ranks(files, world_size, buffer_rows=buffer_rows, shuffle=shuffle, **options)
    total = sum(map(sum, sizes))
    per_epoch = streams[0].batches_per_epoch
    assert {stream.num_rows for stream in streams} == {total}
    batches = rows_of(global_batches(streams))
    assert len(batches) == 2 * per_epoch
    for epoch in (batches[:per_epoch], batches[per_epoch:]):
        assert sorted(itertools.chain(*epoch)) == list(range(total))
        assert all(epoch)
    for epoch in range(2):
        merged = Ledger.merged([stream.finished()[epoch] for stream in streams])
        assert merged.accounts_for(streams[0].expected())
        assert (merged.epoch, merged.rows, merged.skipped) == (epoch, total, 0)


def test_lanes_have_orders_of_their_own_that_change_with_epoch_and_seed(tmp_path: Path) -> None:
    files = write_files(tmp_path, [[20] * 6])

    def places(lane: int, epoch: int, seed: int) -> list[int]:
        """The order of a lane's rows by their places in it."""
        stream = open_ranks(files, 3, num_lanes=3, batch_size=120, seed=seed)[lane]
        rows = [next(stream)["row"] for _ in range(epoch + 1)][epoch]
        return rows.argsort().argsort().tolist()  # type: ignore[no-any-return]

    orders = {
        (lane, epoch, seed): places(lane, epoch, seed) for lane in range(3) for epoch in (0, 1) for seed in (1, 2)
    }
    assert len({tuple(order) for order in orders.values()}) == len(orders) == 12
    assert all(sorted(order) == list(range(40)) for order in orders.values())


def test_a_rank_opens_its_own_row_groups_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_files(tmp_path, UNEVEN)
    read: list[tuple[Path, int]] = []
    read_table = row_groups._read_table

    def watched(pieces: list[row_groups.RowGroupSlice], columns: list[str]) -> pa.Table:
        read.extend((piece.file, piece.row_group) for piece in pieces)
        return read_table(pieces, columns)

    monkeypatch.setattr(row_groups, "_read_table", watched)
    of_rank = []
    for stream in open_ranks(files, 3, num_epochs=1):
        read.clear()
        list(stream)
        of_rank.append(sorted(read))
        assert of_rank[-1] == sorted((piece.file, piece.row_group) for piece in stream.slices)
    assert set(itertools.chain(*of_rank)) == set(all_row_groups(files))
    assert sum(map(len, of_rank)) <= 20 + 11  # a row group is read twice where a boundary of lanes falls into it
    for mine, others in itertools.permutations(of_rank, 2):
        assert len(set(mine) & set(others)) <= 1
    shares = [sum(piece.num_rows for piece in stream.slices) for stream in open_ranks(files, 3)]
    assert sum(shares) == 191 and max(shares) - min(shares) < 26


def test_lanes_end_together(tmp_path: Path) -> None:
    """Whatever row groups are like, and where a lane gives more rows to a batch than another."""
    files = write_files(tmp_path, UNEVEN)
    for batch_size in (12, 13, 23, 40):
        stream = open_ranks(files, 1, batch_size=batch_size)[0]
        assert stream.batches_per_epoch <= -(-191 // batch_size) + 1


def all_row_groups(files: list[Path]) -> list[tuple[Path, int]]:
    return [(file, number) for file in files for number in range(pq.read_metadata(file).num_row_groups)]


@pytest.mark.parametrize("shuffle", [True, False])
def test_any_number_of_ranks_goes_on_from_any_place(tmp_path: Path, shuffle: bool) -> None:
    files = write_files(tmp_path, UNEVEN)
    whole = open_ranks(files, 1, shuffle=shuffle)[0]
    batches, positions, ledgers = [], [whole.position()], [whole.ledger()]
    for batch in whole:
        batches.append(batch["row"].tolist())
        positions.append(whole.position())
        ledgers.append(whole.ledger())
    per_epoch = whole.batches_per_epoch
    for world_size, done in itertools.product([1, 2, 4], range(len(positions))):
        streams = open_ranks(files, world_size, shuffle=shuffle)
        for stream in streams:
            stream.seek(StreamPosition(**positions[done].to_json()))
            assert stream.position() == positions[done]
        streams[0].resume_ledger(Ledger(**ledgers[done].to_json()))
        assert rows_of(global_batches(streams)) == batches[done:]
        if done < 2 * per_epoch:
            last = Ledger.merged([stream.finished()[-1] for stream in streams])
            assert last == whole.finished()[1]
            assert last.accounts_for(whole.expected())
        first = Ledger.merged([stream.finished()[0] for stream in streams]) if done < per_epoch else ledgers[per_epoch]
        assert first == whole.finished()[0]


def test_rows_of_lanes_and_of_all_ranks_are_those_of_the_batches(tmp_path: Path) -> None:
    files = write_files(tmp_path, UNEVEN)
    for world_size in (1, 3, 12):
        streams = open_ranks(files, world_size)
        assert tuple(itertools.chain(*(stream.lanes for stream in streams))) == tuple(range(12))
        start = streams[0].position()
        assert [stream.total_rows(start) for stream in streams] == [0] * world_size
        assert [sum(stream.lane_rows(start)) for stream in streams] == [0] * world_size
        numbers = set()
        for parts in zip(*streams, strict=True):
            position = streams[0].position()
            lane_rows = [stream.lane_rows(position) for stream in streams]
            assert [len(rows) for rows in lane_rows] == [len(stream.lanes) for stream in streams]
            assert [sum(rows) for rows in lane_rows] == [len(part["row"]) for part in parts]
            assert {stream.total_rows(position) for stream in streams} == {sum(map(sum, lane_rows))}
            numbers.add(tuple(itertools.chain(*lane_rows)))
        assert (3, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2) in numbers  # a batch of 26 over 12 lanes


def test_a_rank_whose_lanes_have_ended_gets_empty_batches(tmp_path: Path) -> None:
    files = write_files(tmp_path, [[50, 1]])
    short, long = open_ranks(files, 2, num_lanes=2, batch_size=10, num_epochs=2)
    assert long.batches_per_epoch == short.batches_per_epoch == 6
    assert [len(batch["row"]) for batch in short] == 2 * [5, 5, 5, 5, 5, 0]
    assert [len(batch["row"]) for batch in long] == 2 * [5, 5, 5, 5, 5, 1]
    short.seek(StreamPosition(1, 5, 10, 51, 3, num_lanes=2))
    empty = next(short)
    assert {name: (column.dtype, tuple(column.shape)) for name, column in empty.items()} == {
        "row": (torch.int64, (0,)),
        "pair": (torch.float32, (0, 2)),
    }


def test_a_position_without_lanes_is_of_one_lane(tmp_path: Path) -> None:
    stored = {"epoch": 1, "num_batches": 3, "batch_size": 26, "num_rows": 191, "seed": 3}
    assert StreamPosition(**stored) == StreamPosition(1, 3, 26, 191, 3, num_lanes=1)
    files = write_files(tmp_path, UNEVEN)
    open_ranks(files, 1, num_lanes=1)[0].seek(StreamPosition(**stored))
    with pytest.raises(
        DataError, match=r"num_lanes=1, the stream now has num_lanes=12; restore num_lanes=1, or start a new run"
    ):
        open_ranks(files, 1)[0].seek(StreamPosition(**stored))


def test_lanes_are_shared_evenly_and_in_order() -> None:
    for num_lanes, world_size in itertools.product(range(1, 14), range(1, 14)):
        shares = [lanes_of_rank(num_lanes, rank, world_size) for rank in range(world_size)]
        assert list(itertools.chain(*shares)) == list(range(num_lanes))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_layout_by_hand() -> None:
    layout = BatchLayout([7, 5, 4], batch_size=7)  # lanes give 3, 2 and 2 rows
    assert layout.batches_per_epoch == 3
    rows = [[layout.rows(lane, batch) for lane in range(3)] for batch in range(3)]
    assert rows == [[3, 2, 2], [3, 2, 2], [1, 1, 0]]


class TestWhatCannotBe:
    def test_fewer_rows_than_lanes(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"3 rows, fewer than the num_lanes=4 .*part-0\.parquet.* use fewer lanes"):
            open_ranks(write_files(tmp_path, [[1, 1, 1]]), 1, num_lanes=4)

    def test_fewer_lanes_than_ranks(self, tmp_path: Path) -> None:
        with pytest.raises(
            DataError, match=r"num_lanes=2: fewer than the 3 ranks .* at most 2 .* at least --set parallel.num_lanes=3"
        ):
            open_ranks(write_files(tmp_path, [[5, 5, 5]]), 3, num_lanes=2)

    def test_fewer_rows_in_a_batch_than_lanes(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"batch_size=2: fewer rows than the 3 lanes .* at least 3 rows, or fewer"):
            open_ranks(write_files(tmp_path, [[5, 5, 5]]), 1, num_lanes=3, batch_size=2)
