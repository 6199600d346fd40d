from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rookery.data.columns import ColumnRequest
from rookery.data.impressions import pack_vectors, write_impressions
from rookery.data.row_groups import list_row_groups, read_rows
from rookery.errors import DataError

GENERATOR = np.random.default_rng(0)
WIDE = GENERATOR.standard_normal((3000, 700), np.float32)
HALF = GENERATOR.standard_normal((3000, 4)).astype(np.float16)
FLAGS = GENERATOR.integers(0, 2, (3000, 9), np.uint8)


def lists(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])


def table() -> pa.Table:
    columns = {"wide": lists(WIDE), "half": lists(HALF), "flags": lists(FLAGS)}
    history = pa.array([[row % 7, row % 5] for row in range(3000)])
    return pa.table({**columns, "history": history, "text": [f"user {row % 10}" for row in range(3000)]})


REQUESTS = [
    ColumnRequest("wide", "vector", width=700),
    ColumnRequest("half", "vector", width=4),
    ColumnRequest("flags", "vector", width=9),
    ColumnRequest("history", "id_list", max_length=2),
    ColumnRequest("text", "id"),
]


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_written_is_read(tmp_path: Path, packed: bool) -> None:
    plain, fast = tmp_path / "plain.parquet", tmp_path / "fast.parquet"
    # Two chunks, the second one a slice: the values of neither start where the table does.
    written = pa.concat_tables([table()[:1000], table()[1000:]])
    pq.write_table(written, plain)
    write_impressions(pack_vectors(written) if packed else written, fast)
    values = read_rows(*list_row_groups([fast], REQUESTS))
    for name, expected in (("wide", WIDE), ("half", HALF), ("flags", FLAGS)):
        assert values[name].dtype == torch.from_numpy(expected).dtype
        np.testing.assert_array_equal(values[name].numpy(), expected)
    expected = read_rows(*list_row_groups([plain], REQUESTS))
    for name in ("history", "text"):
        torch.testing.assert_close(values[name], expected[name], rtol=0, atol=0)


def test_vectors_lie_plain_in_row_groups_of_16_mb(tmp_path: Path) -> None:
    write_impressions(table().append_column("again", lists(np.tile(WIDE, (1, 4)))), tmp_path / "a.parquet")
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    sizes = [metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)]
    assert len(sizes) == 3
    assert 15e6 < max(sizes) < 17e6
    leaves = {
        leaf.path_in_schema.split(".")[0]: leaf
        for leaf in (metadata.row_group(0).column(index) for index in range(metadata.num_columns))
    }
    assert {name for name, leaf in leaves.items() if leaf.compression == "UNCOMPRESSED"} == {
        "wide",
        "half",
        "flags",
        "again",
    }
    assert not metadata.schema.to_arrow_schema().field("wide").type.value_field.nullable
    assert leaves["text"].has_dictionary_page
    assert not leaves["wide"].has_dictionary_page


def test_lists_with_a_null_stay_as_they_are(tmp_path: Path) -> None:
    rows = [[1.0, None], None, [2.0, 3.0]]
    column = pa.array(rows, pa.list_(pa.float32(), 2))
    write_impressions(pa.table({"vector": column}), tmp_path / "a.parquet")
    assert pq.read_table(tmp_path / "a.parquet").column("vector").to_pylist() == rows
    with pytest.raises(DataError, match="column 'vector' holds a null; give it a value, or leave the vectors as lists"):
        pack_vectors(pa.table({"vector": column}))


def test_an_empty_table_is_a_file_without_rows(tmp_path: Path) -> None:
    write_impressions(pack_vectors(table()[:0]), tmp_path / "a.parquet")
    assert pq.read_metadata(tmp_path / "a.parquet").num_rows == 0
