"""Whatever the ingest on one machine writes, Spark writes: the same bytes in every file."""

from __future__ import annotations

import datetime as dt
import gzip
import os
import random
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from naive_ingest import digests, edges_of, run, write_lines

from rookery.config.loader import parse_config
from rookery.data.graph import Graph
from rookery.data.ingest_config import IngestConfig
from rookery.data.ingest_spark import ingest_with_spark
from rookery.errors import DataError, MissingExtra, UserError

# Py4J leaves its sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"),
]
NO_JAVA = not os.environ.get("JAVA_HOME") and shutil.which("java") is None
RNG = random.Random(0)


@pytest.fixture(scope="module")
def spark():
    """Two threads, and blocks of 2 kB: every file is read in several and in any order."""
    session_class = pytest.importorskip("pyspark.sql", reason="needs the extra spark: make test-spark").SparkSession
    if NO_JAVA:
        pytest.skip("needs Java 17 or later")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    settings = {
        "spark.master": "local[2]",
        "spark.sql.files.maxPartitionBytes": "2000",
        "spark.sql.files.openCostInBytes": "0",
        "spark.sql.shuffle.partitions": "3",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    builder = session_class.builder
    for name, value in settings.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    yield session
    session.stop()


def with_spark(out: Path, *, edges_per_file: int = 65_536, **fields: object) -> Graph:
    sources = fields.pop("sources")
    sources = [{"files": str(sources)}] if isinstance(sources, Path) else sources
    config = parse_config(IngestConfig, {"sources": sources, **fields}, "test")
    return ingest_with_spark(config, Path(), out, edges_per_file=edges_per_file)


def both(folder: Path, **fields: object) -> Graph:
    """The graph, after a check that both engines write every file of it alike."""
    duckdb, spark = run(folder / "duckdb", **fields), with_spark(folder / "spark", **fields)
    empty = {info.vocab for info in spark.entity_types.values() if not info.num_entities}
    assert all(pq.read_table(graph.path / file).num_rows == 0 for graph in (duckdb, spark) for file in empty)
    # DuckDB calls a column required if it knows of no null: of a table without rows it knows.
    written, expected = digests(spark), digests(duckdb)
    assert {file for file in expected if written[file] != expected[file]} <= empty
    assert written.keys() == expected.keys()
    assert spark.manifest == duckdb.manifest
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"duckdb", "spark"}, "nothing else is left"
    return spark


def edges(number: int, num_lhs: int = 40, num_rhs: int = 60) -> list[tuple[str, str, str]]:
    """Ids whose order as text is another than as numbers, some beyond ASCII."""
    return [(f"ü{RNG.randrange(num_lhs)}", RNG.choice("xyz"), f"{RNG.randrange(num_rhs)}") for _ in range(number)]


