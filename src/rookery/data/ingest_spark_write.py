"""Vocabularies and edges from Spark to the files of a graph.

Spark sorts to intermediate files in parallel; one task a final file copies its share of them with DuckDB, which is
the writer of ``data/ingest.py``, too: equal rows give equal bytes.
"""

from __future__ import annotations

import re
import uuid
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812

from rookery.data.graph import EntityTypeInfo, SplitInfo
from rookery.data.ingest import copy_rows
from rookery.data.ingest_config import SPLITS, IngestConfig
from rookery.data.ingest_edges import require_edges
from rookery.data.ingest_layout import Layout
from rookery.data.ingest_sources import parquet_sql
from rookery.data.staging import Staging

_PART = re.compile(r"part-(\d+)-")

EdgeCount = tuple[int, int, int]
"""Row number of a relation, code of a split, edges."""


@dataclass(frozen=True)
class SortedFile:
    """One of the files that together hold a sorted table. ``start``: rows in those before it."""

    path: Path
    start: int
    num_rows: int


@dataclass(frozen=True)
class _Copy:
    """A final file: columns of ``num_rows`` rows behind the first ``skip`` of ``files``."""

    files: tuple[Path, ...]
    columns: str
    skip: int
    num_rows: int
    out: Path


def sorted_files(table: DataFrame, folder: Path) -> list[SortedFile]:
    """Write a table that is sorted as a whole; the files in their order. Reads their footers on the driver."""
    table.write.parquet(f"file://{folder}")
    paths = sorted(folder.glob("part-*.parquet"), key=_partition)
    files: list[SortedFile] = []
    start = 0
    for path in paths:
        num_rows = pq.read_metadata(path).num_rows
        files.append(SortedFile(path, start, num_rows))
        start += num_rows
    return files


def _partition(path: Path) -> int:
    found = _PART.match(path.name)
    assert found is not None, f"{path} is not named as Spark names its files"
    return int(found[1])


def count_edges(spark: SparkSession, config: IngestConfig) -> list[EdgeCount]:
    """Edges of each relation in each split. Raises ``DataError`` if a split that was asked for has none."""
    counts = [tuple(row) for row in spark.sql("SELECT rel, split, count(*) FROM edge GROUP BY rel, split").collect()]
    by_split = {code: sum(count for _, split, count in counts if split == code) for code in range(len(SPLITS))}
    require_edges(config, {code: count for code, count in by_split.items() if count})
    return counts


def write_vocabularies(spark: SparkSession, layout: Layout, staging: Staging) -> dict[str, EntityTypeInfo]:
    """One file an entity type, and the view ``vocabulary`` (type, row, id) for the joins."""
    degrees = _count_degrees(spark, layout, staging.scratch / "degrees")
    (staging.folder / "vocab").mkdir()
    copies = [_copy_of_vocabulary(degrees, code, layout, staging) for code in range(len(layout.entity_types))]
    _copy_all(spark, copies)
    _view_vocabularies(spark, layout, [copy.out for copy in copies])
    return {
        name: EntityTypeInfo(num_entities=copy.num_rows, vocab=f"vocab/{name}.parquet", id_type=id_type)
        for (name, id_type), copy in zip(layout.id_types.items(), copies, strict=True)
    }


def _count_degrees(spark: SparkSession, layout: Layout, folder: Path) -> DataFrame:
    """Every entity with its type and its train edges on either side."""
    train = "count_if(split = 0)"
    parts = [
        f"SELECT {side}_type AS type, {side} AS id, {lhs} AS lhs_degree, {rhs} AS rhs_degree "
        f"FROM edge JOIN relation USING (rel) GROUP BY {side}_type, {side}"
        for side, lhs, rhs in (("lhs", train, "0"), ("rhs", "0", train))
    ]
    parts += [
        f"SELECT {layout.entity_types.index(name)}, id::{layout.id_sql}, 0, 0 FROM range({num_entities})"
        for name, num_entities in layout.num_entities.items()
    ]
    degrees = spark.sql(f"""
        SELECT type, id, sum(lhs_degree) AS lhs_degree, sum(rhs_degree) AS rhs_degree
        FROM ({" UNION ALL ".join(parts)}) GROUP BY type, id
    """)
    degrees.write.parquet(f"file://{folder}")
    return spark.read.parquet(f"file://{folder}")


