"""An ingested graph on disk: typed edges as row numbers, a vocabulary per entity type, a manifest.

The layout is a contract, described in ``docs/graph-format.md``; ``data/ingest.py`` writes it, everything else reads
it through ``Graph.open``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from rookery.config.base import StrictModel
from rookery.data.parquet import read_parquet
from rookery.errors import DataError
from rookery.storage.location import Location, as_location
from rookery.storage.remote import files_under
from rookery.types import Side

FORMAT: Literal[1] = 1
MANIFEST = "manifest.json"

IdType = Literal["string", "int64"]


class EntityTypeInfo(StrictModel):
    """One entity type: its rows are ``0 … num_entities - 1``, its ids lie in ``vocab`` (a path inside the graph)."""

    num_entities: int = Field(ge=0)
    vocab: str
    id_type: IdType


class RelationInfo(StrictModel):
    """One relation: entity types of its two sides and its number of edges in each split."""

    name: str
    lhs: str
    rhs: str
    num_edges: dict[str, int]


class SplitInfo(StrictModel):
    """One split: ``files`` are names inside ``path``, which is a path inside the graph."""

    path: str
    num_edges: int = Field(ge=0)
    files: tuple[str, ...]


class Manifest(StrictModel):
    """``manifest.json``. The position of a relation in ``relations`` is its row number, the ``rel`` of an edge."""

    format: Literal[1] = FORMAT
    entity_types: dict[str, EntityTypeInfo]
    relations: tuple[RelationInfo, ...]
    splits: dict[str, SplitInfo]
    weighted: bool
    seed: int


@dataclass(frozen=True)
class Vocabulary:
    """The ids of one entity type in row order: by falling train degree, so that popular rows are adjacent."""

    entity_type: str
    table: pa.Table  # columns id, lhs_degree, rhs_degree; row i of the table is row number i

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def id_type(self) -> pa.DataType:
        """The Arrow type of the ids: string or int64."""
        return self.table.schema.field("id").type

    def rows(self, ids: Sequence[str] | Sequence[int] | pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
        """Row numbers ``[len(ids)]`` of ``ids``, -1 for an id that the graph does not have.

        Integers and their decimal strings are both understood, whichever the vocabulary holds. Scans the vocabulary
        once (about 20 ns an entity) instead of keeping a hash table of it.
        """
        if not isinstance(ids, (pa.Array, pa.ChunkedArray)):
            ids = pa.array([str(entity) for entity in ids], pa.string())
        wanted = _cast_ids(ids, self.id_type)
        distinct = pc.drop_null(pc.unique(wanted))
        hits = _numpy(pc.fill_null(pc.index_in(self.table.column("id"), value_set=distinct), -1))
        row_of_distinct = np.full(len(distinct) + 1, -1, dtype=np.int64)  # the last one answers for "not among them"
        found = np.flatnonzero(hits >= 0)
        row_of_distinct[hits[found]] = found
        return row_of_distinct[_numpy(pc.fill_null(pc.index_in(wanted, value_set=distinct), -1))]

    def ids(self, rows: NDArray[np.int64] | Sequence[int]) -> list[str] | list[int]:
        """The ids ``[len(rows)]`` of row numbers, as strings or integers as the vocabulary holds them."""
        taken: list[str] | list[int] = self.table.column("id").take(pa.array(rows, pa.int64())).to_pylist()
        return taken

    def degrees(self, side: Side) -> NDArray[np.int64]:
        """Train edges ``[num_entities]`` that have each entity on ``side``."""
        return _numpy(self.table.column(f"{side.value}_degree"))


@dataclass(frozen=True)
class Graph:
    """An ingested graph, opened for reading."""

    path: Location
    manifest: Manifest

    @classmethod
    def open(cls, path: Location) -> Graph:
        """Read and check the manifest; every file that it names must exist.

        Raises ``DataError`` if ``path`` holds no graph, one of another format, or one with files missing.
        """
        path = as_location(path)
        graph = cls(path, _read_manifest(path))
        graph._require_files()
        return graph

    @property
    def entity_types(self) -> Mapping[str, EntityTypeInfo]:
        return self.manifest.entity_types

    @property
    def relations(self) -> tuple[RelationInfo, ...]:
        return self.manifest.relations

    @property
    def splits(self) -> Mapping[str, SplitInfo]:
        return self.manifest.splits

    @property
    def weighted(self) -> bool:
        return self.manifest.weighted

    def num_edges(self, split: str) -> int:
        return self._split(split).num_edges

    def split_files(self, split: str) -> list[Location]:
        """Parquet files of a split, in order: lhs, rel, rhs (int64) and, in a weighted graph, weight (float32)."""
        info = self._split(split)
        return [self.path / info.path / name for name in info.files]

    def vocabulary(self, entity_type: str) -> Vocabulary:
        """The vocabulary of an entity type, read whole: 16 bytes and the id an entity."""
        info = self.entity_types.get(entity_type)
        if info is None:
            known = ", ".join(self.entity_types)
            raise DataError(f"{self.path}: no entity type '{entity_type}'; this graph has {known}")
        return Vocabulary(entity_type, _read_vocabulary(self.vocabulary_file(entity_type), info.num_entities))

    def vocabulary_file(self, entity_type: str) -> Location:
        """The Parquet file of a vocabulary, of an entity type that the graph has."""
        return self.path / self.entity_types[entity_type].vocab

    def _split(self, split: str) -> SplitInfo:
        info = self.splits.get(split)
        if info is None:
            known = ", ".join(self.splits)
            raise DataError(
                f"{self.path}: no split '{split}'; this graph has {known}; "
                "ask for it when ingesting: --valid, --test or --split"
            )
        return info

    def _require_files(self) -> None:
        named = [self.vocabulary_file(name) for name in self.entity_types]
        named += [file for split in self.splits for file in self.split_files(split)]
        missing = _absent(self.path, named)
        if missing:
            raise DataError(
                f"{missing[0]}: named by {self.path / MANIFEST} and absent ({len(missing)} in all); "
                "ingest the graph again"
            )


def _absent(folder: Location, files: Sequence[Location]) -> list[Location]:
    """Which of ``files``, all of them inside ``folder``, are not there."""
    if isinstance(folder, Path):
        return [file for file in files if isinstance(file, Path) and not file.is_file()]
    present = {str(folder / name) for name in files_under(folder)}
    return [file for file in files if str(file) not in present]


def _read_manifest(path: Location) -> Manifest:
    file = path / MANIFEST
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise DataError(f"{file}: {reason}; name the folder that 'rookery twhin ingest EDGES GRAPH' wrote") from error
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(
            f"{file}: {field}: {first['msg']}; not a graph of format {FORMAT}: "
            "ingest it again with this version of Rookery"
        ) from error


def _read_vocabulary(file: Location, num_entities: int) -> pa.Table:
    try:
        table = read_parquet(file, ["id", "lhs_degree", "rhs_degree"])
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{file}: not a vocabulary that can be read; ingest the graph again") from error
    if table.num_rows != num_entities:
        raise DataError(f"{file}: {table.num_rows} rows where the manifest says {num_entities}; ingest the graph again")
    return table


def _cast_ids(ids: pa.Array | pa.ChunkedArray, wanted: pa.DataType) -> pa.Array | pa.ChunkedArray:
    if pa.types.is_integer(wanted) and not pa.types.is_integer(ids.type):
        canonical = pc.match_substring_regex(
            ids, r"^(0|-?[1-9][0-9]{0,17})$"
        )  # anything else cannot be the id of a row
        ids = pc.if_else(canonical, ids, None)
    return ids.cast(wanted)


def _numpy(column: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    return np.asarray(column.to_numpy(), dtype=np.int64)