@pytest.mark.usefixtures("spark")
class TestSameBytes:
    def test_text_of_every_kind_with_a_random_split(self, tmp_path):
        write_lines(tmp_path / "[a] b%20*.tsv", edges(900))
        crlf = tmp_path / "crlf.txt"
        crlf.write_bytes(b"\xef\xbb\xbflhs\trelation\trhs\r\n" + b"ann\tx\tbob\r\n\r\n" * 400)
        packed = tmp_path / "packed.tsv.gz"
        packed.write_bytes(gzip.compress("".join("\t".join(edge) + "\n" for edge in edges(300)).encode()))
        quoted = tmp_path / "quoted.csv"
        quoted.write_text('rhs,relation,lhs\n"a ""b""\r\nc",x,"d,e"\n\né,y,ü1\n', newline="")
        piped = write_lines(tmp_path / "piped.txt", edges(50), "|")
        names = ["crlf.txt", "[a] b%20*.tsv", "packed.tsv.gz", "quoted.csv"]
        sources = [{"files": [str(tmp_path / name) for name in names]}, {"files": str(piped), "delimiter": "|"}]
        graph = both(tmp_path / "out", sources=sources, split={"random": {"valid": 0.1, "test": 0.2}}, seed=3)
        held_out = edges_of(graph, "valid") + edges_of(graph, "test")
        assert len(edges_of(graph)) + len(held_out) == 400 + 900 + 300 + 2 + 50
        assert len(held_out) > 100
        assert ("d,e", "x", 'a "b"\r\nc') in edges_of(graph) + held_out

    def test_typed_ids_and_relations_without_edges(self, tmp_path):
        users, posts = [RNG.randrange(100) for _ in range(800)], [RNG.randrange(10**12) for _ in range(800)]
        likes = tmp_path / "likes.parquet"
        columns = {"lhs": pa.array(users, pa.uint16()), 'w "i`t.h': pa.array(posts, pa.uint64())}
        pq.write_table(pa.table(columns), likes, row_group_size=100)
        follows = write_lines(tmp_path / "follows.tsv", [(user, (user * 7) % 120) for user in users])
        graph = both(
            tmp_path / "out",
            entity_types={"user": {"num_entities": 130}, "post": {}, "none": {}},
            relations=[
                {"name": "follow", "lhs": "user", "rhs": "user"},
                {"name": "unused", "lhs": "none", "rhs": "none"},
                {"name": "like", "lhs": "user", "rhs": "post"},
            ],
            sources=[
                {"files": str(likes), "relation": "like", "columns": {"lhs": "lhs", "rhs": 'w "i`t.h'}},
                {"files": str(follows), "relation": "follow", "split": "test"},
            ],
        )
        info = {name: (one.num_entities, one.id_type) for name, one in graph.entity_types.items()}
        assert info == {"user": (130, "int64"), "post": (len(set(posts)), "int64"), "none": (0, "string")}

    @pytest.mark.parametrize("duplicates", ["keep", "drop", "sum"])
    def test_weights_times_and_repeated_edges(self, tmp_path, duplicates):
        rows = [
            (lhs, rel, rhs, RNG.random() * 10 ** RNG.randrange(9), 10**9 + RNG.randrange(9999))
            for lhs, rel, rhs in edges(1500, 9, 9)
        ]
        file = write_lines(tmp_path / "e.tsv", rows)
        columns = {"lhs": 1, "relation": 2, "rhs": 3, "weight": 4, "time": 5}
        graph = both(
            tmp_path / "out",
            sources=[{"files": str(file), "columns": columns}],
            duplicates=duplicates,
            split={"time": {"valid": 0.1, "test": 0.15}},
        )
        assert graph.weighted and set(graph.splits) == {"train", "valid", "test"}

    @pytest.mark.parametrize("duplicates", ["keep", "drop"])
    def test_leave_k_out_in_a_seeded_order(self, tmp_path, duplicates):
        file = write_lines(tmp_path / "e.tsv", edges(1200))
        both(
            tmp_path / "out",
            sources=[{"files": str(file)}],
            duplicates=duplicates,
            split={"leave_k_out": {"valid": 2, "test": 1}},
            seed=5,
        )

    def test_leave_k_out_by_time(self, tmp_path):
        moments = [
            dt.datetime(2012, 7, 4, tzinfo=dt.timezone.utc) + dt.timedelta(seconds=RNG.randrange(300))
            for _ in range(600)
        ]
        lhs, _, rhs = zip(*edges(600, 12, 50), strict=True)
        file = tmp_path / "e.parquet"
        table = {"lhs": lhs, "rhs": rhs, "time": pa.array(moments, pa.timestamp("us"))}
        pq.write_table(pa.table(table), file, row_group_size=64)
        both(tmp_path / "out", sources=[{"files": str(file)}], split={"leave_k_out": {"valid": 1, "test": 1}})

    @pytest.mark.parametrize(
        "times",
        [
            pa.array([1_499, 1_500, 2_501, 10**18], pa.timestamp("ns")),
            pa.array([10, 20, 15, 30], pa.date32()),
            pa.array([5, 1, 4, 10**15], pa.timestamp("us", "Europe/Berlin")),
            pa.array(["7", "2012-07-05", "2012-07-05T01:02:03.25+02:00", "-1.5e3"]),
        ],
        ids=["ns", "date", "zoned", "text"],
    )
    def test_times_of_every_type(self, tmp_path, times):
        file = tmp_path / "e.parquet"
        pq.write_table(pa.table({"lhs": list("abcd"), "rhs": list("efgh"), "time": times}), file)
        cuts = {"valid_from": 2.6e-6, "test_from": 1e6}
        both(
            tmp_path / "out",
            sources=[{"files": str(file)}],
            split={"time": cuts if "ns" in str(times.type) else {"test": 0.3}},
        )


@pytest.mark.usefixtures("spark")
class TestFilesOfASplit:
    def test_together_they_are_the_one_file(self, tmp_path):
        file = write_lines(tmp_path / "e.tsv", edges(1000))
        split = {"random": {"test": 0.3}}
        whole = run(tmp_path / "whole", sources=file, split=split)
        parts = with_spark(tmp_path / "parts", sources=file, split=split, edges_per_file=300)
        assert [path.name for path in parts.split_files("train")] == [f"part-0000{n}.parquet" for n in range(3)]
        for name in ("train", "test"):
            assert edges_of(parts, name) == edges_of(whole, name)
            assert all(pq.read_metadata(path).num_rows == 300 for path in parts.split_files(name)[:-1])


