from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from rookery.data import locate
from rookery.data.columns import ColumnRequest
from rookery.data.locate import locate_row
from rookery.data.row_filter import RowFilter
from rookery.data.stream import ParquetStream


def no_label(values: Tensor) -> Tensor:
    return (values != 0) & (values != 1)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two files of 40 rows in row groups of 10; labels of 0 and 1, but for rows 26 and 31 of the second."""
    label = np.tile([0, 1], 40)
    label[[66, 71]] = 3, 2
    files = []
    for number in range(2):
        rows = slice(40 * number, 40 * number + 40)
        vector = np.stack([label[rows], -label[rows]], 1).ravel().astype(np.float32)
        table = {"label": label[rows], "day": np.arange(40) % 4, "pair": pa.FixedSizeListArray.from_arrays(vector, 2)}
        files.append(tmp_path / f"{number}.parquet")
        pq.write_table(pa.table(table), files[-1], row_group_size=10)
    return files


def open_stream(files: list[Path], where: RowFilter | None = None, offset: int = 0) -> ParquetStream:
    requests = [ColumnRequest("label", "label"), ColumnRequest("pair", "vector"), "day"]
    return ParquetStream(files, requests, 8, seed=0, shuffle=True, where=where, offset=offset)


def test_the_first_row_in_file_order_is_named(files: list[Path]) -> None:
    stream = open_stream(files)
    assert any(no_label(next(stream)["label"]).any() for _ in range(stream.batches_per_epoch))
    found = locate_row(stream.slices, stream.types["label"], no_label)
    assert found is not None
    assert (found.file, found.row_group, found.row, found.value) == (files[1], 2, 6, 3.0)
    assert str(found) == f"{files[1]}: row group 2, row 6, column 'label'"


def test_of_a_vector_the_value_is_named(files: list[Path]) -> None:
    stream = open_stream(files)
    found = locate_row(stream.slices, stream.types["pair"], lambda values: values < -2)
    assert found is not None
    assert (found.row_group, found.row, found.value) == (2, 6, -3.0)


@pytest.mark.parametrize(
    ("where", "offset", "place"),
    [(RowFilter("day", 3), 0, (3, 1)), (None, 67, (3, 1)), (RowFilter("day", 2), 0, (2, 6))],
)
def test_rows_that_are_not_read_are_not_found(
    files: list[Path], where: RowFilter | None, offset: int, place: tuple[int, int]
) -> None:
    stream = open_stream(files, where, offset)
    found = locate_row(stream.slices, stream.types["label"], no_label)
    assert found is not None
    assert (found.row_group, found.row) == place


def test_nothing_is_found_where_nothing_is(files: list[Path]) -> None:
    stream = open_stream(files)
    assert locate_row(stream.slices, stream.types["label"], torch.isnan) is None


def test_one_column_is_read_as_far_as_the_row(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[int, list[str]]] = []
    read_rows = locate.read_rows
    monkeypatch.setattr(
        locate,
        "read_rows",
        lambda pieces, types: (
            reads.extend((piece.row_group, list(types)) for piece in pieces),
            read_rows(pieces, types),
        )[1],
    )
    stream = open_stream(files[1:])
    locate_row(stream.slices, stream.types["label"], no_label)
    assert reads == [(0, ["label"]), (1, ["label"]), (2, ["label"])]
