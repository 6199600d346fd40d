"""Input that is refused: the message names the place, the value and the remedy."""

from __future__ import annotations

import datetime as dt
import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from naive_ingest import USERS_AND_POSTS, run, write_lines

from rookery.errors import ConfigError, DataError


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
            ({"lhs": ["a"], "rhs": ["b"], "time": [dt.time(12)]}, r"column 'time' \(time\) is time64.*timestamps"),
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
