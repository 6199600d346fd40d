from __future__ import annotations

import datetime as dt
import gzip
import json
import random
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_ingest import digests, edges_of, naive_vocabulary, run, vocabulary_of, write_lines

from rookery.config.loader import load_config
from rookery.data.ingest_config import IngestConfig
from rookery.errors import ConfigError, DataError, RookeryError, UserError

EDGES = [("a", "likes", "b"), ("c", "likes", "b"), ("a", "hates", "c"), ("b", "likes", "a"), ("d", "hates", "b")]

NOON = dt.time(12)
USERS_AND_POSTS = [
    {"name": "follow", "lhs": "user", "rhs": "user"},
    {"name": "like", "lhs": "user", "rhs": "post"},
]


@pytest.fixture
def tsv(tmp_path) -> Path:
    return write_lines(tmp_path / "edges.tsv", EDGES)


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


class TestFormats:
    def test_all_formats_give_the_same_bytes(self, tsv, tmp_path):
        gz = tmp_path / "edges.txt.gz"
        gz.write_bytes(gzip.compress(tsv.read_bytes()))
        crlf = tmp_path / "crlf.tsv"
        crlf.write_bytes(b"\xef\xbb\xbf" + tsv.read_bytes().replace(b"\n", b"\r\n"))
        parquet = tmp_path / "edges.parquet"
        columns = zip(*EDGES, strict=True)
        pq.write_table(pa.table(dict(zip(("lhs", "relation", "rhs"), columns, strict=True))), parquet)
        expected = digests(run(tmp_path / "tsv", sources=tsv))
        for number, file in enumerate((gz, crlf, write_lines(tmp_path / "e.csv", EDGES, ","), parquet)):
            assert digests(run(tmp_path / str(number), sources=file)) == expected, file

    def test_csv_quotes_and_tsv_does_not(self, tmp_path):
        csv = tmp_path / "e.csv"
        csv.write_text('"a, ""b""\nc",likes,d\n"e",likes,f\n')
        assert edges_of(run(tmp_path / "csv", sources=csv)) == [('a, "b"\nc', "likes", "d"), ("e", "likes", "f")]
        tsv = write_lines(tmp_path / "e.tsv", [('"e"', "likes", 'f"')])
        assert edges_of(run(tmp_path / "tsv", sources=tsv)) == [('"e"', "likes", 'f"')]

    def test_blank_lines_and_a_missing_last_newline_are_no_edges(self, tmp_path):
        file = tmp_path / "e.tsv"
        file.write_text("\na\tx\tb\n\nc\tx\td")
        assert edges_of(run(tmp_path / "graph", sources=file)) == [("a", "x", "b"), ("c", "x", "d")]

    @pytest.mark.parametrize(
        ("text", "source"),
        [
            ("lhs\trelation\trhs\na\tx\tb\n", {}),
            ("rhs,relation,lhs\nb,x,a\n", {"format": "csv"}),
            ("kind src dst\nx a b\n", {"delimiter": " ", "columns": {"lhs": "src", "rhs": "dst", "relation": "kind"}}),
            ("b|7|x|a\n", {"delimiter": "|", "columns": {"lhs": 4, "rhs": 1, "relation": 3}}),
            ("head\trel\ttail\na\tx\tb\n", {"header": True}),
            ("src\tdst\na\tb\n", {"relation": "x", "columns": {"lhs": "src", "rhs": "dst"}}),
            ("a\tb\n", {"relation": "x"}),
            ("lhs\trelation\trhs\na\tignored\tb\n", {"relation": "x"}),
        ],
    )
    def test_columns_by_name_by_position_and_by_default(self, text, source, tmp_path):
        file = tmp_path / "edges.txt"
        file.write_text(text)
        graph = run(tmp_path / "graph", sources=[{"files": str(file), **source}])
        assert edges_of(graph) == [("a", "x", "b")]

    @pytest.mark.parametrize("header", ["source,target", "Src,DST", "head,tail,rel", "From,To", "user_id,item_id,t"])
    def test_what_looks_like_a_header_is_an_edge_only_if_it_is_said(self, header, tmp_path):
        file = tmp_path / "edges.csv"
        file.write_text(header + "\na,b" + ",c" * (header.count(",") - 1) + "\n")
        source = {"files": str(file), "columns": {"lhs": 1, "rhs": 2}, "relation": "x"}
        with pytest.raises(DataError) as raised:
            run(tmp_path / "graph", sources=[source])
        assert str(raised.value) == (
            f"{file}: line 1 looks like a header: {', '.join(header.split(','))}; pass --header with --lhs-column and "
            "--rhs-column if it is one, --no-header if these are ids (in a mapping: header, columns)"
        )
        named = run(tmp_path / "named", sources=[{**source, "header": True}])
        assert edges_of(named) == [("a", "x", "b")]
        ids = run(tmp_path / "ids", sources=[{**source, "header": False}])
        assert edges_of(ids) == [(*header.split(",")[:1], "x", header.split(",")[1]), ("a", "x", "b")]

    def test_other_words_in_the_first_line_are_an_edge(self, tmp_path):
        file = write_lines(tmp_path / "e.tsv", [("user", "post"), ("source", "sink")])
        assert edges_of(run(tmp_path / "graph", sources=file)) == [("user", "edge", "post"), ("source", "edge", "sink")]

    def test_a_weight_column_leaves_the_rest_by_position(self, tmp_path):
        file = write_lines(tmp_path / "e.tsv", [("a", 0.5, "x", "b"), ("b", 2, "x", "c")])
        graph = run(tmp_path / "graph", sources=[{"files": str(file), "columns": {"weight": 2}}])
        assert edges_of(graph) == [("a", "x", "b", 0.5), ("b", "x", "c", 2.0)]

    def test_one_relation_a_file(self, tmp_path):
        follow = write_lines(tmp_path / "follow.tsv", [("a", "b")])
        like = write_lines(tmp_path / "like.tsv", [("a", "p")])
        sources = [{"files": str(like), "relation": "like"}, {"files": str(follow), "relation": "follow"}]
        graph = run(tmp_path / "graph", sources=sources, relations=USERS_AND_POSTS)
        assert edges_of(graph) == [("a", "like", "p"), ("a", "follow", "b")]

    def test_folders_and_globs_are_sorted(self, tmp_path):
        folder = tmp_path / "edges [1]"
        folder.mkdir()
        for name in ("b.tsv", "a.tsv"):
            write_lines(folder / name, [(name, "x", "y")])
        (folder / "notes.md").write_text("no edges")
        expected = [("a.tsv", "x", "y"), ("b.tsv", "x", "y")]
        assert edges_of(run(tmp_path / "of_folder", sources=folder)) == expected
        assert edges_of(run(tmp_path / "of_glob", sources=str(tmp_path / "edges*" / "?.tsv"))) == expected

    def test_empty_parts_are_passed_over_and_folders_are_no_columns(self, tmp_path):
        part = tmp_path / "relation=2020"
        part.mkdir()
        schema = pa.schema([("lhs", pa.string()), ("rhs", pa.string())])
        pq.write_table(schema.empty_table(), part / "0.parquet")
        pq.write_table(pa.table({"lhs": ["a"], "rhs": ["b"]}), part / "1.parquet")
        (part / "2.tsv").write_text("lhs\trhs\n")
        assert edges_of(run(tmp_path / "graph", sources=part)) == [("a", "edge", "b")]

    def test_dictionary_and_large_strings_of_parquet(self, tmp_path):
        columns = {
            "lhs": pa.array(["a", "b"]).dictionary_encode(),
            "relation": pa.array(["x", "x"]).dictionary_encode(),
            "rhs": pa.array(["b", "c"], pa.large_string()),
        }
        pq.write_table(pa.table(columns), tmp_path / "e.parquet")
        assert edges_of(run(tmp_path / "graph", sources=tmp_path / "e.parquet")) == [("a", "x", "b"), ("b", "x", "c")]


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


