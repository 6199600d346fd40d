"""Each kind of column, written to Parquet and read again, against a loop over Python values."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from naive_columns import MISSING, NAN, hashed, last_ids, number, vector
from torch import Tensor

from rookery.data.columns import ColumnRequest
from rookery.data.row_groups import list_row_groups, read_rows
from rookery.errors import DataError

FAST = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(folder: Path, column: pa.Array, kind: str, row_group_size: int = 1000, **request: Any) -> Tensor:
    file = folder / "a.parquet"
    pq.write_table(pa.table({"x": column}), file, row_group_size=row_group_size)
    slices, types = list_row_groups([file], [ColumnRequest("x", kind, **request)])
    values = read_rows(slices, types)["x"]
    assert (values.dtype, values.shape[1:]) == (
        types["x"].dtype,
        () if types["x"].width is None else (types["x"].width,),
    )
    return values


def assert_same(values: Tensor, expected: Sequence[Any], dtype: torch.dtype) -> None:
    wanted = torch.tensor(expected, dtype=dtype)
    assert values.dtype == dtype
    torch.testing.assert_close(values, wanted.reshape(values.shape), rtol=0, atol=0, equal_nan=True)


INTEGERS = [pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()]


class TestNumbers:
    @pytest.mark.parametrize("kind", [*INTEGERS, pa.float16(), pa.float32(), pa.float64()], ids=str)
    def test_integers_and_floats(self, tmp_path: Path, kind: pa.DataType) -> None:
        values = [1, None, 0, 100, None, 7]
        assert_same(read(tmp_path, pa.array(values, kind), "number", 2), list(map(number, values)), torch.float32)

    def test_booleans_and_decimals(self, tmp_path: Path) -> None:
        assert_same(read(tmp_path, pa.array([True, None, False]), "number"), [1.0, NAN, 0.0], torch.float32)
        for kind in (pa.decimal128(12, 3), pa.decimal256(50, 3)):
            values = [Decimal("1.125"), None, Decimal("-3000.001")]
            assert_same(read(tmp_path, pa.array(values, kind), "number"), list(map(number, values)), torch.float32)

    def test_dictionaries(self, tmp_path: Path) -> None:
        column = pa.array([5, None, 5, 2]).dictionary_encode()
        assert_same(read(tmp_path, column, "number"), [5.0, NAN, 5.0, 2.0], torch.float32)

    def test_what_float32_cannot_hold_is_rounded_or_infinite(self, tmp_path: Path) -> None:
        assert_same(read(tmp_path, pa.array([2**24 + 1, -(2**62)]), "number"), [2.0**24, -(2.0**62)], torch.float32)
        values = [1e300, -1e300, NAN, float("inf")]
        assert_same(read(tmp_path, pa.array(values), "number"), [np.inf, -np.inf, NAN, np.inf], torch.float32)

    def test_a_null_where_none_is_taken(self, tmp_path: Path) -> None:
        column = pa.array([1, 2, 3, None])
        with pytest.raises(DataError, match=r"a\.parquet: row group 1, row 1, column 'x' is null; leave the row out"):
            read(tmp_path, column, "number", 2, nullable=False)


class TestLabels:
    @pytest.mark.parametrize("kind", [pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.float64()], ids=str)
    def test_are_float32(self, tmp_path: Path, kind: pa.DataType) -> None:
        assert_same(read(tmp_path, pa.array([1, 0, 1], pa.int8()).cast(kind), "label"), [1.0, 0.0, 1.0], torch.float32)

    def test_take_no_null(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"row group 1, row 0, column 'x' is null; leave the row out or give it a"):
            read(tmp_path, pa.array([True, False, None]), "label", 2)


class TestVectors:
    @given(
        rows=st.lists(st.none() | st.lists(st.none() | st.floats(width=32, allow_nan=False), min_size=3, max_size=3)),
        row_group_size=st.integers(1, 4),
        kind=st.sampled_from([pa.list_(pa.float32(), 3), pa.list_(pa.float64()), pa.large_list(pa.float32())]),
    )
    @FAST
    def test_of_lists(
        self, tmp_path: Path, rows: list[list[float | None] | None], row_group_size: int, kind: pa.DataType
    ) -> None:
        values = read(tmp_path, pa.array(rows, kind), "vector", row_group_size, width=3)
        assert_same(values, [vector(row, 3) for row in rows], torch.float32)

    @pytest.mark.parametrize("kind", [*INTEGERS, pa.decimal128(5, 1)], ids=str)
    def test_of_other_numbers(self, tmp_path: Path, kind: pa.DataType) -> None:
        rows = [[1, 2], [3, 0]] if kind == pa.uint8() else [[1, 2], None, [None, 0]]
        expected = [vector(row, 2) for row in rows]
        values = read(tmp_path, pa.array(rows, pa.list_(kind)), "vector", width=2)
        assert_same(values, expected, torch.uint8 if kind == pa.uint8() else torch.float32)

    def test_of_half_floats_and_bytes_stay_narrow(self, tmp_path: Path) -> None:
        halves = [[np.float16(1.5), None], None, [np.float16(2), np.float16(-0.5)]]
        values = read(tmp_path, pa.array(halves, pa.list_(pa.float16(), 2)), "vector")
        assert_same(values, [[1.5, NAN], [NAN, NAN], [2.0, -0.5]], torch.float16)
        flags = pa.array([[True, False], [False, False]], pa.list_(pa.bool_(), 2))
        assert_same(read(tmp_path, flags, "vector"), [[1, 0], [0, 0]], torch.uint8)

    @pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
    def test_of_packed_bytes(self, tmp_path: Path, dtype: type[np.generic]) -> None:
        values = np.arange(12).reshape(4, 3).astype(np.dtype(dtype).newbyteorder("<"))
        column = pa.array([row.tobytes() for row in values], pa.binary(3 * values.itemsize))
        read_values = read(tmp_path, column, "vector", 3, width=3)
        assert_same(read_values, values.tolist(), torch.from_numpy(np.empty(0, dtype)).dtype)

    def test_of_packed_bytes_may_be_null(self, tmp_path: Path) -> None:
        column = pa.array([np.float32([1, 2]).tobytes(), None], pa.binary(8))
        assert_same(read(tmp_path, column, "vector", width=2), [[1.0, 2.0], [NAN, NAN]], torch.float32)

    def test_take_the_width_of_fixed_size_lists(self, tmp_path: Path) -> None:
        assert read(tmp_path, pa.array([[1.0] * 5], pa.list_(pa.float32(), 5)), "vector").shape == (1, 5)

    def test_of_another_length_are_named(self, tmp_path: Path) -> None:
        rows = [[1.0, 2.0], [1.0, 2.0], None, [1.0, 2.0, 3.0], [1.0]]
        message = r"a\.parquet: row group 1, row 1, column 'x' has 3 values, 2 expected; write lists of 2 or correct"
        with pytest.raises(DataError, match=message):
            read(tmp_path, pa.array(rows), "vector", 2, width=2)

    @pytest.mark.parametrize("row", [None, [1, None]], ids=["the vector", "a value of it"])
    def test_nulls_that_uint8_cannot_tell(self, tmp_path: Path, row: list[int | None] | None) -> None:
        column = pa.array([[1, 2], [3, 4], row], pa.list_(pa.uint8(), 2))
        with pytest.raises(DataError, match=r"row group 1, row 0, column 'x' is null"):
            read(tmp_path, column, "vector", 2)

    def test_nulls_behind_nulls_are_named_by_their_row(self, tmp_path: Path) -> None:
        column = pa.array([None, [1.0], None, [2.0, 1.0]], pa.list_(pa.float32()))
        with pytest.raises(DataError, match=r"row group 0, row 1, column 'x' has 1 values, 2 expected"):
            read(tmp_path, column, "vector", width=2)
        with pytest.raises(DataError, match=r"row group 0, row 1, column 'x' is null"):
            read(tmp_path, pa.array([[1.0], [None]], pa.list_(pa.float32(), 1)), "vector", nullable=False)


class TestIds:
    def test_are_encoded(self, tmp_path: Path) -> None:
        assert_same(read(tmp_path, pa.array([5, None, -1]), "id", 2), [5, MISSING, -1], torch.int64)
        texts = ["b", None, "a", "b"]
        for column in (pa.array(texts), pa.array(texts).dictionary_encode(), pa.array(texts, pa.large_string())):
            assert_same(read(tmp_path, column, "id", 3), list(map(hashed, texts)), torch.int64)

    def test_that_are_no_whole_numbers_are_named(self, tmp_path: Path) -> None:
        message = (
            r"row group 1, row 0, column 'x' is 0\.5, no whole number of 64 bits; write ids as integers or strings"
        )
        with pytest.raises(DataError, match=message):
            read(tmp_path, pa.array([1.0, None, 0.5]), "id", 2)

    def test_take_no_null_where_it_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"row group 0, row 1, column 'x' is null"):
            read(tmp_path, pa.array(["a", None]), "id", nullable=False)


IDS = st.none() | st.integers(-5, 5)
TEXTS = st.none() | st.sampled_from(["", "a", "bc", "a very long one"])


class TestListsOfIds:
    @given(
        rows=st.lists(st.none() | st.lists(IDS, max_size=6), max_size=12)
        | st.lists(st.none() | st.lists(TEXTS, max_size=6), max_size=12),
        max_length=st.integers(1, 5),
        row_group_size=st.integers(1, 5),
        large=st.booleans(),
    )
    @FAST
    def test_keep_the_last(
        self, tmp_path: Path, rows: list[list[Any] | None], max_length: int, row_group_size: int, large: bool
    ) -> None:
        text = any(isinstance(value, str) for row in rows for value in row or ())
        values = pa.string() if text else pa.int64()
        column = pa.array(rows, pa.large_list(values) if large else pa.list_(values))
        read_values = read(tmp_path, column, "id_list", row_group_size, max_length=max_length)
        assert_same(read_values, [last_ids(row, max_length) for row in rows], torch.int64)

    def test_of_fixed_size(self, tmp_path: Path) -> None:
        rows = [[1, 2, 3], None, [4, None, 5]]
        values = read(tmp_path, pa.array(rows, pa.list_(pa.int32(), 3)), "id_list", max_length=2)
        assert_same(values, [last_ids(row, 2) for row in rows], torch.int64)

    def test_without_any(self, tmp_path: Path) -> None:
        values = read(tmp_path, pa.array([[], None], pa.list_(pa.string())), "id_list", max_length=2)
        assert_same(values, [[MISSING] * 2] * 2, torch.int64)

    def test_that_hold_no_id_are_named(self, tmp_path: Path) -> None:
        column = pa.array([[1.0], [], None, [2.0, 2.5]])
        message = r"row group 0, row 3, column 'x' has an id that is 2\.5, no whole number of 64 bits; write ids as"
        with pytest.raises(DataError, match=message):
            read(tmp_path, column, "id_list", max_length=2)

    def test_take_no_null_where_it_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"row group 0, row 2, column 'x' has a null; leave it out of the list"):
            read(tmp_path, pa.array([[1], [], [2, None]]), "id_list", max_length=2, nullable=False)
        with pytest.raises(DataError, match=r"row group 0, row 1, column 'x' is null"):
            read(tmp_path, pa.array([[1], None]), "id_list", max_length=2, nullable=False)


UNFIT = [
    ("number", {}, pa.array(["1"]), r"is string; a number is an integer, a float, a decimal or a boolean"),
    ("number", {}, pa.array([[1.0]]), r"is list<element: double>; a number is"),
    ("label", {}, pa.array([0], pa.timestamp("s")), r"is timestamp\[ms\]; a label is an integer, a float"),
    ("vector", {}, pa.array([1.0]), r"is double; a vector is a list of numbers; write it as a fixed-size list"),
    ("vector", {"width": 1}, pa.array([["a"]]), r"a vector is a list of numbers"),
    ("vector", {}, pa.array([[1.0]]), r"its lists may differ in length; say which width they have"),
    (
        "vector",
        {"width": 3},
        pa.array([[1.0]], pa.list_(pa.float64(), 1)),
        r"the width asked for is 3; correct the one",
    ),
    (
        "vector",
        {},
        pa.array([b"abcd"], pa.binary(4)),
        r"its bytes do not tell the width of the vector; say which width",
    ),
    (
        "vector",
        {"width": 3},
        pa.array([b"abcd"], pa.binary(4)),
        r"3 values take 12 bytes as float32, 6 as float16 and 3 as",
    ),
    ("vector", {"width": 2}, pa.array([b"a" * 16], pa.binary(16)), r"2 values take 8 bytes as float32"),
    ("id", {}, pa.array([[1]]), r"an id is an integer, a string, bytes, a boolean, a date or a time"),
    ("id_list", {"max_length": 2}, pa.array([1]), r"a list of ids is a list of integers or strings"),
    ("id_list", {"max_length": 2}, pa.array([[[1]]]), r"a list of ids is a list of integers or strings"),
]


@pytest.mark.parametrize(("kind", "request_", "column", "message"), UNFIT)
def test_a_column_of_an_unfit_type_is_named(
    tmp_path: Path, kind: str, request_: dict[str, Any], column: pa.Array, message: str
) -> None:
    with pytest.raises(DataError, match=r"a\.parquet: column 'x' is .*" + message.removeprefix("is ")):
        read(tmp_path, column, kind, **request_)


def test_types_that_become_one_may_differ_by_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": pa.array([1], pa.int8())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": pa.array([2.5])}), tmp_path / "b.parquet")
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    assert_same(read_rows(*list_row_groups(files, [ColumnRequest("x", "number")]))["x"], [1.0, 2.5], torch.float32)
    with pytest.raises(DataError, match=r"b\.parquet: column 'x' is float64, but int8 in .*a\.parquet"):
        list_row_groups(files, ["x"])


def test_a_column_asked_for_in_two_ways_is_in_the_batch_twice(tmp_path: Path) -> None:
    pq.write_table(pa.table({"hour": pa.array([5, None], pa.int64())}), tmp_path / "a.parquet")
    requests = [ColumnRequest("hour", "number"), ColumnRequest("hour", "id", key="hour_id")]
    values = read_rows(*list_row_groups([tmp_path / "a.parquet"], requests))
    assert_same(values["hour"], [5.0, NAN], torch.float32)
    assert_same(values["hour_id"], [5, MISSING], torch.int64)
