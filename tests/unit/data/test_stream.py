from __future__ import annotations

import hashlib
import itertools
import random
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
from rookery.data.row_filter import RowFilter
from rookery.data.stream import Columns, ParquetStream, StreamPosition
from rookery.errors import DataError


def write_files(folder: Path, file_rows: list[int], row_group_rows: int) -> list[Path]:
    """Files whose column ``row`` counts on over all of them; ``square`` and ``pair`` follow from it."""
    start = 0
    files = []
    for number, num_rows in enumerate(file_rows):
        row = np.arange(start, start + num_rows)
        pair = pa.FixedSizeListArray.from_arrays(pa.array(np.stack([row, -row], 1).ravel().astype(np.float32)), 2)
        table = pa.table({"row": row, "square": (row**2).astype(np.float64), "pair": pair})
        files.append(folder / f"part-{number}.parquet")
        pq.write_table(table, files[-1], row_group_size=row_group_rows)
        start += num_rows
    return files


def rows_of(batches: list[Columns]) -> list[int]:
    return [row for batch in batches for row in batch["row"].tolist()]


@given(
    file_rows=st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(any),
    row_group_rows=st.integers(1, 15),
    batch_size=st.integers(1, 30),
    buffer_rows=st.integers(1, 200),
    shuffle=st.booleans(),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_epoch_is_every_row_once(
    tmp_path: Path, file_rows: list[int], row_group_rows: int, batch_size: int, buffer_rows: int, shuffle: bool
) -> None:
    files = write_files(tmp_path, file_rows, row_group_rows)
    stream = ParquetStream(
        files, ["row", "square", "pair"], batch_size, seed=1, shuffle=shuffle, buffer_rows=buffer_rows, num_epochs=2
    )
    total = sum(file_rows)
    batches = list(stream)
    assert len(batches) == 2 * stream.batches_per_epoch == 2 * -(-total // batch_size)
    for epoch in (batches[: stream.batches_per_epoch], batches[stream.batches_per_epoch :]):
        assert [len(batch["row"]) for batch in epoch[:-1]] == [batch_size] * (len(epoch) - 1)
        assert sorted(rows_of(epoch)) == list(range(total))
        assert shuffle or rows_of(epoch) == list(range(total))
    for batch in batches:
        torch.testing.assert_close(batch["square"], batch["row"].double() ** 2)
        torch.testing.assert_close(batch["pair"], torch.stack([batch["row"], -batch["row"]], 1).float())


def test_the_order_differs_by_epoch_and_seed_and_is_otherwise_the_same(tmp_path: Path) -> None:
    files = write_files(tmp_path, [300], 50)

    def epochs(seed: int) -> tuple[list[int], list[int]]:
        stream = ParquetStream(files, ["row"], 7, seed=seed, shuffle=True, buffer_rows=120, num_epochs=2)
        batches = list(stream)
        return rows_of(batches[: stream.batches_per_epoch]), rows_of(batches[stream.batches_per_epoch :])

    first, second = epochs(seed=3)
    assert (first, second) == epochs(seed=3)
    assert first != second
    assert first != epochs(seed=4)[0]


def test_the_order_never_changes(tmp_path: Path) -> None:
    # Runs that were begun by an earlier version go on where they were.
    stream = ParquetStream(write_files(tmp_path, [24], 4), ["row"], 8, seed=3, shuffle=True, buffer_rows=10)
    assert [next(stream)["row"].tolist() for _ in range(6)] == [
        [19, 16, 15, 14, 12, 17, 18, 13],
        [3, 20, 21, 1, 2, 22, 0, 23],
        [4, 5, 9, 8, 11, 10, 6, 7],
        [13, 14, 17, 18, 16, 15, 19, 12],
        [7, 20, 6, 23, 4, 5, 21, 22],
        [8, 2, 11, 0, 10, 9, 3, 1],
    ]


@pytest.mark.parametrize(
    ("options", "digest"),
    [
        ({"batch_size": 9, "seed": 5, "buffer_rows": 30}, "387f23f7b4d66cd8"),
        ({"batch_size": 9, "seed": 5}, "b9b5f9be1f612d8d"),
        ({"batch_size": 9, "seed": 5, "buffer_rows": 30, "shuffle": False}, "5e1e1e4fff7ff737"),
        ({"batch_size": 7, "seed": 2**40 + 3, "buffer_rows": 30}, "400605090b47ba68"),
        ({"batch_size": 7, "seed": 0, "buffer_rows": 30}, "766bc99eeb9056b3"),
        (
            {
                "batch_size": 4,
                "seed": 2,
                "buffer_rows": 25,
                "offset": 7,
                "limit": 80,
                "where": RowFilter("row", 3, 120),
            },
            "706d550e143b93d2",
        ),
        ({"batch_size": 50, "seed": 2, "buffer_bytes": 16 * 40}, "8346c6c85acd14bf"),
    ],
    ids=["buffers", "one buffer", "file order", "large seed", "seed 0", "selected", "by bytes"],
)
def test_one_lane_has_the_order_from_before_there_were_lanes(
    tmp_path: Path, options: dict[str, Any], digest: str
) -> None:
    files = write_files(tmp_path, [55, 0, 45, 31], 10)
    found = hashlib.sha256()
    for batch in ParquetStream(files, ["row", "pair"], num_epochs=3, **{"shuffle": True, **options}):
        found.update(len(batch["row"]).to_bytes(8, "little"))
        found.update(batch["row"].numpy().astype("<i8").tobytes())
        found.update(batch["pair"].numpy().astype("<f4").tobytes())
    assert found.hexdigest()[:16] == digest


def test_a_buffer_is_bounded_by_bytes_where_rows_are_wide(tmp_path: Path) -> None:
    files = write_files(tmp_path, [24], 4)
    columns = ["row", "square", "pair"]  # 24 bytes a row

    def orders(**bounds: int | None) -> list[list[int]]:
        stream = ParquetStream(files, columns, 8, seed=3, shuffle=True, num_epochs=2, **bounds)
        return [batch["row"].tolist() for batch in stream]

    assert orders(buffer_bytes=10 * 24 + 23) == orders(buffer_rows=10)
    assert orders(buffer_rows=10, buffer_bytes=24 * 24) == orders(buffer_rows=10)
    assert orders(buffer_rows=10, buffer_bytes=None) == orders(buffer_rows=10)
    assert orders(buffer_bytes=1) == orders(buffer_rows=1)  # one row group
    assert orders() != orders(buffer_rows=10)


@pytest.mark.parametrize("bound", ["BYTES_PER_READ", "COLUMN_BYTES_PER_READ"])
@pytest.mark.parametrize("bytes_per_read", [1, 24 * 9, 10**9])
def test_how_much_is_decoded_at_a_time_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_per_read: int, bound: str
) -> None:
    files = write_files(tmp_path, [50, 0, 30], 7)
    monkeypatch.setattr(row_groups, bound, bytes_per_read)
    (batch,) = ParquetStream(files, ["row", "square", "pair"], 80, seed=0, shuffle=False, num_epochs=1)
    assert batch["row"].tolist() == list(range(80))
    assert batch["pair"].tolist() == [[row, -row] for row in range(80)]


def test_a_shuffled_buffer_has_no_trace_of_the_file_order(tmp_path: Path) -> None:
    stream = ParquetStream(write_files(tmp_path, [20_000], 1000), ["row"], 20_000, seed=0, shuffle=True)
    order = next(stream)["row"].double()
    correlation = torch.corrcoef(torch.stack([order, torch.arange(20_000.0, dtype=torch.float64)]))[0, 1]
    assert abs(correlation) < 4 / 20_000**0.5


@pytest.mark.parametrize("buffer_rows", [30, 1000])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_stream_that_seeks_goes_on_as_if_never_interrupted(tmp_path: Path, buffer_rows: int, shuffle: bool) -> None:
    files = write_files(tmp_path, [55, 45], 10)

    def stream() -> ParquetStream:
        return ParquetStream(files, ["row"], 9, seed=5, shuffle=shuffle, buffer_rows=buffer_rows, num_epochs=3)

    whole = stream()
    positions = [whole.position()]
    batches = []
    for batch in whole:
        batches.append(batch)
        positions.append(whole.position())
    for done, position in enumerate(positions):
        resumed = stream()
        resumed.seek(StreamPosition(**position.to_json()))
        assert resumed.position() == position
        assert rows_of(list(resumed)) == rows_of(batches[done:])


def test_a_seek_reads_one_buffer_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    files = write_files(tmp_path, [100], 10)
    stream = ParquetStream(files, ["row"], 5, seed=5, shuffle=True, buffer_rows=20, num_epochs=1)
    monkeypatch.setattr(
        "rookery.data.stream.read_rows",
        lambda slices, types, into: (
            read.append(sum(piece.num_rows for piece in slices)),
            row_groups.read_rows(slices, types, into),
        )[1],
    )
    stream.seek(StreamPosition(0, 18, 5, 100, 5))
    assert len(list(stream)) == 2
    assert read == [20]


def test_data_that_fit_one_buffer_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    read_rows = row_groups.read_rows
    monkeypatch.setattr(
        "rookery.data.stream.read_rows",
        lambda slices, types, into: (decoded.append(1), read_rows(slices, types, into))[1],
    )
    list(ParquetStream(write_files(tmp_path, [50, 50], 10), ["row"], 8, seed=5, shuffle=True, num_epochs=5))
    assert len(decoded) == 1


def test_at_most_two_buffers_are_held(tmp_path: Path) -> None:
    stream = ParquetStream(write_files(tmp_path, [200], 10), ["row"], 7, seed=5, shuffle=True, buffer_rows=40)
    (lane,) = stream._lanes.values()
    for _ in itertools.islice(stream, 100):
        assert len(lane._loading) <= 2


@pytest.mark.parametrize("shuffle", [True, False])
def test_memory_of_buffers_is_used_again_for_none_that_is_needed(tmp_path: Path, shuffle: bool) -> None:
    files = write_files(tmp_path, [70, 30], 10)

    def stream() -> ParquetStream:
        return ParquetStream(files, ["row"], 7, seed=5, shuffle=shuffle, buffer_rows=20)

    whole = stream()
    batches = [(whole.position(), next(whole)["row"].clone()) for _ in range(40)]
    wandering, rng = stream(), random.Random(0)
    for start in [8, 4, 0, *(rng.randrange(37) for _ in range(100))]:
        wandering.seek(batches[start][0])
        for _, expected in batches[start : start + rng.randrange(1, 4)]:
            assert torch.equal(next(wandering)["row"], expected)


def test_a_shuffled_stream_takes_memory_for_few_buffers(tmp_path: Path) -> None:
    stream = ParquetStream(write_files(tmp_path, [200], 10), ["row"], 10, seed=5, shuffle=True, buffer_rows=40)
    (lane,) = stream._lanes.values()
    places = set()
    for _ in itertools.islice(stream, 100):
        assert lane._buffer is not None
        places.add(lane._buffer.room["row"].data_ptr())
    assert len(places) <= 4  # of 25


@pytest.mark.parametrize(("offset", "limit"), [(0, 10), (7, 30), (95, None), (13, 1), (50, 1000), (0, None)])
def test_offset_and_limit_select_rows_in_file_order(tmp_path: Path, offset: int, limit: int | None) -> None:
    files = write_files(tmp_path, [60, 40], 16)
    expected = list(range(100))[offset:][:limit]
    for shuffle in (False, True):
        stream = ParquetStream(
            files, ["row"], 6, seed=1, shuffle=shuffle, offset=offset, limit=limit, buffer_rows=20, num_epochs=1
        )
        assert stream.num_rows == len(expected)
        assert sorted(rows_of(list(stream))) == expected


def test_all_number_types_keep_type_and_values(tmp_path: Path) -> None:
    types = [pa.int8(), pa.uint8(), pa.int16(), pa.int32(), pa.int64(), pa.float16(), pa.float32(), pa.float64()]
    table = pa.table({str(kind): pa.array(np.array([1, 0, 3], kind.to_pandas_dtype()), kind) for kind in types})
    pq.write_table(table, tmp_path / "a.parquet")
    batch = next(ParquetStream([tmp_path / "a.parquet"], table.column_names, 3, seed=0, shuffle=False))
    for kind in types:
        expected = torch.from_numpy(np.array([1, 0, 3], kind.to_pandas_dtype()))
        torch.testing.assert_close(batch[str(kind)], expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changed", "now"), [("batch_size", 10), ("num_rows", 40), ("seed", 5)], ids=["batch_size", "num_rows", "seed"]
)
def test_a_position_of_another_order_is_refused(tmp_path: Path, changed: str, now: int) -> None:
    stream = ParquetStream(write_files(tmp_path, [40], 10), ["row"], 10, seed=5, shuffle=True)
    then = stream.position().to_json() | {changed: 99}
    with pytest.raises(DataError, match=rf"{changed}=99, the stream now has {changed}={now}.*restore {changed}=99"):
        stream.seek(StreamPosition(**then))


class TestBadFiles:
    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"gone\.parquet: no such file"):
            ParquetStream([tmp_path / "gone.parquet"], ["row"], 4, seed=0, shuffle=False)

    def test_no_parquet(self, tmp_path: Path) -> None:
        (tmp_path / "text.parquet").write_text("lhs,rhs\n1,2\n")
        with pytest.raises(DataError, match=r"text\.parquet: not a readable Parquet file"):
            ParquetStream([tmp_path / "text.parquet"], ["row"], 4, seed=0, shuffle=False)

    def test_a_column_is_absent(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"part-0\.parquet: no column 'lhs'; the file has row, square, pair"):
            ParquetStream(write_files(tmp_path, [4], 4), ["lhs"], 4, seed=0, shuffle=False)

    @pytest.mark.parametrize("values", [["a"], [[1, 2]], [None]], ids=["string", "ragged list", "null type"])
    def test_a_column_without_a_tensor_type(self, tmp_path: Path, values: list[object]) -> None:
        pq.write_table(pa.table({"lhs": values}), tmp_path / "a.parquet")
        with pytest.raises(DataError, match=r"a\.parquet: column 'lhs' is .*; write it as an integer"):
            ParquetStream([tmp_path / "a.parquet"], ["lhs"], 4, seed=0, shuffle=False)

    def test_files_of_two_schemas(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"lhs": pa.array([1], pa.int64())}), tmp_path / "a.parquet")
        pq.write_table(pa.table({"lhs": pa.array([1], pa.int32())}), tmp_path / "b.parquet")
        with pytest.raises(DataError, match=r"b\.parquet: column 'lhs' is int32, but int64 in .*a\.parquet"):
            ParquetStream([tmp_path / "a.parquet", tmp_path / "b.parquet"], ["lhs"], 4, seed=0, shuffle=False)

    def test_nothing_to_read(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no rows to read in no files"):
            ParquetStream([], ["row"], 4, seed=0, shuffle=False)
        with pytest.raises(DataError, match=r"no rows to read in 1 files, first .*part-0\.parquet with offset=9"):
            ParquetStream(write_files(tmp_path, [9], 4), ["row"], 4, seed=0, shuffle=False, offset=9)

    def test_a_null_is_named_by_row_group_and_row(self, tmp_path: Path) -> None:
        values = [None if row == 23 else row for row in range(30)]
        pq.write_table(pa.table({"lhs": pa.array(values, pa.int64())}), tmp_path / "a.parquet", row_group_size=10)
        stream = ParquetStream([tmp_path / "a.parquet"], ["lhs"], 4, seed=0, shuffle=True)
        with pytest.raises(DataError, match=r"a\.parquet: row group 2, row 3, column 'lhs' is null"):
            next(stream)

    @pytest.mark.parametrize("pair", [[0.0, None], None], ids=["in the list", "the list"])
    def test_a_null_of_a_list_column(self, tmp_path: Path, pair: list[float | None] | None) -> None:
        values = [pair if row == 7 else [1.0, 2.0] for row in range(10)]
        table = pa.table({"vector": pa.array(values, pa.list_(pa.float32(), 2))})
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=5)
        stream = ParquetStream([tmp_path / "a.parquet"], ["vector"], 4, seed=0, shuffle=False, offset=1)
        with pytest.raises(DataError, match=r"row group 1, row 2, column 'vector' is null"):
            next(stream)

    def test_a_damaged_row_group_is_named(self, tmp_path: Path) -> None:
        generator = np.random.default_rng(0)
        table = pa.table({"lhs": np.arange(3000), "rhs": generator.integers(0, 2**60, 3000)})
        file = tmp_path / "a.parquet"
        pq.write_table(table, file, row_group_size=1000, compression="snappy")
        column = pq.read_metadata(file).row_group(1).column(1)
        damaged = bytearray(file.read_bytes())
        start = column.dictionary_page_offset or column.data_page_offset
        damaged[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
        file.write_bytes(damaged)
        stream = ParquetStream([file], ["lhs", "rhs"], 4, seed=0, shuffle=False)
        with pytest.raises(
            DataError, match=r"a\.parquet: row group 1, column 'rhs' cannot be decoded .*write the file"
        ):
            next(stream)
