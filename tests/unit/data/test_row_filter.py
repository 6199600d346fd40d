from __future__ import annotations

import itertools
import math
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rookery.data import row_filter
from rookery.data.columns import ColumnRequest
from rookery.data.row_filter import RowFilter, filter_rows
from rookery.data.row_groups import RowGroupSlice, list_row_groups
from rookery.data.stream import ParquetStream, StreamPosition
from rookery.errors import DataError

FAST = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def write(folder: Path, by: pa.Array, row_group_size: int, name: str = "a.parquet") -> Path:
    """A file whose column ``row`` counts, beside the column ``by``."""
    file = folder / name
    pq.write_table(pa.table({"row": np.arange(len(by)), "by": by}), file, row_group_size=row_group_size)
    return file


def selected(file: Path, where: RowFilter, **options: Any) -> list[int]:
    stream = ParquetStream([file], ["row"], 4, seed=1, shuffle=False, where=where, num_epochs=1, **options)
    batches = list(stream)
    rows = list(itertools.chain(*(batch["row"].tolist() for batch in batches)))
    assert (len(batches), len(rows)) == (stream.batches_per_epoch, stream.num_rows)
    return rows


def inside(value: Any, at_least: Any, below: Any) -> bool:
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return False
    return (at_least is None or value >= at_least) and (below is None or value < below)


NUMBERS = {
    "int8": (st.integers(-5, 5), pa.int8()),
    "uint64": (st.integers(2**63 - 3, 2**63 + 3), pa.uint64()),
    "int64": (st.integers(2**60 - 3, 2**60 + 3), pa.int64()),
    "float64": (st.sampled_from([-1.0, 0.0, 0.5, 2.0, math.inf, math.nan]), pa.float64()),
    "float32": (st.sampled_from([-1.0, 0.0, 0.5, 2.0, math.nan]), pa.float32()),
    "float16": (st.sampled_from([-1.0, 0.0, 0.5, 2.0]), pa.float16()),
    "bool": (st.booleans(), pa.bool_()),
}


@pytest.mark.parametrize("kind", NUMBERS)
@given(data=st.data(), row_group_size=st.integers(1, 6), in_order=st.booleans())
@FAST
def test_numbers(tmp_path: Path, kind: str, data: st.DataObject, row_group_size: int, in_order: bool) -> None:
    value, arrow_type = NUMBERS[kind]
    values = data.draw(st.lists(st.none() | value, min_size=1, max_size=20))
    if in_order:
        values = sorted(values, key=lambda each: math.inf if each is None or each != each else each)  # noqa: PLR0124
    bound = st.none() | value.filter(lambda each: each == each)  # noqa: PLR0124
    at_least, below = data.draw(bound), data.draw(bound)
    if at_least is None and below is None:
        at_least = data.draw(value.filter(lambda each: each == each))  # noqa: PLR0124
    file = write(tmp_path, pa.array(values, arrow_type), row_group_size)
    expected = [row for row, each in enumerate(values) if inside(each, at_least, below)]
    where = RowFilter("by", at_least, below)
    if expected:
        assert selected(file, where) == expected
    else:
        with pytest.raises(DataError, match="no rows to read"):
            selected(file, where)


@pytest.mark.parametrize(
    ("at_least", "below", "expected"), [(1.5, None, [2, 3]), (None, 1.5, [0, 1]), (-1e30, 1e30, [0, 1, 2, 3])]
)
def test_bounds_between_integers(
    tmp_path: Path, at_least: float | None, below: float | None, expected: list[int]
) -> None:
    file = write(tmp_path, pa.array([0, 1, 2, 3]), 4)
    assert selected(file, RowFilter("by", at_least, below)) == expected


TIMES = [
    pa.date32(),
    pa.date64(),
    *(pa.timestamp(unit, zone) for unit in ("s", "ms", "us", "ns") for zone in (None, "America/New_York")),
]


@pytest.mark.parametrize("kind", TIMES, ids=str)
@given(days=st.lists(st.none() | st.integers(-3, 3), min_size=1, max_size=12), row_group_size=st.integers(1, 5))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_dates_and_times(tmp_path: Path, kind: pa.DataType, days: list[int | None], row_group_size: int) -> None:
    seconds = [None if day is None else day * 86_400 for day in days]
    by = pa.array(seconds, pa.timestamp("s")).cast(pa.timestamp(kind.unit) if pa.types.is_timestamp(kind) else kind)
    by = by.cast(pa.int64()).cast(kind) if pa.types.is_timestamp(kind) else by
    file = write(tmp_path, by, row_group_size)
    for low, high in (
        ("1969-12-31", "1970-01-02"),
        ("1970-01-01T00:00:00Z", None),
        (None, "1970-01-01 03:00:00+03:00"),
    ):
        expected = [
            row
            for row, day in enumerate(days)
            if inside(day, *({"1969-12-31": -1, "1970-01-02": 1, None: None}.get(bound, 0) for bound in (low, high)))
        ]
        if expected:
            assert selected(file, RowFilter("by", low, high)) == expected
        else:
            with pytest.raises(DataError, match="no rows to read"):
                selected(file, RowFilter("by", low, high))


