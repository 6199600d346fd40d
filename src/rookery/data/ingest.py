"""Raw edges into an ingested graph (``docs/graph-format.md``), out of core: DuckDB spills beside the output.

The work: read every file once into one table in row order; count degrees, which gives the vocabularies; join ids to
row numbers; sort by row order; write. About 0.9 µs of one core an edge with string ids (``benchmarks/ingest.py``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from rookery.data.graph import MANIFEST, EntityTypeInfo, Graph, Manifest, RelationInfo, SplitInfo
from rookery.data.ingest_config import SPLITS, IngestConfig
from rookery.data.ingest_edges import assign_splits, merge_duplicates
from rookery.data.ingest_layout import Layout, lay_out
from rookery.data.ingest_load import find_relations, load_edges
from rookery.data.ingest_sources import Source, literal, resolve_sources
from rookery.data.staging import staged
from rookery.errors import DataError, RookeryError, UserError

ROW_GROUP_SIZE = 65_536
"""Edges a row group: what the stream shuffles and seeks by."""

DEFAULT_MEMORY_LIMIT_BYTES = 6_000_000_000

Notify = Callable[[str], None]


def say_nothing(_stage: str) -> None:
    """A ``Notify`` for nobody."""


@dataclass(frozen=True)
class Resources:
    """What an ingest may use. ``memory_limit``: of DuckDB, such as ``4GB``; the process needs about 0.5 GB more."""

    memory_limit: str | None = None  # by default 6 GB, or half of the machine's memory where that is less
    num_threads: int | None = None  # by default every core


def ingest(
    config: IngestConfig,
    folder: Path,
    out: Path,
    *,
    resources: Resources | None = None,
    overwrite: bool = False,
    notify: Notify = say_nothing,
) -> Graph:
    """Write the graph that ``config`` describes to ``out`` and open it.

    Relative paths in ``config`` start at ``folder``. The same files, config and seed give the same bytes, whatever the
    number of threads. Nothing appears at ``out`` before all of it is written; after a failure nothing is left.
    Raises ``DataError`` for bad input, with the place, the value and the remedy.
    """
    sources = resolve_sources(config.sources, folder)
    require_outside(sources, out)
    with (
        staged(out, overwrite=overwrite, marker=MANIFEST) as staging,
        open_database(staging.scratch, resources or Resources()) as db,
    ):
        notify("reading")
        layout = load(db, config, sources)
        merge_duplicates(db, config, layout)
        assign_splits(db, config, layout)
        notify("counting entities")
        entity_types = _write_vocabularies(db, layout, staging.folder)
        notify("writing edges")
        splits = _write_edges(db, layout, staging.folder)
        counts = db.execute("SELECT rel, split, count(*) FROM edge GROUP BY ALL").fetchall()
        write_manifest(staging.folder, config, layout, entity_types, splits, counts)
    return Graph.open(out)


def require_outside(sources: Sequence[Source], out: Path) -> None:
    """Raise ``DataError`` where writing ``out`` would remove what is read."""
    for source in sources:
        if out.resolve() in source.file.resolve().parents:
            raise DataError(f"{source.file}: lies in the graph that is to be written; move it out of {out}")


def load(db: duckdb.DuckDBPyConnection, config: IngestConfig, sources: Sequence[Source]) -> Layout:
    """Fill the table ``edge`` (``data/ingest_load.py``) with the checked edges of ``sources``."""
    layout = lay_out(config, sources, config.relations or find_relations(db, sources))
    load_edges(db, layout)
    return layout


@contextmanager
def open_database(spill: Path, resources: Resources) -> Iterator[duckdb.DuckDBPyConnection]:
    """An in-memory DuckDB that spills to ``spill``. Its errors become ours: what it says is for its developers."""
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": resources.memory_limit or f"{_default_memory_bytes() // 1_000_000}MB",
        "temp_directory": str(spill),
        "preserve_insertion_order": True,
        "autoinstall_known_extensions": False,
    }
    if resources.num_threads is not None:
        settings["threads"] = resources.num_threads
    try:
        db = duckdb.connect(config=settings)
    except duckdb.Error as error:
        raise UserError(f"--memory-limit {resources.memory_limit}: not an amount of memory; write it as 4GB") from error
    try:
        db.execute("SET TimeZone = 'UTC'")
        yield db
    except RuntimeError as error:
        if str(error) == "Query interrupted":  # what DuckDB makes of a KeyboardInterrupt
            raise KeyboardInterrupt from error
        raise
    except duckdb.OutOfMemoryException as error:
        raise RookeryError(
            f"ingest ran out of memory or of disk under {spill.parent.parent}; free some space there, "
            "raise --memory-limit or lower --threads"
        ) from error
    except duckdb.Error as error:
        raise RookeryError(
            f"ingest failed in DuckDB ({type(error).__name__}); free some space under {spill.parent.parent}, "
            "the usual cause, and run it again"
        ) from error
    finally:
        db.close()


def _default_memory_bytes() -> int:
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(DEFAULT_MEMORY_LIMIT_BYTES, installed // 2)


def _write_vocabularies(db: duckdb.DuckDBPyConnection, layout: Layout, graph: Path) -> dict[str, EntityTypeInfo]:
    """One Parquet file an entity type, and the view ``vocabulary`` (type, row, id, on_lhs, on_rhs) for the joins."""
    _count_degrees(db, layout)
    (graph / "vocab").mkdir()
    infos = {}
    for code, (name, id_type) in enumerate(layout.id_types.items()):
        identifier = "id::BIGINT" if id_type == "int64" else "id"
        db.execute(f"""
            CREATE TEMP TABLE vocabulary_{code} AS
            SELECT {identifier} AS entity, lhs_degree, rhs_degree, on_lhs, on_rhs FROM degree WHERE type = {code}
            ORDER BY lhs_degree + rhs_degree DESC, {identifier}
        """)
        path = f"vocab/{name}.parquet"
        query = f"SELECT rowid AS row, entity AS id, lhs_degree, rhs_degree FROM vocabulary_{code} ORDER BY rowid"
        num_entities = copy_rows(db, query, graph / path)
        infos[name] = EntityTypeInfo(num_entities=num_entities, vocab=path, id_type=id_type)
    db.execute("DROP TABLE degree")
    id_sql = layout.id_sql
    union = " UNION ALL ".join(
        f"SELECT {code}::USMALLINT AS type, rowid AS row, entity::{id_sql} AS id, on_lhs, on_rhs FROM vocabulary_{code}"
        for code in range(len(infos))
    )
    db.execute(f"CREATE TEMP VIEW vocabulary AS {union}")
    return infos


def _count_degrees(db: duckdb.DuckDBPyConnection, layout: Layout) -> None:
    """The table ``degree``: every entity, its train edges on either side, and whether any split has it on a side."""
    parts = [
        f"SELECT {side}_type AS type, {side} AS id, {counts} FROM edge JOIN relation USING (rel) GROUP BY ALL"
        for side, counts in (
            ("lhs", "count(*) FILTER (split = 0) AS lhs_degree, 0 AS rhs_degree, true AS on_lhs, false AS on_rhs"),
            ("rhs", "0 AS lhs_degree, count(*) FILTER (split = 0) AS rhs_degree, false AS on_lhs, true AS on_rhs"),
        )
    ]
    parts += [
        f"SELECT {layout.entity_types.index(name)}::USMALLINT, range::{layout.id_sql}, 0, 0, false, false "
        f"FROM range({num_entities})"
        for name, num_entities in layout.num_entities.items()
    ]
    db.execute(f"""
        CREATE TEMP TABLE degree AS
        SELECT type, id, sum(lhs_degree)::BIGINT AS lhs_degree, sum(rhs_degree)::BIGINT AS rhs_degree,
            bool_or(on_lhs) AS on_lhs, bool_or(on_rhs) AS on_rhs
        FROM ({" UNION ALL ".join(parts)}) GROUP BY type, id
    """)


def _write_edges(db: duckdb.DuckDBPyConnection, layout: Layout, graph: Path) -> dict[str, SplitInfo]:
    # nullif: what DuckDB knows to hold no null it writes as required, and what it knows depends on how the edges came.
    rel = "nullif(edge.rel::BIGINT, -1) AS rel"
    weight = ", nullif(edge.weight, -1) AS weight" if layout.weighted else ""
    present = {code for (code,) in db.execute("SELECT DISTINCT split FROM edge").fetchall()}
    splits = {}
    for code, name in enumerate(SPLITS):
        if code not in present:
            continue
        # Entities of the other side stay out of the hash tables: half the memory where users meet items.
        query = f"""
            SELECT l.row AS lhs, {rel}, r.row AS rhs{weight}
            FROM edge JOIN relation USING (rel)
            JOIN vocabulary l ON l.on_lhs AND l.type = lhs_type AND l.id = edge.lhs
            JOIN vocabulary r ON r.on_rhs AND r.type = rhs_type AND r.id = edge.rhs
            WHERE edge.split = {code} ORDER BY edge.rowid
        """
        folder = graph / "edges" / name
        folder.mkdir(parents=True)
        num_edges = copy_rows(db, query, folder / "part-00000.parquet")
        splits[name] = SplitInfo(path=f"edges/{name}", num_edges=num_edges, files=("part-00000.parquet",))
    return splits


def copy_rows(db: duckdb.DuckDBPyConnection, query: str, file: Path) -> int:
    """Write the rows of ``query`` as Parquet; returns how many."""
    (count,) = db.execute(
        f"COPY ({query}) TO {literal(str(file))} (FORMAT parquet, ROW_GROUP_SIZE {ROW_GROUP_SIZE})"
    ).fetchall()[0]
    return int(count)


def write_manifest(
    graph: Path,
    config: IngestConfig,
    layout: Layout,
    entity_types: dict[str, EntityTypeInfo],
    splits: dict[str, SplitInfo],
    counts: Iterable[tuple[int, int, int]],
) -> None:
    """``manifest.json`` and ``relations.parquet``. ``counts``: row number of a relation, code of a split, edges."""
    num_edges = {(rel, split): count for rel, split, count in counts}
    relations = tuple(
        RelationInfo(
            name=relation.name,
            lhs=relation.lhs,
            rhs=relation.rhs,
            num_edges={split: num_edges.get((rel, SPLITS.index(split)), 0) for split in splits},
        )
        for rel, relation in enumerate(layout.relations)
    )
    _write_relations(relations, graph / "relations.parquet")
    manifest = Manifest(
        entity_types=entity_types, relations=relations, splits=splits, weighted=layout.weighted, seed=config.seed
    )
    (graph / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _write_relations(relations: tuple[RelationInfo, ...], file: Path) -> None:
    columns = {
        "rel": pa.array(range(len(relations)), pa.int64()),
        "name": pa.array([relation.name for relation in relations], pa.string()),
        "lhs": pa.array([relation.lhs for relation in relations], pa.string()),
        "rhs": pa.array([relation.rhs for relation in relations], pa.string()),
    }
    for split in relations[0].num_edges:
        columns[f"num_edges_{split}"] = pa.array([relation.num_edges[split] for relation in relations], pa.int64())
    pq.write_table(pa.table(columns), file)
