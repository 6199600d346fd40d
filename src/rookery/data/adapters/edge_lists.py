"""What every adapter leaves: Parquet edge lists and the mapping that tells the ingest how to read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from rookery.data.ingest_sources import literal
from rookery.errors import DataError

MAPPING = "ingest.yaml"
"""The mapping file of a prepared folder: ``rookery twhin ingest FOLDER GRAPH`` finds it by this name."""


@dataclass(frozen=True)
class Prepared:
    """A prepared folder and the number of edges in each of its files, by name without suffix."""

    path: Path
    num_edges: dict[str, int]


def find_raw(folder: Path, name: str, download: str) -> Path:
    """``name`` in ``folder``, plain or as ``.gz``. ``DataError`` where it is absent, saying where to get it."""
    for candidate in (folder / f"{name}.gz", folder / name):
        if candidate.is_file():
            return candidate
    raise DataError(f"{folder}: holds neither {name} nor {name}.gz; download the set from {download}")


def write_query(db: duckdb.DuckDBPyConnection, query: str, file: Path) -> None:
    """The rows of ``query`` as a Parquet file."""
    db.execute(f"COPY ({query}) TO {literal(str(file))} (FORMAT parquet, COMPRESSION zstd)")


def finish(folder: Path, mapping: str, out: Path) -> Prepared:
    """Write the mapping and count what the Parquet files of ``folder`` hold; ``out`` is where the folder ends up."""
    (folder / MAPPING).write_text(mapping, encoding="utf-8")
    files = sorted(folder.glob("*.parquet"))
    return Prepared(out, {file.stem: pq.read_metadata(file).num_rows for file in files})