@pytest.mark.usefixtures("spark")
class TestRefused:
    @pytest.mark.parametrize(
        ("text", "fields", "message"),
        [
            ("a\tx\tb\n" * 500 + "a\tb\n" + "a\n" * 500, {}, "line 501: 2 columns where line 1 has 3"),
            ("a\tx\tb\n" * 500 + "a\tx\t\n", {}, "line 501, column 3 (rhs): is empty"),
            ("a\tx\tb\na\ty\tb\n", {"relations": [{"name": "x"}]}, "line 2, column 2 (relation): unknown relation 'y'"),
            ("1\tx\t1\n1\tx\t01\n", {"entity_types": {"entity": {"id_type": "int64"}}}, "line 2, column 3 (rhs): '01'"),
            ("1\tx\t9\n", {"entity_types": {"entity": {"num_entities": 9}}}, "9 is out of range"),
            ("a\tx\tb\n", {"split": {"random": {"test": 0.001}}}, "split test is empty"),
        ],
    )
    def test_as_on_one_machine(self, tmp_path, text, fields, message):
        file = tmp_path / "e.tsv"
        file.write_text(text)
        with pytest.raises(DataError) as duckdb:
            run(tmp_path / "graph", sources=file, **fields)
        with pytest.raises(DataError) as spark:
            with_spark(tmp_path / "graph", sources=file, **fields)
        assert message in str(spark.value)
        assert str(spark.value) == str(duckdb.value)
        assert list(tmp_path.iterdir()) == [file]

    @pytest.mark.parametrize("weight", ["-1", "nan", "inf", "1e39", "1f", "", "0x1p3"])
    def test_what_is_no_weight(self, tmp_path, weight):
        file = write_lines(tmp_path / "e.csv", [("a", "b", 1), ("a", "b", weight)], ",")
        columns = {"lhs": 1, "rhs": 2, "weight": 3}
        with pytest.raises(DataError, match=r"line 2, column 3 \(weight\)"):
            with_spark(tmp_path / "graph", sources=[{"files": str(file), "columns": columns}])

    @pytest.mark.parametrize("name", ["e.tsv", "e.csv"])
    def test_what_is_not_utf8(self, tmp_path, name):
        file = tmp_path / name
        file.write_bytes(b"a,\xff\n".replace(b",", b"," if name == "e.csv" else b"\t") * 3)
        with pytest.raises(DataError, match="not UTF-8"):
            with_spark(tmp_path / "graph", sources=file, relations=[{"name": "edge"}])

    def test_a_file_that_spark_would_pass_over(self, tmp_path):
        file = write_lines(tmp_path / "_e.tsv", edges(3))
        with pytest.raises(DataError, match="passes over files whose names begin with _"):
            with_spark(tmp_path / "graph", sources=file)

    def test_a_mark_that_spark_would_take_for_a_letter(self, tmp_path):
        file = tmp_path / "e.csv"
        file.write_bytes(b"\xef\xbb\xbfa,x,b\n")
        with pytest.raises(DataError, match="byte order mark"):
            with_spark(tmp_path / "graph", sources=file)

    def test_a_row_group_that_cannot_be_decoded(self, tmp_path):
        file = tmp_path / "e.parquet"
        pq.write_table(pa.table({"lhs": list("ab") * 500, "rhs": list("cd") * 500}), file, row_group_size=250)
        content = bytearray(file.read_bytes())
        start = pq.read_metadata(file).row_group(2).column(0).dictionary_page_offset
        content[start : start + 40] = b"\xff" * 40
        file.write_bytes(content)
        with pytest.raises(DataError, match="row group 2, column 'lhs'"):
            with_spark(tmp_path / "graph", sources=file)


def test_without_pyspark_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("rookery.data.ingest_spark.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'rookery\[spark\]'"):
        with_spark(tmp_path / "graph", sources=write_lines(tmp_path / "e.tsv", edges(3)))


def test_without_java_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("rookery.data.ingest_spark.importlib.util.find_spec", lambda name: name)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs Java 17"):
        with_spark(tmp_path / "graph", sources=write_lines(tmp_path / "e.tsv", edges(3)))
