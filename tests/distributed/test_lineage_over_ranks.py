"""A run's graph against that which it began with: processes read a part each, and all learn the sum of the whole."""

from __future__ import annotations

import errno
import time
import zlib
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ranks import run_ranks
from small_graph import make_config, planted_splits, write_graph

from rookery.data.graph import Graph
from rookery.errors import DataError
from rookery.parallel.world import rank
from rookery.twhin.lineage import edge_sum, entity_sums
from rookery.twhin.train import train_twhin


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    return write_graph(tmp_path / "graph", planted_splits(), num_files=3)


def read_sums(path: Path) -> tuple[dict[str, str], str, int]:
    """The sums of a graph, and how many bytes of its edges this process read for them."""
    graph = Graph.open(path)
    entities = entity_sums(graph)
    with mock.patch("rookery.data.file_sums.zlib_ng.crc32", wraps=zlib.crc32) as crc32:
        edges = edge_sum(graph)
    return entities, edges, sum(len(call.args[0]) for call in crc32.call_args_list)


@pytest.mark.parametrize("world_size", [2, 3])
def test_sums_are_those_of_one_process_and_no_process_reads_all(graph: Graph, world_size: int) -> None:
    whole = b"".join(file.read_bytes() for file in graph.split_files("train"))
    expected = {name: f"{zlib.crc32(graph.vocabulary_file(name).read_bytes()):08x}" for name in graph.entity_types}
    found = run_ranks(world_size, read_sums, graph.path)
    for entities, edges, num_bytes in found:
        assert (entities, edges) == (expected, f"{zlib.crc32(whole):08x}")
        assert num_bytes <= len(whole) // world_size + 1
    assert sum(num_bytes for *_, num_bytes in found) == len(whole)


def train(graph: Path, save_dir: Path, num_steps: int) -> str:
    """Train on; what was wrong with the graph."""
    fields = {"training.num_train_steps": num_steps, "parallel.num_lanes": 2}
    try:
        train_twhin(make_config(Graph.open(graph), save_dir, fields))
    except DataError as error:
        return str(error)
    return ""


def train_unread(graph: Path, save_dir: Path, unread: str, problem: Exception) -> tuple[str, float]:
    """Train on where the last process cannot read what it is to read of the graph; what was said, after how long."""
    config = make_config(Graph.open(graph), save_dir, {"parallel.num_lanes": 2})
    begun = time.monotonic()
    with mock.patch(unread, side_effect=problem) if rank() == 1 else nullcontext():
        try:
            train_twhin(config)
        except DataError as error:
            return str(error), time.monotonic() - begun
    return "", 0.0


@pytest.mark.parametrize(
    ("unread", "problem", "said"),
    [
        ("file_sums._crc32", OSError(errno.EIO, "Input/output error"), "cannot be read (Input/output error); restore"),
        ("graph._read_manifest", DataError("it is not here"), "it is not here"),
        ("stream.list_row_groups", DataError("no such file"), "no such file"),
    ],
)
def test_where_one_process_cannot_read_its_part_all_stop_and_it_says_why(
    graph: Graph, tmp_path: Path, unread: str, problem: Exception, said: str
) -> None:
    run = tmp_path / "run"
    train_twhin(make_config(graph, run, {"training.num_train_steps": 2, "parallel.num_lanes": 2}))
    (peer, peer_s), (cause, cause_s) = run_ranks(2, train_unread, graph.path, run, f"rookery.data.{unread}", problem)
    assert said in cause
    assert peer == cause
    assert max(peer_s, cause_s) < 20


def test_every_process_refuses_a_graph_that_was_written_anew(graph: Graph, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_ranks(2, train, graph.path, run, 2) == ["", ""]
    assert run_ranks(1, train, graph.path, run, 4) == [""]
    assert run_ranks(2, train, graph.path, run, 6) == ["", ""]
    file = graph.split_files("train")[1]
    assert isinstance(file, Path)
    edges = pq.read_table(file)
    pq.write_table(edges.set_column(2, "rhs", pa.array(edges["rhs"].to_pylist()[::-1])), file)
    first, second = run_ranks(2, train, graph.path, run, 8)
    assert first == second
    assert f"its training edges are not those that {run} began with" in first
