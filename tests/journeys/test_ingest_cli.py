"""Edges in, as a user does it: ``rookery data`` and ``rookery twhin ingest`` in a process of their own."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from naive_ingest import digests, edges_of

from rookery.data.graph import Graph

TRIPLES = "ann\tfollow\tbob\nbob\tfollow\tcy\nann\tlike\tpost 1\n"
TYPED = ("--relation", "follow:user:user", "--relation", "like:user:post")


def rookery(*arguments: object, cwd: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rookery", *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == expect, f"{arguments}\n{result.stdout}\n{result.stderr}"
    return result


@pytest.fixture
def edges(tmp_path) -> Path:
    (tmp_path / "edges.tsv").write_text(TRIPLES)
    return tmp_path


class TestIngest:
    def test_a_headerless_tsv_needs_no_options(self, edges):
        shown = rookery("twhin", "ingest", "edges.tsv", "graph", cwd=edges).stdout
        assert "follow" in shown and "4 entity" in shown
        assert edges_of(Graph.open(edges / "graph")) == [tuple(line.split("\t")) for line in TRIPLES.splitlines()]

    def test_memory_is_a_matter_of_sparks_own_settings(self, edges):
        flags = ("--engine", "spark", "--memory-limit", "4GB")
        refused = rookery("twhin", "ingest", "edges.tsv", "graph", *flags, cwd=edges, expect=2)
        assert "--memory-limit" in refused.stderr and "spark.driver.memory" in refused.stderr

    def test_json_is_one_object_and_nothing_else(self, edges):
        result = rookery("twhin", "ingest", "edges.tsv", "graph", *TYPED, "--json", cwd=edges)
        report = json.loads(result.stdout)
        assert result.stderr == ""
        assert report["entity_types"] == {"user": 3, "post": 1}
        assert report["relations"] == {"follow": {"train": 2}, "like": {"train": 1}}
        assert report["splits"] == {"train": 3}
        assert report["graph"] == "graph"

    def test_flags_say_what_a_mapping_says(self, edges):
        (edges / "likes.csv").write_text("who,when,what,how much\nann,2020-01-01,1,2.5\nbob,2020-01-03,2,0\n")
        (edges / "mapping.yaml").write_text(
            "entity_types: {user: {}, post: {id_type: int64}}\n"
            "relations: [{name: like, lhs: user, rhs: post}]\n"
            "sources:\n"
            "  - files: likes.csv\n"
            "    relation: like\n"
            "    columns: {lhs: who, rhs: what, weight: how much, time: when}\n"
            "split: {time: {test_from: 2020-01-02}}\n"
        )
        flags = (
            "--relation",
            "like:user:post",
            "--id-type",
            "post=int64",
            "--lhs-column",
            "who",
            "--rhs-column",
            "what",
        )
        more = ("--weight-column", "how much", "--time-column", "when", "--time-split", ",2020-01-02")
        rookery("twhin", "ingest", "like=likes.csv", "by_flags", *flags, *more, cwd=edges)
        rookery("twhin", "ingest", "mapping.yaml", "by_mapping", cwd=edges)
        graph = Graph.open(edges / "by_flags")
        assert edges_of(graph, "train") == [("ann", "like", 1, 2.5)]
        assert edges_of(graph, "test") == [("bob", "like", 2, 0.0)]
        assert digests(graph) == digests(Graph.open(edges / "by_mapping"))

    def test_split_files_seeds_and_overwriting(self, edges):
        (edges / "test.tsv").write_text("cy\tfollow\tann\n")
        arguments = ("twhin", "ingest", "edges.tsv", "graph", "--test", "test.tsv", "--json")
        assert json.loads(rookery(*arguments, cwd=edges).stdout)["splits"] == {"train": 3, "test": 1}
        refused = rookery(*arguments, cwd=edges, expect=2)
        assert refused.stderr == "error: graph: exists; choose another name, or pass --overwrite to replace it\n"
        again = rookery(*arguments, "--overwrite", "--leave-k-out", "1,", "--seed", 3, cwd=edges)
        assert json.loads(again.stdout)["splits"] == {"train": 2, "valid": 1, "test": 1}
        assert Graph.open(edges / "graph").manifest.seed == 3

    def test_row_numbers_as_ids(self, edges):
        (edges / "rows.tsv").write_text("0\t3\n2\t3\n")
        rookery("twhin", "ingest", "rows.tsv", "graph", "--num-entities", 5, cwd=edges)
        graph = Graph.open(edges / "graph")
        assert edges_of(graph) == [(0, "edge", 3), (2, "edge", 3)]
        assert graph.entity_types["entity"].num_entities == 5

    def test_a_prepared_set_is_ingested_by_its_folder(self, edges):
        (edges / "raw").mkdir()
        lines = gzip.compress(b"1 2 1341100800 RT\n1 2 1341446400 RE\n3 1 1341532800 MT\n")
        (edges / "raw" / "higgs-activity_time.txt.gz").write_bytes(lines)
        prepared = rookery("data", "prepare", "higgs", "raw", "prepared", "--json", cwd=edges)
        assert json.loads(prepared.stdout) == {
            "path": "prepared",
            "num_edges": {"mention": 1, "reply": 1, "retweet": 1},
        }
        rookery("twhin", "ingest", "prepared", "graph", cwd=edges)
        graph = Graph.open(edges / "graph")
        assert {split: edges_of(graph, split) for split in graph.splits} == {
            "train": [(1, "retweet", 2)],
            "valid": [(1, "reply", 2)],
            "test": [(3, "mention", 1)],
        }
        changed = rookery("twhin", "ingest", "prepared", "other", "--time-split", ",0.4", "--json", cwd=edges)
        assert json.loads(changed.stdout)["splits"] == {"train": 2, "test": 1}

    def test_the_planted_graph(self, edges):
        sizes = ("--num-users", 50, "--num-items", 60, "--num-communities", 5, "--num-edges", 800)
        report = json.loads(rookery("data", "planted", "planted", *sizes, "--json", cwd=edges).stdout)
        splits = json.loads(rookery("twhin", "ingest", "planted", "graph", "--json", cwd=edges).stdout)["splits"]
        assert sum(splits.values()) == report["num_edges"]["edges"]


BAD = {
    "no_such_file": ("", ["absent.tsv"], "absent.tsv: no such file, folder or glob match; correct the path"),
    "ragged": ("a\tx\tb\nc\tx\n", [], "edges.tsv, line 2: 2 columns where line 1 has 3"),
    "wrong_delimiter": ("a,x,b\n", [], "edges.tsv: line 1 has 1 column with the delimiter '\\t': 'a,x,b'; pass the"),
    "unclear_columns": ("a\tb\tc\td\n", [], "edges.tsv: has 4 columns, and which of them are lhs and rhs is not said"),
    "no_such_column": ("a\tx\tb\n", ["--weight-column", "9"], "edges.tsv: no column 9 for weight; the file has 3"),
    "empty_id": ("a\tx\tb\na\tx\t\n", [], "edges.tsv, line 2, column 3 (rhs): is empty; give every edge both ids"),
    "no_integer": ("1\tx\tb\n", ["--id-type", "int64"], "edges.tsv, line 1, column 3 (rhs): 'b' is not an integer"),
    "out_of_range": (
        "0\tx\t1\n0\tx\t7\n",
        ["--num-entities", "7"],
        "edges.tsv, line 2, column 3 (rhs): 7 is out of range: num_entities of 'entity' says 0 to 6",
    ),
    "negative_id": ("0\tx\t-1\n", ["--num-entities", "7"], "edges.tsv, line 1, column 3 (rhs): -1 is out of range"),
    "nan_weight": (
        "a\tx\tb\tnan\n",
        ["--weight-column", "4"],
        "edges.tsv, line 1, column 4 (weight): nan is no weight",
    ),
    "negative_weight": ("a\tx\tb\t-2\n", ["--weight-column", "4"], "line 1, column 4 (weight): -2 is no weight"),
    "no_time": (
        "a\tx\tb\t1\nc\tx\td\tsoon\n",
        ["--time-column", "4", "--time-split", "0.1,0.1"],
        "edges.tsv, line 2, column 4 (time): 'soon' is not a time",
    ),
    "unknown_relation": (
        "a\tfolow\tb\n",
        [*TYPED],
        "edges.tsv, line 1, column 2 (relation): unknown relation 'folow'; did you mean 'follow'?",
    ),
    "unknown_type": (
        "a\tfollow\tb\n",
        [*TYPED, "--id-type", "usr=string"],
        "command line: no relation has the entity type 'usr'; did you mean 'user'?",
    ),
    "bad_relation": ("a\tb\n", ["--relation", "follow"], "--relation follow: must be NAME:LHS:RHS"),
    "empty_split": ("a\tx\tb\n", ["--random-split", ",0.000001"], "edges.tsv: split test is empty (1 edges in all)"),
    "bad_split": ("a\tx\tb\n", ["--random-split", "0.1"], "--random-split 0.1: must be VALID,TEST with one comma"),
    "large_split": (
        "a\tx\tb\n",
        ["--random-split", "0.6,0.6"],
        "command line: split.random: valid + test = 1.2 leaves",
    ),
    "bad_count": ("a\tx\tb\n", ["--leave-k-out", "1,half"], "--leave-k-out 1,half: must be two numbers, VALID,TEST"),
    "two_rules": (
        "a\tx\tb\n",
        ["--leave-k-out", "1,1", "--random-split", "0.1,0.1"],
        "command line: split: random, leave_k_out exclude each other",
    ),
    "bad_duplicates": (
        "a\tx\tb\n",
        ["--duplicates", "merge"],
        "command line: duplicates=merge: must be 'keep', 'drop' or",
    ),
    "bad_memory": (
        "a\tx\tb\n",
        ["--memory-limit", "much"],
        "--memory-limit much: not an amount of memory; write it as 4GB",
    ),
}


class TestBadInput:
    @pytest.mark.parametrize(("text", "arguments", "message"), BAD.values(), ids=BAD)
    def test_exit_2_a_message_and_nothing_written(self, text, arguments, message, tmp_path):
        (tmp_path / "edges.tsv").write_text(text)
        files = [] if arguments[:1] == ["absent.tsv"] else ["edges.tsv"]
        options = [*arguments, "--json"]
        positional, flags = (options[:1], options[1:]) if not files else (files, options)
        result = rookery("twhin", "ingest", *positional, "graph", *flags, cwd=tmp_path, expect=2)
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert message in result.stderr
        assert "Traceback" not in result.stderr and "DuckDB" not in result.stderr and "duckdb" not in result.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["edges.tsv"]

    def test_a_bad_mapping_names_its_line(self, edges):
        (edges / "ingest.yaml").write_text(
            "entity_types: {user: {}}\n"
            "relations:\n"
            "  - {name: follow, lhs: user, rhs: usr}\n"
            "sources:\n"
            "  - {file: edges.tsv}\n"
        )
        result = rookery("twhin", "ingest", ".", "graph", cwd=edges, expect=2)
        assert "ingest.yaml:5: sources.0: unknown key 'file'; did you mean 'files'?" in result.stderr
        (edges / "ingest.yaml").write_text((edges / "ingest.yaml").read_text().replace("file:", "files:"))
        result = rookery("twhin", "ingest", ".", "graph", cwd=edges, expect=2)
        assert "relation 'follow' names the unknown entity type 'usr'; did you mean 'user'?" in result.stderr
        result = rookery("twhin", "ingest", ".", "graph", "--header", cwd=edges, expect=2)
        assert result.stderr == "error: --header: ingest.yaml says what the files hold; change it there\n"
        result = rookery("twhin", "ingest", ".", "edges.tsv", "graph", cwd=edges, expect=2)
        assert "ingest.yaml: a mapping stands alone" in result.stderr.replace("error: .:", "error: ingest.yaml:")

    def test_a_bad_parquet_row(self, edges):
        table = pa.table({"lhs": ["a"] * 7, "rhs": ["b"] * 5 + [None, "c"]})
        pq.write_table(table, edges / "e.parquet", row_group_size=4)
        result = rookery("twhin", "ingest", "e.parquet", "graph", cwd=edges, expect=2)
        assert result.stderr.startswith("error: e.parquet, row group 1, row 1, column 'rhs' (rhs): is empty")

    def test_what_prepare_refuses(self, edges):
        result = rookery("data", "prepare", "fb15k237", ".", "out", cwd=edges, expect=2)
        assert "holds neither train.txt nor train.txt.gz; download the set from https://" in result.stderr
        rookery("data", "prepare", "fb15k", ".", "out", cwd=edges, expect=2)
        result = rookery("data", "planted", "out", "--p-inside", 2, cwd=edges, expect=2)
        assert result.stderr == "error: p_inside=2: must be a probability, from 0 to 1\n"
        assert [path.name for path in edges.iterdir()] == ["edges.tsv"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_leaves_nothing_behind(number, tmp_path):
    with (tmp_path / "edges.tsv").open("w") as file:
        for block in range(40):
            file.writelines(f"user {i * 7919 % 65537}\tx\titem {i + block}\n" for i in range(50_000))
    command = [sys.executable, "-m", "rookery", "twhin", "ingest", "edges.tsv", "graph"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob(".graph.*")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        os.kill(process.pid, number)
        _, shown = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in shown
    assert [path.name for path in tmp_path.iterdir()] == ["edges.tsv"]
