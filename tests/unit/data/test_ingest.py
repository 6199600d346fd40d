from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_ingest import EDGES, USERS_AND_POSTS, digests, edges_of, naive_vocabulary, run, vocabulary_of, write_lines

from rookery.config.loader import load_config
from rookery.data.ingest_config import IngestConfig
from rookery.errors import DataError, RookeryError, UserError


class TestWhatIsWritten:
    def test_a_headerless_tsv_needs_nothing_else(self, tsv, tmp_path):
        graph = run(tmp_path / "graph", sources=tsv)
        assert edges_of(graph) == EDGES
        assert vocabulary_of(graph) == [("b", 1, 3), ("a", 2, 1), ("c", 1, 1), ("d", 1, 0)]
        assert [(r.name, r.lhs, r.rhs, r.num_edges) for r in graph.relations] == [
            ("hates", "entity", "entity", {"train": 2}),
            ("likes", "entity", "entity", {"train": 3}),
        ]
        assert not graph.weighted

    @settings(max_examples=25, deadline=None)
    @given(st.data())
    def test_it_equals_a_naive_ingest(self, data):
        ids = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=4)
        rows = st.lists(st.tuples(ids, st.sampled_from(["x", "y y", '"z']), ids), min_size=1, max_size=30)
        train, test = data.draw(rows), data.draw(rows)
        with tempfile.TemporaryDirectory() as folder:
            files = [write_lines(Path(folder) / f"{name}.tsv", edges) for name, edges in (("a", train), ("b", test))]
            sources = [{"files": str(files[0])}, {"files": str(files[1]), "split": "test"}]
            graph = run(Path(folder) / "graph", sources=sources)
            assert edges_of(graph, "train") == train
            assert edges_of(graph, "test") == test
            assert vocabulary_of(graph) == naive_vocabulary(train, test)
            assert [r.name for r in graph.relations] == sorted({edge[1] for edge in train + test})

    def test_entity_types_have_vocabularies_of_their_own(self, tmp_path):
        edges = [("1", "follow", "2"), ("1", "like", "1"), ("2", "like", "1"), ("2", "like", "9")]
        graph = run(tmp_path / "graph", sources=write_lines(tmp_path / "e.tsv", edges), relations=USERS_AND_POSTS)
        assert edges_of(graph) == edges
        assert vocabulary_of(graph, "user") == [("2", 2, 1), ("1", 2, 0)]
        assert vocabulary_of(graph, "post") == [("1", 0, 2), ("9", 0, 1)]
        assert [r.name for r in graph.relations] == ["follow", "like"]

    def test_relations_keep_the_declared_order_and_may_be_empty(self, tsv, tmp_path):
        relations = [{"name": name} for name in ("likes", "unused", "hates")]
        graph = run(tmp_path / "graph", sources=tsv, relations=relations)
        assert [(r.name, r.num_edges["train"]) for r in graph.relations] == [("likes", 3), ("unused", 0), ("hates", 2)]
        table = pq.read_table(tmp_path / "graph" / "relations.parquet").to_pydict()
        assert table == {
            "rel": [0, 1, 2],
            "name": ["likes", "unused", "hates"],
            "lhs": ["entity"] * 3,
            "rhs": ["entity"] * 3,
            "num_edges_train": [3, 0, 2],
        }

    def test_row_groups_and_column_types(self, tmp_path):
        rows = [(i % 700, (i * i) % 900) for i in range(140_000)]
        graph = run(tmp_path / "graph", sources=write_lines(tmp_path / "e.tsv", rows))
        metadata = pq.ParquetFile(graph.split_files("train")[0])
        sizes = [metadata.metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        assert sizes == [65_536, 65_536, 140_000 - 131_072]
        assert [(field.name, field.type, field.nullable) for field in metadata.schema_arrow] == [
            ("lhs", pa.int64(), True),
            ("rel", pa.int64(), True),
            ("rhs", pa.int64(), True),
        ]
        assert edges_of(graph) == [(str(lhs), "edge", str(rhs)) for lhs, rhs in rows]

    def test_files_keep_their_order_whatever_the_threads_and_the_memory(self, tmp_path):
        rng = random.Random(0)
        rows = [
            (f"user {rng.randrange(20_000)}", rng.choice("xyz"), f"item {rng.randrange(9)}") for _ in range(300_000)
        ]
        files = [write_lines(tmp_path / f"{i}.tsv", rows[i::3]) for i in range(3)]
        sources = [{"files": [str(files[2]), str(files[0]), str(files[1])]}]
        split = {"random": {"valid": 0.1}}
        one = run(tmp_path / "one", sources=sources, threads=1, split=split)
        many = run(tmp_path / "many", sources=sources, threads=4, memory="120MB", split=split)
        assert digests(one) == digests(many)
        in_order = rows[2::3] + rows[0::3] + rows[1::3]
        held_out = set(edges_of(one, "valid"))
        assert edges_of(one, "train") == [edge for edge in in_order if edge not in held_out]


class TestIds:
    def test_integers_of_parquet_stay_integers(self, tmp_path):
        columns = {"lhs": pa.array([10, 9, 9], pa.int32()), "rhs": pa.array([-3, 10, 2**40])}
        pq.write_table(pa.table(columns), tmp_path / "e.parquet")
        graph = run(tmp_path / "graph", sources=tmp_path / "e.parquet")
        assert graph.entity_types["entity"].id_type == "int64"
        # 9 before 10: ties are broken as integers, not as text.
        assert vocabulary_of(graph) == [(9, 2, 0), (10, 1, 1), (-3, 0, 1), (2**40, 0, 1)]
        assert edges_of(graph) == [(10, "edge", -3), (9, "edge", 10), (9, "edge", 2**40)]

    def test_text_ids_are_strings_unless_told(self, tmp_path):
        file = write_lines(tmp_path / "e.tsv", [(10, 9), (9, 10)])
        assert vocabulary_of(run(tmp_path / "text", sources=file)) == [("10", 1, 1), ("9", 1, 1)]
        types = {"entity": {"id_type": "int64"}}
        assert vocabulary_of(run(tmp_path / "int", sources=file, entity_types=types)) == [(9, 1, 1), (10, 1, 1)]

    def test_each_entity_type_has_its_own_id_type(self, tmp_path):
        edges = [(10, "like", "p"), (9, "like", "q"), (10, "like", "q")]
        graph = run(
            tmp_path / "graph",
            sources=write_lines(tmp_path / "e.tsv", edges),
            relations=USERS_AND_POSTS[1:],
            entity_types={"user": {"id_type": "int64"}, "post": {}},
        )
        assert vocabulary_of(graph, "user") == [(10, 2, 0), (9, 1, 0)]
        assert vocabulary_of(graph, "post") == [("q", 0, 2), ("p", 0, 1)]
        assert edges_of(graph) == edges

    def test_num_entities_makes_all_of_them_entities(self, tmp_path):
        file = write_lines(tmp_path / "e.tsv", [(3, 1), (3, 0)])
        graph = run(tmp_path / "graph", sources=file, entity_types={"entity": {"num_entities": 5}})
        assert vocabulary_of(graph) == [(3, 2, 0), (0, 0, 1), (1, 0, 1), (2, 0, 0), (4, 0, 0)]


WEIGHTED_ROWS = [("a", "b", 1.5), ("c", "b", 2), ("a", "b", 0.25), ("a", "b", 0)]
WEIGHTED_COLUMNS = {"lhs": 1, "rhs": 2, "weight": 3}


class TestWeightsAndDuplicates:
    @pytest.mark.parametrize(
        ("duplicates", "expected"),
        [
            ("keep", [("a", "b", 1.5), ("c", "b", 2.0), ("a", "b", 0.25), ("a", "b", 0.0)]),
            ("drop", [("a", "b", 1.5), ("c", "b", 2.0)]),
            ("sum", [("a", "b", 1.75), ("c", "b", 2.0)]),
        ],
    )
    def test_duplicates(self, duplicates, expected, tmp_path):
        file = write_lines(tmp_path / "e.tsv", WEIGHTED_ROWS)
        graph = run(tmp_path / "g", sources=[{"files": str(file), "columns": WEIGHTED_COLUMNS}], duplicates=duplicates)
        assert [(lhs, rhs, weight) for lhs, _, rhs, weight in edges_of(graph)] == expected
        assert vocabulary_of(graph) == naive_vocabulary([(lhs, "edge", rhs) for lhs, rhs, _ in expected])
        assert pq.read_schema(graph.split_files("train")[0]).field("weight").type == pa.float32()

    def test_sum_counts_edges_without_weights(self, tmp_path):
        file = write_lines(tmp_path / "e.tsv", [row[:2] for row in WEIGHTED_ROWS])
        graph = run(tmp_path / "graph", sources=file, duplicates="sum")
        assert edges_of(graph) == [("a", "edge", "b", 3.0), ("c", "edge", "b", 1.0)]

    def test_files_without_weights_weigh_one(self, tmp_path):
        weighted = write_lines(tmp_path / "w.tsv", WEIGHTED_ROWS[:1])
        plain = write_lines(tmp_path / "p.tsv", [("x", "y")])
        sources = [{"files": str(weighted), "columns": WEIGHTED_COLUMNS}, {"files": str(plain)}]
        graph = run(tmp_path / "graph", sources=sources)
        assert edges_of(graph) == [("a", "edge", "b", 1.5), ("x", "edge", "y", 1.0)]


class TestOutput:
    def test_an_existing_graph_is_replaced_only_when_told(self, tsv, tmp_path):
        run(tmp_path / "graph", sources=tsv)
        other = write_lines(tmp_path / "other.tsv", [("x", "y", "z")])
        with pytest.raises(DataError, match=r"graph: exists; .*--overwrite"):
            run(tmp_path / "graph", sources=other)
        graph = run(tmp_path / "graph", sources=other, overwrite=True)
        assert edges_of(graph) == [("x", "y", "z")]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["edges.tsv", "graph", "other.tsv"]

    def test_a_failure_leaves_the_old_graph(self, tsv, tmp_path):
        before = digests(run(tmp_path / "graph", sources=tsv))
        bad_file = write_lines(tmp_path / "bad.tsv", [("x", "y", "")])
        with pytest.raises(DataError):
            run(tmp_path / "graph", sources=bad_file, overwrite=True)
        after = run(tmp_path / "again", sources=tsv)
        assert digests(after) == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "bad.tsv", "edges.tsv", "graph"]

    def test_overwrite_spares_what_is_no_graph(self, tsv, tmp_path):
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious" / "thesis.tex").write_text("words")
        with pytest.raises(DataError, match=r"precious: holds no manifest.json, so --overwrite does not touch it"):
            run(tmp_path / "precious", sources=tsv, overwrite=True)
        with pytest.raises(DataError, match=r"edges.tsv: exists"):
            run(tsv, sources=tsv)

    def test_a_graph_does_not_swallow_its_own_input(self, tmp_path):
        graph = run(tmp_path / "graph", sources=write_lines(tmp_path / "e.tsv", EDGES))
        inside = write_lines(graph.path / "e.tsv", EDGES)
        with pytest.raises(DataError, match=r"e.tsv: lies in the graph that is to be written"):
            run(graph.path, sources=inside, overwrite=True)
        assert inside.exists()

    def test_an_empty_folder_is_free(self, tsv, tmp_path):
        (tmp_path / "graph").mkdir()
        assert edges_of(run(tmp_path / "graph", sources=tsv)) == EDGES

    def test_a_place_that_cannot_be_written_to(self, tsv, tmp_path):
        with pytest.raises(DataError, match=r"edges.tsv/deeper: cannot be written to"):
            run(tsv / "deeper" / "graph", sources=tsv)

    def test_memory_limits(self, tsv, tmp_path):
        with pytest.raises(UserError, match=r"--memory-limit lots: not an amount of memory; write it as 4GB"):
            run(tmp_path / "graph", sources=tsv, memory="lots")
        with pytest.raises(RookeryError, match=r"ran out of memory .*--memory-limit"):
            run(tmp_path / "graph", sources=tsv, memory="1KB")
        assert not (tmp_path / "graph").exists()

    def test_the_manifest_is_plain_json(self, tsv, tmp_path):
        run(tmp_path / "graph", sources=tsv, seed=7)
        manifest = json.loads((tmp_path / "graph" / "manifest.json").read_text())
        assert manifest["format"] == 1
        assert manifest["seed"] == 7
        assert manifest["splits"] == {"train": {"path": "edges/train", "num_edges": 5, "files": ["part-00000.parquet"]}}


def test_the_mapping_of_the_page_is_one(tmp_path):
    page = (Path(__file__).resolve().parents[3] / "docs" / "graph-format.md").read_text(encoding="utf-8")
    (tmp_path / "ingest.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    config = load_config(IngestConfig, tmp_path / "ingest.yaml")
    assert [relation.name for relation in config.relations] == ["follow", "like"]
    assert config.split is not None
    assert config.split.held_out == ("valid", "test")