def test_nanoseconds_below_a_microsecond_lie_on_the_right_side(tmp_path: Path) -> None:
    file = write(tmp_path, pa.array([-1, 0, 999, 1000], pa.timestamp("ns")), 4)
    assert selected(file, RowFilter("by", below="1970-01-01")) == [0]
    assert selected(file, RowFilter("by", at_least="1970-01-01", below="1970-01-01T00:00:00.000001")) == [1, 2]


@pytest.mark.parametrize("bound", [date(1970, 1, 2), datetime(1970, 1, 2, tzinfo=timezone.utc), "1970-01-02"])
def test_bounds_may_be_dates(tmp_path: Path, bound: date | str) -> None:
    by = pa.array([EPOCH + timedelta(hours=6 * step) for step in range(8)], pa.timestamp("us", "UTC"))
    assert selected(write(tmp_path, by, 3), RowFilter("by", at_least=bound)) == [4, 5, 6, 7]


class TestWhatIsRead:
    @pytest.fixture
    def reads(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Row groups that a filter reads."""
        reads: list[int] = []
        read_column = row_filter.read_column

        def counted(piece: RowGroupSlice, column: str) -> pa.ChunkedArray:
            assert column == "by"
            reads.append(piece.row_group)
            return read_column(piece, column)

        monkeypatch.setattr(row_filter, "read_column", counted)
        return reads

    def test_row_groups_that_their_statistics_decide_are_not(self, tmp_path: Path, reads: list[int]) -> None:
        file = write(tmp_path, pa.array(range(100)), 10)
        assert selected(file, RowFilter("by", 25, 70)) == list(range(25, 70))
        assert reads == [2]

    def test_nor_those_of_dates(self, tmp_path: Path, reads: list[int]) -> None:
        by = pa.array([EPOCH + timedelta(days=day) for day in range(40)], pa.timestamp("ns", "UTC"))
        assert selected(write(tmp_path, by, 10), RowFilter("by", "1970-01-11", "1970-01-26")) == list(range(10, 25))
        assert reads == [2]

    def test_nulls_nan_and_files_without_statistics_make_them_read(self, tmp_path: Path, reads: list[int]) -> None:
        assert selected(write(tmp_path, pa.array([1, 2, None, 3]), 2), RowFilter("by", 0, 9)) == [0, 1, 3]
        assert reads == [1]
        assert selected(write(tmp_path, pa.array([1.0, 2.0, math.nan, 3.0]), 2), RowFilter("by", 0, 9)) == [0, 1, 3]
        assert reads == [1, 0, 1]
        file = tmp_path / "b.parquet"
        pq.write_table(pa.table({"row": [0, 1], "by": [5, 6]}), file, write_statistics=False)
        assert selected(file, RowFilter("by", 6)) == [1]
        assert reads == [1, 0, 1, 0]

    def test_a_selection_keeps_at_most_four_bytes_a_row(self, tmp_path: Path) -> None:
        by = pa.array([*range(10), *([0, 1] * 5), *([7] * 10)])
        slices, _ = list_row_groups([write(tmp_path, by, 10)], ["row"])
        run, scattered, whole = filter_rows(slices, RowFilter("by", 1, 8))
        assert (run.start, run.stop, run.rows) == (1, 8, None)
        assert (scattered.num_rows, scattered.rows.nbytes) == (5, 20)
        assert (whole.start, whole.stop, whole.rows) == (0, 10, None)


@given(
    values=st.lists(st.none() | st.integers(0, 3), min_size=1, max_size=40).filter(lambda values: 1 in values),
    row_group_size=st.integers(1, 15),
    offset=st.integers(0, 10),
    limit=st.none() | st.integers(1, 20),
    batch_size=st.integers(1, 9),
    buffer_rows=st.integers(1, 30),
    shuffle=st.booleans(),
)
@FAST
def test_a_stream_of_selected_rows_goes_on_from_any_place(
    tmp_path: Path,
    values: list[int | None],
    row_group_size: int,
    offset: int,
    limit: int | None,
    batch_size: int,
    buffer_rows: int,
    shuffle: bool,
) -> None:
    file = write(tmp_path, pa.array(values, pa.int64()), row_group_size)
    expected = [row for row, value in enumerate(values) if value in {1, 2}][offset:][: limit or 100]

    def stream() -> ParquetStream:
        return ParquetStream(
            [file],
            ["row", ColumnRequest("by", "label")],  # no null is left
            batch_size,
            seed=3,
            shuffle=shuffle,
            buffer_rows=buffer_rows,
            offset=offset,
            limit=limit,
            where=RowFilter("by", 1, 3),
            num_epochs=2,
        )

    if not expected:
        with pytest.raises(DataError, match=rf"with offset={offset}, limit={limit}, by >= 1 and by < 3; correct the"):
            stream()
        return
    whole = stream()
    assert whole.num_rows == len(expected)
    batches, positions = [], [whole.position()]
    for batch in whole:
        batches.append(batch["row"].tolist())
        positions.append(whole.position())
    for epoch in (batches[: len(batches) // 2], batches[len(batches) // 2 :]):
        assert len(epoch) == whole.batches_per_epoch
        assert sorted(itertools.chain(*epoch)) == expected
    for done in (0, len(batches) // 2, len(batches) - 1):
        resumed = stream()
        resumed.seek(StreamPosition(**positions[done].to_json()))
        assert [batch["row"].tolist() for batch in resumed] == batches[done:]


def test_ranks_share_the_selected_rows(tmp_path: Path) -> None:
    file = write(tmp_path, pa.array([row % 3 for row in range(60)]), 10)
    streams = [
        ParquetStream(
            [file],
            ["row"],
            4,
            seed=1,
            shuffle=True,
            num_lanes=3,
            rank=rank,
            world_size=2,
            where=RowFilter("by", 2),
            num_epochs=1,
        )
        for rank in range(2)
    ]
    shares = [sorted(itertools.chain(*(batch["row"].tolist() for batch in stream))) for stream in streams]
    assert sorted(itertools.chain(*shares)) == list(range(2, 60, 3))
    assert len(shares[0]) > len(shares[1]) > 0


def test_a_bad_value_is_named_by_its_row_and_only_where_it_is_selected(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    label = [None if row in {3, 17} else 1 for row in range(20)]
    pq.write_table(pa.table({"day": [row % 2 for row in range(20)], "label": label}), file, row_group_size=10)
    request = [ColumnRequest("label", "label")]
    even = ParquetStream([file], request, 20, seed=0, shuffle=False, where=RowFilter("day", below=1))
    assert next(even)["label"].tolist() == [1.0] * 10
    odd = ParquetStream([file], request, 20, seed=0, shuffle=True, where=RowFilter("day", 1), offset=2)
    with pytest.raises(DataError, match=r"a\.parquet: row group 1, row 7, column 'label' is null"):
        next(odd)


class TestBadFilters:
    @pytest.mark.parametrize(
        ("by", "where", "message"),
        [
            (pa.array([1]), RowFilter("day", 1), r"no column 'day'; the file has row, by"),
            (pa.array(["1"]), RowFilter("by", 1), r"selected by by >= 1: the column is string; select by a column of"),
            (
                pa.array([[1]]),
                RowFilter("by", below=1),
                r"by < 1: the column is list.*; select by a column of integers",
            ),
            (
                pa.array([1]),
                RowFilter("by", "2022-05-04"),
                r"the column is int64; give a number in place of '2022-05-04'",
            ),
            (pa.array([1.0]), RowFilter("by", 1, "a"), r"by >= 1 and by < a: the column is double; give a number in"),
            (
                pa.array([1], pa.timestamp("us")),
                RowFilter("by", 1),
                r"give a date or time such as 2022-05-04 or .* of 1",
            ),
            (pa.array([1], pa.date32()), RowFilter("by", "May"), r"'May' is no ISO 8601; write 2022-05-04 or"),
        ],
    )
    def test_are_named(self, tmp_path: Path, by: pa.Array, where: RowFilter, message: str) -> None:
        with pytest.raises(DataError, match=r"a\.parquet: .*" + message):
            selected(write(tmp_path, by, 4), where)

    def test_that_leave_fewer_rows_than_lanes(self, tmp_path: Path) -> None:
        file = write(tmp_path, pa.array([0, 0, 1, 1]), 2)
        with pytest.raises(DataError, match=r"2 rows, fewer than the num_lanes=3 .* in 1 files, .* by >= 1; use fewer"):
            ParquetStream([file], ["row"], 3, seed=0, shuffle=False, num_lanes=3, where=RowFilter("by", 1))
