"""What the ingest tests share: writing edges, ingesting them, reading a graph back as ids, and a naive ingest."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rookery.config.loader import parse_config
from rookery.data.graph import Graph
from rookery.data.ingest import Resources, ingest
from rookery.data.ingest_config import IngestConfig

Edge = tuple[Any, ...]

EDGES = [("a", "likes", "b"), ("c", "likes", "b"), ("a", "hates", "c"), ("b", "likes", "a"), ("d", "hates", "b")]
USERS_AND_POSTS = [
    {"name": "follow", "lhs": "user", "rhs": "user"},
    {"name": "like", "lhs": "user", "rhs": "post"},
]


def write_lines(file: Path, rows: Iterable[Sequence[Any]], delimiter: str = "\t") -> Path:
    file.write_text("".join(delimiter.join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
    return file


def run(
    out: Path, *, threads: int | None = None, memory: str | None = None, overwrite: bool = False, **fields: Any
) -> Graph:
    """Ingest with the fields of a mapping; ``sources`` may be a single file."""
    sources = fields.pop("sources")
    if isinstance(sources, (str, Path)):
        sources = [{"files": str(sources)}]
    config = parse_config(IngestConfig, {"sources": sources, **fields}, "test")
    return ingest(config, Path(), out, resources=Resources(memory, threads), overwrite=overwrite)


def edges_of(graph: Graph, split: str = "train") -> list[Edge]:
    """The edges of a split as ``(lhs id, relation, rhs id[, weight])``, in their order."""
    vocabularies = {
        name: graph.vocabulary(name).ids(range(info.num_entities)) for name, info in graph.entity_types.items()
    }
    edges: list[Edge] = []
    for file in graph.split_files(split):
        for row in pq.read_table(file).to_pylist():
            relation = graph.relations[row["rel"]]
            edge = (vocabularies[relation.lhs][row["lhs"]], relation.name, vocabularies[relation.rhs][row["rhs"]])
            edges.append((*edge, row["weight"]) if graph.weighted else edge)
    return edges


def naive_vocabulary(train: Iterable[Edge], held_out: Iterable[Edge] = ()) -> list[tuple[Any, int, int]]:
    """``(id, lhs_degree, rhs_degree)`` of one entity type by falling total train degree, ties by id."""
    train = list(train)
    lhs, rhs = Counter(edge[0] for edge in train), Counter(edge[2] for edge in train)
    ids = {edge[side] for edge in [*train, *held_out] for side in (0, 2)}
    return sorted(((i, lhs[i], rhs[i]) for i in ids), key=lambda one: (-one[1] - one[2], one[0]))


def vocabulary_of(graph: Graph, entity_type: str = "entity") -> list[tuple[Any, int, int]]:
    table = pq.read_table(graph.path / graph.entity_types[entity_type].vocab)
    assert table.column("row").to_pylist() == list(range(table.num_rows))
    return list(zip(*(table.column(name).to_pylist() for name in ("id", "lhs_degree", "rhs_degree")), strict=True))


def digests(graph: Graph) -> dict[str, str]:
    """A digest of every file of the graph."""
    files = sorted(path for path in graph.path.rglob("*") if path.is_file())
    return {str(file.relative_to(graph.path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
