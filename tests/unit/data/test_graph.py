from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rookery.data.graph import Graph, Vocabulary
from rookery.errors import DataError
from rookery.types import Side


def write_graph(folder: Path, manifest_changes: dict[str, object] | None = None) -> Path:
    """A graph of three users and two posts, written by hand: the reader is not tested against our own writer."""
    for part in ("vocab", "edges/train"):
        (folder / part).mkdir(parents=True)
    degrees = {"row": [0, 1, 2], "id": ["ann", "bob", "cy"], "lhs_degree": [2, 1, 0], "rhs_degree": [1, 1, 1]}
    pq.write_table(pa.table(degrees), folder / "vocab" / "user.parquet")
    pq.write_table(
        pa.table({"row": [0, 1], "id": [70, 7], "lhs_degree": [0, 0], "rhs_degree": [1, 0]}),
        folder / "vocab" / "post.parquet",
    )
    edges = {"lhs": [0, 0, 1], "rel": [0, 1, 0], "rhs": [1, 0, 0]}
    pq.write_table(pa.table(edges), folder / "edges" / "train" / "part-00000.parquet")
    manifest = {
        "format": 1,
        "entity_types": {
            "user": {"num_entities": 3, "vocab": "vocab/user.parquet", "id_type": "string"},
            "post": {"num_entities": 2, "vocab": "vocab/post.parquet", "id_type": "int64"},
        },
        "relations": [
            {"name": "follow", "lhs": "user", "rhs": "user", "num_edges": {"train": 2}},
            {"name": "like", "lhs": "user", "rhs": "post", "num_edges": {"train": 1}},
        ],
        "splits": {"train": {"path": "edges/train", "num_edges": 3, "files": ["part-00000.parquet"]}},
        "weighted": False,
        "seed": 0,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | (manifest_changes or {})))
    return folder


@pytest.fixture
def graph(tmp_path) -> Graph:
    return Graph.open(write_graph(tmp_path / "graph"))


def test_the_manifest_is_read_whole(graph):
    assert [(r.name, r.lhs, r.rhs, r.num_edges) for r in graph.relations] == [
        ("follow", "user", "user", {"train": 2}),
        ("like", "user", "post", {"train": 1}),
    ]
    assert {name: info.num_entities for name, info in graph.entity_types.items()} == {"user": 3, "post": 2}
    assert graph.split_files("train") == [graph.path / "edges/train/part-00000.parquet"]
    assert graph.num_edges("train") == 3
    assert not graph.weighted


def test_a_vocabulary_maps_both_ways(graph):
    users = graph.vocabulary("user")
    assert users.rows(["cy", "nobody", "ann", "cy"]).tolist() == [2, -1, 0, 2]
    assert users.ids(np.array([1, 0])) == ["bob", "ann"]
    assert users.degrees(Side.LHS).tolist() == [2, 1, 0]
    assert users.degrees(Side.RHS).tolist() == [1, 1, 1]
    assert len(users) == 3


@pytest.mark.parametrize("ids", [[7, 8, 70], ["7", "8", "70"], pa.array([7, 8, 70]), pa.chunked_array([[7], [8, 70]])])
def test_integer_ids_are_found_as_integers_and_as_text(graph, ids):
    assert graph.vocabulary("post").rows(ids).tolist() == [1, -1, 0]


@pytest.mark.parametrize("text", ["007", "+7", " 7", "7.0", "seven", "", "9" * 30])
def test_text_that_is_no_plain_integer_is_no_integer_id(graph, text):
    assert graph.vocabulary("post").rows([text, "7"]).tolist() == [-1, 1]


@given(st.lists(st.text(max_size=3), unique=True), st.lists(st.text(max_size=3)))
def test_rows_equal_a_dictionary(ids, wanted):
    zeros = pa.array([0] * len(ids), pa.int64())
    table = pa.table({"id": pa.array(ids, pa.string()), "lhs_degree": zeros, "rhs_degree": zeros})
    row_of = {entity: row for row, entity in enumerate(ids)}
    assert Vocabulary("user", table).rows(wanted).tolist() == [row_of.get(entity, -1) for entity in wanted]


def test_what_is_not_there_is_named(graph, tmp_path):
    with pytest.raises(DataError, match=r"no entity type 'usr'.*user, post"):
        graph.vocabulary("usr")
    with pytest.raises(DataError, match=r"no split 'valid'.*train.*--valid"):
        graph.split_files("valid")
    with pytest.raises(DataError, match=r"manifest.json: No such file"):
        Graph.open(tmp_path / "absent")


def test_an_unknown_format_and_a_damaged_manifest_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"manifest.json: format: .*ingest it again"):
        Graph.open(write_graph(tmp_path / "newer", {"format": 2}))
    damaged = write_graph(tmp_path / "damaged")
    (damaged / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest.json: the file: .*ingest it again"):
        Graph.open(damaged)


def test_missing_and_truncated_files_are_refused(tmp_path):
    folder = write_graph(tmp_path / "graph")
    (folder / "edges/train/part-00000.parquet").unlink()
    with pytest.raises(DataError, match=r"part-00000.parquet: named by .* absent \(1 in all\)"):
        Graph.open(folder)
    folder = write_graph(tmp_path / "short")
    pq.write_table(
        pa.table({"row": [0], "id": ["ann"], "lhs_degree": [1], "rhs_degree": [0]}), folder / "vocab" / "user.parquet"
    )
    with pytest.raises(DataError, match=r"user.parquet: 1 rows where the manifest says 3"):
        Graph.open(folder).vocabulary("user")
    (folder / "vocab" / "user.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"user.parquet: not a vocabulary"):
        Graph.open(folder).vocabulary("user")