def _copy_of_vocabulary(degrees: DataFrame, code: int, layout: Layout, staging: Staging) -> _Copy:
    name = layout.entity_types[code]
    identifier = "id::BIGINT AS id" if layout.id_types[name] == "int64" else "id"
    entities = degrees.where(f"type = {code}").selectExpr(identifier, "lhs_degree", "rhs_degree")
    by_degree = entities.orderBy(F.expr("lhs_degree + rhs_degree").desc(), "id")
    files = sorted_files(by_degree, staging.scratch / "vocab" / name)
    columns = "row_number() OVER () - 1 AS row, id, lhs_degree, rhs_degree"
    num_entities = sum(file.num_rows for file in files)
    return _Copy(tuple(file.path for file in files), columns, 0, num_entities, staging.folder / f"vocab/{name}.parquet")


def _view_vocabularies(spark: SparkSession, layout: Layout, files: Sequence[Path]) -> None:
    parts: list[DataFrame] = []
    for code, file in enumerate(files):
        table = spark.read.parquet(f"file://{file}")
        parts.append(table.selectExpr(f"{code} AS type", "row", f"id::{layout.id_sql} AS id"))
    reduce(DataFrame.unionByName, parts).createOrReplaceTempView("vocabulary")


def write_edges(
    spark: SparkSession, layout: Layout, counts: Sequence[EdgeCount], staging: Staging, edges_per_file: int
) -> dict[str, SplitInfo]:
    """The edges of each split in the order of their rows, ``edges_per_file`` a file."""
    columns = ["lhs", "rel", "rhs", *(["weight"] if layout.weighted else [])]
    files = _sort_edges(spark, layout, columns, staging.scratch / "edges")
    copies, splits, start = [], {}, 0
    for code, name in enumerate(SPLITS):
        num_edges = sum(count for _, split, count in counts if split == code)
        if not num_edges:
            continue
        folder = staging.folder / "edges" / name
        folder.mkdir(parents=True)
        parts: list[str] = []
        for first in range(0, num_edges, edges_per_file):
            parts.append(f"part-{len(parts):05d}.parquet")
            rows = range(start + first, start + min(first + edges_per_file, num_edges))
            copies.append(_copy_of_rows(files, rows, columns, folder / parts[-1]))
        splits[name] = SplitInfo(path=f"edges/{name}", num_edges=num_edges, files=tuple(parts))
        start += num_edges
    _copy_all(spark, copies)
    return splits


def _sort_edges(spark: SparkSession, layout: Layout, columns: Sequence[str], folder: Path) -> list[SortedFile]:
    weight = ", edge.weight" if layout.weighted else ""
    edges = spark.sql(f"""
        SELECT edge.split, edge.row, l.row AS lhs, edge.rel::BIGINT AS rel, r.row AS rhs{weight}
        FROM edge JOIN relation USING (rel)
        JOIN vocabulary l ON l.type = lhs_type AND l.id = edge.lhs
        JOIN vocabulary r ON r.type = rhs_type AND r.id = edge.rhs
    """)
    return sorted_files(edges.orderBy("split", "row").select(*columns), folder)


def _copy_of_rows(files: Sequence[SortedFile], rows: range, columns: Sequence[str], out: Path) -> _Copy:
    first = bisect_right([file.start for file in files], rows.start) - 1
    touched = [file for file in files[first:] if file.start < rows.stop]
    paths = tuple(file.path for file in touched)
    return _Copy(paths, ", ".join(columns), rows.start - touched[0].start, len(rows), out)


def _copy_all(spark: SparkSession, copies: Sequence[_Copy]) -> None:
    """One task a file."""
    spark.sparkContext.parallelize(copies, len(copies)).foreach(_copy_file)


def _copy_file(copy: _Copy) -> None:
    """Runs on an executor, maybe twice: the file appears when it is whole."""
    hidden = copy.out.with_name(f".{uuid.uuid4().hex}")
    query = f"SELECT {copy.columns} FROM {parquet_sql(copy.files)} LIMIT {copy.num_rows} OFFSET {copy.skip}"
    with duckdb.connect(config={"threads": 1}) as db:  # a task has one core
        copy_rows(db, query, hidden)
    hidden.replace(copy.out)