def bad(text: str, message: str, case: str, **fields: object) -> object:
    return pytest.param(text, fields, message, id=case)


INT = {"entity_types": {"entity": {"id_type": "int64"}}}
WEIGHT = {"columns": {"weight": 4}}
TIMED = {"source": {"columns": {"time": 4}}, "split": {"time": {"test": 0.5}}}

BAD_TEXT = [
    bad("a\tx\tb\nc\tx\n", r"line 2: 2 columns where line 1 has 3: 'c\\tx'; mend", "ragged_short"),
    bad("a\tx\tb\n\nc\tx\td\te\n", r"line 3: 4 columns where line 1 has 3", "ragged_long"),
    bad("a x b\n", r"line 1 has 1 column with the delimiter '\\t': 'a x b'; pass the right --delimiter", "delimiter"),
    bad("a\tb\tc\td\n", r"has 4 columns, .*--lhs-column and --rhs-column", "unclear_columns"),
    bad("", r"is empty", "empty_file"),
    bad("lhs\trelation\trhs\n", r"split train is empty \(0 edges in all\); name files that hold", "header_alone"),
    bad("a\tx\tb\n\tx\td\n", r"line 2, column 1 \(lhs\): is empty", "empty_lhs"),
    bad("a\tx\tb\n\nc\tx\t\n", r"line 3, column 3 \(rhs\): is empty", "empty_rhs_after_blank_line"),
    bad("a\tx\tb\na\t\td\n", r"line 2, column 2 \(relation\): is empty; give every edge a relation", "empty_relation"),
    bad("lhs\trelation\trhs\na\tx\t\n", r"line 2, column 'rhs' \(rhs\): is empty", "named_column"),
    bad(
        "1\tx\t2\n3\tx\tfour\n",
        r"line 2, column 3 \(rhs\): 'four' is not an integer; .*--id-type string",
        "word",
        **INT,
    ),
    bad("1\tx\t2\n3\tx\t4.0\n", r"line 2, .*'4.0' is not an integer", "fraction", **INT),
    bad("1\tx\t2\n3\tx\t007\n", r"line 2, .*'007' is not an integer", "leading_zeros", **INT),
    bad("1\tx\t9223372036854775808\n", r"line 1, .* does not fit in 64 bits", "too_large", **INT),
    bad(
        "0\tx\t2\n1\tx\t3\n",
        r"line 2, column 3 \(rhs\): 3 is out of range: num_entities of 'entity' says 0 to 2",
        "beyond_num_entities",
        entity_types={"entity": {"num_entities": 3}},
    ),
    bad(
        "0\tx\t2\n-1\tx\t1\n",
        r"line 2, column 1 \(lhs\): -1 is out of range",
        "negative",
        entity_types={"entity": {"num_entities": 3}},
    ),
    bad("a\tx\tb\t1\nc\tx\td\tnan\n", r"line 2, column 4 \(weight\): nan is no weight", "nan_weight", source=WEIGHT),
    bad(
        "a\tx\tb\t-1\n", r"line 1, column 4 \(weight\): -1 is no weight; .*at least 0", "negative_weight", source=WEIGHT
    ),
    bad("a\tx\tb\t1\nc\tx\td\t\n", r"line 2, column 4 \(weight\): '' is not a number", "no_weight", source=WEIGHT),
    bad("a\tx\tb\theavy\n", r"line 1, column 4 \(weight\): 'heavy' is not a number", "word_weight", source=WEIGHT),
    bad("a\tx\tb\t1e50\n", r"line 1, column 4 \(weight\): 1e50 is no weight", "overflowing_weight", source=WEIGHT),
    bad("a\tx\tb\t1\nc\tx\td\tnoon\n", r"line 2, column 4 \(time\): 'noon' is not a time; .*ISO 8601", "time", **TIMED),
    bad("a\tx\tb\t1\nc\tx\td\t\n", r"line 2, column 4 \(time\): '' is not a time", "no_time", **TIMED),
    bad(
        "a\tlikes\tb\na\tlike\tb\n",
        r"line 2, column 2 \(relation\): unknown relation 'like'; did you mean 'likes'\?",
        "unknown_relation",
        relations=[{"name": "likes"}, {"name": "hates"}],
    ),
    bad("a\tx\tb\n", r"no column 9 for rhs; the file has 3", "no_position", source={"columns": {"lhs": 1, "rhs": 9}}),
    bad("a\tx\tb\n", r"no column 'dst' for rhs", "no_name", source={"columns": {"lhs": "a", "rhs": "dst"}}),
    bad(
        "a\tx\tb\n",
        r"no header to find the column 'src' in",
        "no_header",
        source={"header": False, "columns": {"lhs": "src", "rhs": 2}},
    ),
    bad("a\tx\tb\n", r"column 1 is both lhs and rhs", "one_column_twice", source={"columns": {"lhs": 1, "rhs": 1}}),
    bad(
        "a\tb\n",
        r"no relation column, and 2 relations are declared \(p, q\); write p=.*--relation-column",
        "which_relation",
        relations=[{"name": "p"}, {"name": "q"}],
    ),
    bad("a\tx\tb\n", r"no time column to split by; pass --time-column", "untimed", split={"time": {"test": 0.5}}),
    bad(
        "a\tx\tb\n" * 9,
        r"split test is empty \(9 edges in all\); give it a larger share",
        "empty_split",
        split={"random": {"test": 1e-9}},
    ),
    bad(
        "a\tx\tb\t1\n",
        r"split train is empty .*hold out less",
        "empty_train",
        source={"columns": {"time": 4}},
        split={"time": {"test_from": 0}},
    ),
]


