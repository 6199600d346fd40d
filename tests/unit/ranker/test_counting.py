from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from naive_columns import hashed
from naive_impressions import counted

from rookery.data.row_groups import list_row_groups, select_rows
from rookery.errors import DataError
from rookery.ranker import counting
from rookery.ranker.counting import count_vocabularies, inline_vocabulary
from rookery.ranker.features_config import FeaturesConfig, TableConfig


def features(columns: dict[str, int | None], **vocabulary: Any) -> FeaturesConfig:
    """One table ``t`` of discrete columns (None) and lists (their ``max_length``)."""
    return FeaturesConfig.model_validate(
        {
            "discrete": [{"name": name, "table": "t"} for name, length in columns.items() if length is None],
            "ragged": [{"name": name, "table": "t", "max_length": n} for name, n in columns.items() if n is not None],
            "tables": [{"name": "t", "embedding_dim": 2, "vocabulary": vocabulary}],
        }
    )


def values_of(file: Path, config: FeaturesConfig, offset: int = 0, limit: int | None = None) -> list[Any]:
    slices, _ = list_row_groups([file], [])
    return count_vocabularies(config, config.tables, select_rows(slices, offset, limit))["t"].table.to_pylist()


@pytest.mark.parametrize("merge_rows", [1, 10**6])
@pytest.mark.parametrize("text", [False, True])
def test_the_most_frequent_come_first_and_ties_go_by_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merge_rows: int, text: bool
) -> None:
    monkeypatch.setattr(counting, "_MERGE_ROWS", merge_rows)
    rng = np.random.default_rng(4)
    kind = pa.string() if text else pa.int64()

    def draw(count: int) -> list[Any]:
        numbers = (rng.random(count) ** 2 * 40).astype(int) - 10
        return [None if n == 3 else f"ü{n}" if text else int(n) for n in numbers]

    rows = [{"a": draw(1)[0], "b": None if i % 9 == 0 else draw(i % 5)} for i in range(200)]
    schema = pa.schema({"a": kind, "b": pa.list_(kind)})
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "log.parquet", row_group_size=23)
    config = features({"a": None, "b": 2}, min_count=2, max_size=15)
    found = values_of(tmp_path / "log.parquet", config, offset=10, limit=150)
    assert [row["value"] for row in found] == counted(rows[10:160], ["a", "b"], 2, 15)
    everything = [v for row in rows[10:160] for v in (row["a"], *(row["b"] or ()))]
    assert [row["count"] for row in found] == [everything.count(row["value"]) for row in found]


def test_ids_are_those_of_the_stream(tmp_path: Path) -> None:
    table = pa.table({"a": pa.array(["x", "y", "x", None]).dictionary_encode()})
    pq.write_table(table, tmp_path / "log.parquet")
    config = features({"a": None})
    slices, _ = list_row_groups([tmp_path / "log.parquet"], [])
    vocabulary = count_vocabularies(config, config.tables, slices)["t"]
    assert vocabulary.ids.tolist() == [hashed("x"), hashed("y")]


def test_truth_values_and_whole_floats_are_numbers(tmp_path: Path) -> None:
    table = pa.table({"a": pa.array([True, True, False]), "b": pa.array([1.0, None, 7.0])})
    pq.write_table(table, tmp_path / "log.parquet")
    found = values_of(tmp_path / "log.parquet", features({"a": None, "b": None}))
    assert found == [{"value": 1, "count": 3}, {"value": 0, "count": 1}, {"value": 7, "count": 1}]


def test_a_fraction_is_no_id(tmp_path: Path) -> None:
    table = pa.table({"a": pa.array([[], [1.0, 2.0], [4.5, 2.0]])})
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=2)
    with pytest.raises(DataError, match=r"log.parquet: row group 1, row 0, column 'a' is 4.5.*write ids as integers"):
        values_of(tmp_path / "log.parquet", features({"a": 3}))


def test_no_value_may_be_left(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": pa.array([1, 2, 3])}), tmp_path / "log.parquet")
    config = features({"a": None}, min_count=2)
    assert values_of(tmp_path / "log.parquet", config) == []


def test_listed_values_keep_their_order() -> None:
    table = TableConfig(name="t", embedding_dim=1, values=("b", "a"))
    assert inline_vocabulary(table).ids.tolist() == [hashed("b"), hashed("a")]
