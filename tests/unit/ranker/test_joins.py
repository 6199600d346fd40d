from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from naive_columns import hashed

from rookery.data.graph import Vocabulary
from rookery.errors import ConfigError, DataError
from rookery.ranker.features_config import JoinedEmbedding
from rookery.ranker.joins import read_join
from rookery.twhin.embeddings import Embeddings
from rookery.twhin.export import write_export

VECTORS = torch.arange(12.0).view(4, 3)


def export(folder: Path, ids: list[Any]) -> Path:
    embeddings = Embeddings((), "dot", "rhs", {"item": VECTORS[: len(ids)]}, {})
    vocabulary = {"item": Vocabulary("item", pa.table({"id": pa.array(ids)}))}
    write_export(embeddings, vocabulary, folder, run="r", step=1, overwrite=False)
    return folder


def joined(folder: Path, **fields: Any) -> JoinedEmbedding:
    return JoinedEmbedding(**{"name": "v", "export": folder, "table": "item", "key": "item_id", **fields})


@pytest.mark.parametrize(
    ("ids", "key_type", "expected"),
    [
        ([7, -3, 0], "number", [7, -3, 0]),
        (["a", "b"], "text", [hashed("a"), hashed("b")]),
        ([7, -3], "text", [hashed("7"), hashed("-3")]),
        (["7", "-3", "0"], "number", [7, -3, 0]),
    ],
)
def test_ids_are_as_the_key_column_has_them(tmp_path: Path, ids: list[Any], key_type: Any, expected: list[int]) -> None:
    found = read_join(joined(export(tmp_path / "out", ids)), key_type)
    assert found.ids.tolist() == expected
    assert torch.equal(found.vectors, VECTORS[: len(ids)])


@pytest.mark.parametrize("ids", [["7", "u3"], ["7", "07"], ["1" * 19], ["7", ""]])
def test_text_that_is_no_number_never_meets_numbers(tmp_path: Path, ids: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"embeddings.v.key=item_id: the column holds numbers.*ids of item such"):
        read_join(joined(export(tmp_path / "out", ids)), "number")


def test_a_wrong_table_is_named_with_the_nearest(tmp_path: Path) -> None:
    folder = export(tmp_path / "out", [1])
    with pytest.raises(ConfigError, match=r"embeddings.v.table=items: .*no such entity type; did you mean 'item'"):
        read_join(joined(folder, table="items"), "number")


def test_a_missing_export_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"embeddings.v.export: .*manifest.json.*rookery twhin export RUN OUT"):
        read_join(joined(tmp_path / "nowhere"), "number")


def test_a_damaged_export_is_not_joined(tmp_path: Path) -> None:
    folder = export(tmp_path / "out", [1, 2])
    file = folder / "entities" / "item.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"item.parquet: crc32 is .*export the run again"):
        read_join(joined(folder), "number")