class TestBadInput:
    @pytest.mark.parametrize(("text", "fields", "message"), BAD_TEXT)
    def test_the_place_the_value_and_the_remedy_are_named(self, text, fields, message, tmp_path):
        file = tmp_path / "edges.tsv"
        file.write_text(text)
        source = {"files": str(file), **fields.get("source", {})}
        rest = {name: value for name, value in fields.items() if name != "source"}
        with pytest.raises(DataError, match=message) as raised:
            run(tmp_path / "out" / "graph", sources=[source], **rest)
        assert str(raised.value).startswith(str(file))
        assert list((tmp_path / "out").glob("*")) == []

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("e.tsv", b"a\tx\tb\n\xff\tx\td\n", r"e.tsv, line 2: not UTF-8|e.tsv: not UTF-8"),
            ("e.tsv", b"a\tx\tb\nc\tx\td\r\ne\tx\tf\n", r"e.tsv: cannot be read .*every line ends the same way"),
            ("e.csv", b'a,x,b\n"c,x,d\n', r"e.csv, line 2: a quotation mark is not closed"),
            ("e.tsv.gz", b"a\tx\tb\n", r"e.tsv.gz: not a whole gzip file"),
            ("e.tsv.gz", gzip.compress(b"a\tx\tb\n" * 50_000)[:-20], r"e.tsv.gz: not a whole gzip file"),
            ("e.parquet", b"a\tx\tb\n", r"e.parquet: not a Parquet file"),
            ("e.tsv", b"a\tx\t" + b"b" * 3_000_000 + b"\n", r"e.tsv: cannot be read as delimited text|e.tsv, line 1"),
            ("e.tsv", b"a\tx\tb\nc\tx\t" + b"b" * 3_000_000 + b"\n", r"e.tsv, line 2: not a line of edges: .*\.\.\.'"),
        ],
    )
    def test_files_that_cannot_be_read(self, name, content, message, tmp_path):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message) as raised:
            run(tmp_path / "out" / "graph", sources=tmp_path / name)
        assert len(str(raised.value)) < 600
        assert not (tmp_path / "out" / "graph").exists()

    def test_the_first_of_many_bad_rows_is_named(self, tmp_path):
        rows = [(f"u{i}", "x", f"v{i}") for i in range(200_000)]
        rows[123_456] = rows[150_000] = ("", "x", "v")
        write_lines(tmp_path / "1.tsv", rows[:100_000])
        write_lines(tmp_path / "2.tsv", rows[100_000:])
        with pytest.raises(DataError, match=r"2.tsv, line 23457, column 1"):
            run(tmp_path / "graph", sources=str(tmp_path / "*.tsv"))

    def test_parquet_rows_are_named_by_row_group(self, tmp_path):
        table = pa.table({"lhs": ["a"] * 25, "rhs": ["b"] * 17 + [None] * 8})
        pq.write_table(table, tmp_path / "e.parquet", row_group_size=10)
        with pytest.raises(DataError, match=r"e.parquet, row group 1, row 7, column 'rhs' \(rhs\): is empty"):
            run(tmp_path / "graph", sources=tmp_path / "e.parquet")

    def test_a_damaged_row_group_is_named(self, tmp_path):
        file = tmp_path / "e.parquet"
        table = pa.table({"lhs": [f"user {i}" for i in range(3000)], "rhs": [f"item {i}" for i in range(3000)]})
        pq.write_table(table, file, row_group_size=1000, use_dictionary=False)
        offset = pq.read_metadata(file).row_group(1).column(1).data_page_offset
        content = bytearray(file.read_bytes())
        content[offset : offset + 200] = b"\xff" * 200
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"e.parquet, row group 1, column 'rhs': cannot be decoded"):
            run(tmp_path / "graph", sources=file)

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"a": ["x"], "b": ["y"]}, r"has 'a', 'b', and which of them are lhs and rhs is not said"),
            ({"lhs": [1.5], "rhs": [2.5]}, r"column 'lhs' \(lhs\) is double; write it as integers or strings"),
            ({"lhs": ["a"], "rhs": ["b"], "relation": [1]}, r"column 'relation' \(relation\) is int64; .*strings"),
            ({"lhs": ["a"], "rhs": ["b"], "weight": ["c"]}, r"column 'weight' \(weight\) is string; .*numbers"),
            ({"lhs": ["a"], "rhs": ["b"], "time": [[1]]}, r"column 'time' \(time\) is list.*timestamps"),
            ({"lhs": ["a"], "rhs": ["b"], "time": [NOON]}, r"column 'time' \(time\) is time64.*timestamps"),
        ],
    )
    def test_parquet_columns_of_the_wrong_type(self, columns, message, tmp_path):
        pq.write_table(pa.table(columns), tmp_path / "e.parquet")
        with pytest.raises(DataError, match=message):
            run(tmp_path / "graph", sources=tmp_path / "e.parquet")

    def test_parquet_columns_that_differ_by_case_alone(self, tmp_path):
        pq.write_table(pa.table({"LHS": ["a"], "lhs": ["b"], "rhs": ["c"]}), tmp_path / "e.parquet")
        with pytest.raises(DataError, match=r"columns 'LHS' and 'lhs' differ by case alone"):
            run(tmp_path / "graph", sources=tmp_path / "e.parquet")

    def test_files_that_are_not_there(self, tsv, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match=r"absent.tsv: no such file"):
            run(tmp_path / "graph", sources=tmp_path / "absent.tsv")
        with pytest.raises(DataError, match=r"empty: no .csv, .tsv, .txt or .parquet file"):
            run(tmp_path / "graph", sources=tmp_path / "empty")
        with pytest.raises(DataError, match=r"edges.tsv: named twice"):
            run(tmp_path / "graph", sources=[{"files": [str(tsv), str(tsv)]}])

    def test_one_column_cannot_hold_ids_of_two_types(self, tmp_path):
        file = write_lines(tmp_path / "e.tsv", [("a", "follow", "b")])
        types = {"user": {}, "post": {"id_type": "int64"}}
        with pytest.raises(DataError, match=r"column 3 holds ids of user \(string\), post \(int64\); .*--id-type user"):
            run(tmp_path / "graph", sources=file, relations=USERS_AND_POSTS, entity_types=types)

    def test_too_many_relations_are_likely_ids(self, tmp_path):
        file = write_lines(tmp_path / "ratings.tsv", [(i, f"item {i}", 5) for i in range(10_050)])
        with pytest.raises(DataError, match=r"column 2 holds more than 10,000 relations.*--lhs-column"):
            run(tmp_path / "graph", sources=file)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            (
                {"relations": USERS_AND_POSTS, "entity_types": {"user": {}, "posts": {}}},
                r"unknown entity type 'post'; did",
            ),
            ({"entity_types": {"user": {}}}, r"no relation has the entity type 'user'"),
            ({"relations": [{"name": "x"}, {"name": "x"}]}, r"relation 'x' is listed twice"),
            ({"relations": [{"name": "x", "lhs": "../up"}]}, r"relations.0.lhs=../up"),
            ({"sources": []}, r"sources"),
            ({"sources": [{"files": "e.tsv", "split": "test"}]}, r"no source is of split train"),
            ({"sources": [{"files": "e.tsv", "relation": "y"}], "relations": [{"name": "x"}]}, r"unknown relation 'y'"),
            ({"sources": [{"files": "e.tsv", "columns": {"lhs": 1}}]}, r"lhs and rhs go together"),
            ({"sources": [{"files": "e.tsv", "columns": {"lhs": 0, "rhs": 1}}]}, r"lhs=0: positions count from 1"),
            ({"split": {"random": {}}}, r"holds nothing out"),
            ({"split": {"random": {"valid": 0.5, "test": 0.5}}}, r"leaves nothing to train"),
            ({"split": {"random": {"test": 0.1}, "leave_k_out": {"test": 1}}}, r"exclude each other"),
            ({"split": {"time": {"test": 0.1, "test_from": 3}}}, r"fractions and cut points exclude each other"),
            ({"split": {"time": {"valid_from": 4, "test_from": 3}}}, r"valid_from must lie before test_from"),
            ({"split": {"time": {"test_from": "noon"}}}, r"test_from=noon: must be a number or a date"),
            ({"entity_types": {"entity": {"num_entities": 3, "id_type": "string"}}}, r"num_entities needs integer ids"),
            (
                {"sources": [{"files": "a"}, {"files": "b", "split": "test"}], "split": {"random": {"test": 0.1}}},
                r"test comes both from a file and from split",
            ),
        ],
    )
    def test_configs_that_cannot_be(self, fields, message, tmp_path):
        with pytest.raises(ConfigError, match=message):
            run(tmp_path / "graph", **{"sources": "e.tsv", **fields})


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
