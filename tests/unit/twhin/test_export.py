"""An export holds what the run learned, bit for bit, and says when it does not."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from naive_retrieval import DIM, naive_scores, random_embeddings
from naive_twhin import compare, operate

from rookery.data.graph import Graph, Vocabulary
from rookery.errors import DataError
from rookery.train import vector_export
from rookery.twhin import export
from rookery.twhin.embeddings import Embeddings
from rookery.twhin.export import Export, write_export
from rookery.types import Side


def vocabularies(graph: Graph) -> dict[str, Vocabulary]:
    return {name: graph.vocabulary(name) for name in graph.entity_types}


def written(embeddings: Embeddings, graph: Graph, out: Path, overwrite: bool = False) -> Export:
    write_export(embeddings, vocabularies(graph), out, run="runs/small", step=7, overwrite=overwrite)
    return Export.open(out)


@pytest.mark.parametrize(
    ("operator", "operator_side"), list(itertools.product(("translation", "identity", "linear"), ("lhs", "both")))
)
def test_what_is_read_scores_as_what_was_written(
    graph: Graph, tmp_path: Path, operator: str, operator_side: str
) -> None:
    embeddings = random_embeddings(operator, "l2", operator_side)
    opened = written(embeddings, graph, tmp_path / "out")
    found = opened.embeddings()
    assert (found.comparator, found.operator_side) == ("l2", operator_side)
    for name, rows in embeddings.rows.items():
        assert torch.equal(found.rows[name], rows)
        assert opened.vocabulary(name).ids([0, 3]) == [f"{name}-0", f"{name}-3"]
        assert opened.vocabulary(name).rows([f"{name}-4", "nobody"]).tolist() == [4, -1]
    for side, relation in itertools.product(Side, range(2)):
        anchors = torch.tensor([2, 5])
        expected = embeddings.score_candidates(side, relation, anchors, None)
        assert torch.equal(found.score_candidates(side, relation, anchors, None), expected)


def test_files_are_what_the_page_says_they_are(graph: Graph, tmp_path: Path) -> None:
    """A reader without Rookery: Parquet, numpy and the formula give the score."""
    embeddings = random_embeddings("complex_diagonal", "dot", "both")
    written(embeddings, graph, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["comparator"], manifest["operator_side"], manifest["dim"]) == ("dot", "both", DIM)
    assert (manifest["run"], manifest["step"]) == ("runs/small", 7)
    assert manifest["entity_types"] == {"user": 12, "item": 10}
    tables = {name: pq.read_table(tmp_path / "out" / "entities" / f"{name}.parquet") for name in ("user", "item")}
    assert tables["user"].schema.field("vector").type == pa.list_(pa.float32(), DIM)
    vectors = {name: dict(zip(*table.to_pydict().values(), strict=True)) for name, table in tables.items()}
    relations = pq.read_table(tmp_path / "out" / "relation_parameters.parquet").to_pylist()
    assert [(row["relation"], row["operator"], row["direction"]) for row in relations] == [
        (name, "complex_diagonal", direction) for name in ("likes", "follows") for direction in ("reverse", "forward")
    ]
    p = next(r["parameters"] for r in relations if (r["relation"], r["direction"]) == ("likes", "forward"))
    user, item, p = (
        torch.tensor(x, dtype=torch.float64) for x in (vectors["user"]["user-3"], vectors["item"]["item-2"], p)
    )
    score = float(compare("dot", operate("complex_diagonal", user, p), item))
    assert score == pytest.approx(naive_scores(embeddings, Side.RHS, 0, 3)[2], abs=1e-6)


def test_rows_are_written_a_chunk_at_a_time(graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "CHUNK_ROWS", 5)
    monkeypatch.setattr(vector_export, "CHUNK_ROWS", 5)
    embeddings = random_embeddings(dtype=torch.float16)
    opened = written(embeddings, graph, tmp_path / "out")
    file = pq.ParquetFile(tmp_path / "out" / "entities" / "user.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [5, 5, 2]
    assert torch.equal(opened.vectors("user"), embeddings.rows["user"].float())
    assert opened.vocabulary("user").ids(range(12)) == [f"user-{row}" for row in range(12)]


def test_integer_ids_stay_integers(tmp_path: Path) -> None:
    ids = pa.table({"id": pa.array(np.arange(12) * 10)})
    embeddings = random_embeddings(num_entities={"user": 12, "item": 12})
    write_export(
        embeddings,
        {name: Vocabulary(name, ids) for name in ("user", "item")},
        tmp_path / "out",
        run="r",
        step=1,
        overwrite=False,
    )
    assert Export.open(tmp_path / "out").vocabulary("item").ids([2]) == [20]


def test_a_damaged_file_is_refused_when_it_is_read(graph: Graph, tmp_path: Path) -> None:
    opened = written(random_embeddings(), graph, tmp_path / "out")
    file = tmp_path / "out" / "entities" / "item.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert opened.vectors("user").shape == (12, DIM)
    with pytest.raises(DataError, match=r"item.parquet: crc32 is .* export the run again"):
        opened.vectors("item")
    file.unlink()
    with pytest.raises(DataError, match=r"item.parquet.*export the run again"):
        opened.vocabulary("item")


def test_what_is_no_export_is_refused(graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="name the folder that 'rookery twhin export RUN OUT' wrote"):
        Export.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 2}')
    with pytest.raises(DataError, match=r"format: .*export the run again"):
        Export.open(tmp_path)


def test_an_earlier_export_is_replaced_only_when_asked(graph: Graph, tmp_path: Path) -> None:
    embeddings = random_embeddings()
    written(embeddings, graph, tmp_path / "out")
    with pytest.raises(DataError, match="exists"):
        written(embeddings, graph, tmp_path / "out")
    moved = dataclasses.replace(embeddings, comparator="l1")
    assert written(moved, graph, tmp_path / "out", overwrite=True).manifest.comparator == "l1"


def test_a_folder_of_another_kind_is_never_replaced(graph: Graph, tmp_path: Path) -> None:
    """A graph has a manifest too."""
    with pytest.raises(DataError, match="--overwrite does not touch it"):
        written(random_embeddings(), graph, graph.path, overwrite=True)
    assert Graph.open(graph.path) == graph


def test_a_failed_export_leaves_nothing(graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        write_export(random_embeddings(), {}, tmp_path / "out" / "x", run="r", step=1, overwrite=False)
    assert not list((tmp_path / "out").iterdir())
