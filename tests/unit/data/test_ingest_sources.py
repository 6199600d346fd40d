"""The files that edges come in: delimited text with and without a header, gzip, Parquet, JSON, and their columns."""

from __future__ import annotations

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from naive_ingest import EDGES, USERS_AND_POSTS, digests, edges_of, run, write_lines

from rookery.errors import DataError


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
