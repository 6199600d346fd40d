"""A run's vectors as plain files that need neither the run nor Rookery to be read.

EXPORT/manifest.json                comparator, operators, sides, dimension, source step, and the sum of each file
EXPORT/entities/<type>.parquet      id (string or int64), vector (fixed-size list of float32)
EXPORT/relation_parameters.parquet  relation, operator, direction, parameters (list of float32)

``docs/retrieval.md`` says how a score is made of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from rookery.checkpoint.files import DamagedCheckpoint, file_sum, require_sum
from rookery.data.graph import Vocabulary
from rookery.data.staging import staged
from rookery.errors import DataError
from rookery.twhin.embeddings import Embeddings, ScoredRelation
from rookery.twhin.score import parameter_key
from rookery.types import Side

MANIFEST = "manifest.json"
_RELATIONS = "relation_parameters.parquet"  # no other kind of folder has a file of this name
_CHUNK_ROWS = 65_536  # rows in memory beside the table, and in a row group

V = TypeVar("V")


class RelationEntry(BaseModel):
    """A relation of the manifest; its place in the list is its number."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    lhs: str
    rhs: str
    operator: str


class ExportManifest(BaseModel):
    """``manifest.json``. ``files`` holds size and crc32 of every file by its path inside the export."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    kind: Literal["rookery twhin export"] = "rookery twhin export"
    comparator: Literal["dot", "cosine", "l2", "l1"]
    operator_side: Literal["lhs", "rhs", "both"]
    dim: int
    entity_types: dict[str, int]
    """Number of entities."""
    relations: tuple[RelationEntry, ...]
    run: str
    step: int
    files: dict[str, dict[str, int | str]]


class LazyMapping(Mapping[str, V]):
    """Values that are loaded when first asked for, and kept."""

    def __init__(self, names: Sequence[str], load: Callable[[str], V]) -> None:
        self._names = tuple(names)
        self._load = functools.cache(load)

    def __getitem__(self, name: str) -> V:
        if name not in self._names:
            raise KeyError(name)
        return self._load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def write_export(
    embeddings: Embeddings, vocabularies: Mapping[str, Vocabulary], out: Path, *, run: str, step: int, overwrite: bool
) -> ExportManifest:
    """Write an export, whole or not at all; one chunk of rows at a time is in memory beside the tables.

    Raises ``DataError`` if ``out`` exists and is not to be replaced.
    """
    with staged(out, overwrite=overwrite, marker=_RELATIONS) as staging:
        (staging.folder / "entities").mkdir()
        for name, rows in embeddings.rows.items():
            _write_entities(staging.folder / _entity_file(name), vocabularies[name], rows)
        _write_relations(staging.folder / _RELATIONS, embeddings)
        manifest = _manifest(embeddings, run, step, staging.folder)
        (staging.folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return manifest


@dataclass(frozen=True)
class Export:
    """An export, opened for reading. A file's sum is compared when the file is first read."""

    path: Path
    manifest: ExportManifest

    @classmethod
    def open(cls, path: Path) -> Export:
        """Raises ``DataError`` if ``path`` is no export or one of another format."""
        file = path / MANIFEST
        try:
            return cls(path, ExportManifest.model_validate_json(file.read_text(encoding="utf-8")))
        except OSError as error:
            reason = error.strerror or "cannot be read"
            raise DataError(f"{file}: {reason}; name the folder that 'rookery twhin export RUN OUT' wrote") from error
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "the file"
            remedy = "not an export of format 1: export the run again"
            raise DataError(f"{file}: {field}: {first['msg']}; {remedy}") from error

    @staticmethod
    def lies_at(path: Path) -> bool:
        """Whether a folder holds an export, damaged or not."""
        return (path / _RELATIONS).is_file()

    def vectors(self, entity_type: str) -> Tensor:
        """All vectors ``[num_entities, dim]`` of a type, float32."""
        vectors = torch.empty(self.manifest.entity_types[entity_type], self.manifest.dim)
        start = 0
        with pq.ParquetFile(self._verified(_entity_file(entity_type))) as file:
            for batch in file.iter_batches(_CHUNK_ROWS, columns=["vector"]):
                flat = batch.column("vector").flatten().to_numpy(zero_copy_only=False)
                vectors[start : start + batch.num_rows] = torch.tensor(flat).view(batch.num_rows, -1)
                start += batch.num_rows
        return vectors

    def vocabulary(self, entity_type: str) -> Vocabulary:
        """The ids of a type in row order."""
        return Vocabulary(entity_type, pq.read_table(self._verified(_entity_file(entity_type)), columns=["id"]))

    def embeddings(self) -> Embeddings:
        """Ready to score; a type's vectors are read when they are first needed."""
        relations = tuple(ScoredRelation(**entry.model_dump()) for entry in self.manifest.relations)
        rows = LazyMapping(tuple(self.manifest.entity_types), self.vectors)
        return Embeddings(
            relations, self.manifest.comparator, self.manifest.operator_side, rows, self._parameters(relations)
        )

    def _parameters(self, relations: tuple[ScoredRelation, ...]) -> dict[tuple[int, Side], Tensor]:
        table = pq.read_table(self._verified(_RELATIONS), columns=["relation", "direction", "parameters"]).to_pydict()
        stored = dict(zip(zip(table["relation"], table["direction"], strict=True), table["parameters"], strict=True))
        return {
            (number, side): torch.tensor(stored[relation.name, self._direction(relation, side)], dtype=torch.float32)
            for number, relation in enumerate(relations)
            for side in Side
        }

    def _direction(self, relation: ScoredRelation, side: Side) -> str:
        return parameter_key(relation.operator, self.manifest.operator_side, side)[1]

    def _verified(self, name: str) -> Path:
        file = self.path / name
        try:
            require_sum(file, self.manifest.files[name])
        except (OSError, DamagedCheckpoint) as error:
            raise DataError(f"{error}; the export is damaged: export the run again") from error
        return file


def _entity_file(name: str) -> str:
    return f"entities/{name}.parquet"


def _write_entities(file: Path, vocabulary: Vocabulary, rows: Tensor) -> None:
    num_rows, dim = rows.shape
    schema = pa.schema([("id", vocabulary.id_type), ("vector", pa.list_(pa.float32(), dim))])
    # Vectors neither repeat nor compress: a dictionary and a codec would cost time and save nothing.
    with pq.ParquetWriter(file, schema, use_dictionary=False, compression={"id": "zstd", "vector": "none"}) as writer:
        for start in range(0, num_rows, _CHUNK_ROWS):
            chunk = rows[start : start + _CHUNK_ROWS].float().cpu().numpy()
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(chunk.reshape(-1)), dim)
            ids = vocabulary.table.column("id").slice(start, len(chunk)).combine_chunks()
            writer.write_batch(pa.record_batch([ids, vectors], schema=schema))


def _write_relations(file: Path, embeddings: Embeddings) -> None:
    columns: dict[str, list[object]] = {"relation": [], "operator": [], "direction": [], "parameters": []}
    for number, relation in enumerate(embeddings.relations):
        keys = {parameter_key(relation.operator, embeddings.operator_side, side): side for side in Side}
        for (_, direction), side in keys.items():
            columns["relation"].append(relation.name)
            columns["operator"].append(relation.operator)
            columns["direction"].append(direction)
            columns["parameters"].append(embeddings.parameters[number, side].cpu().numpy().astype(np.float32))
    types = [pa.string(), pa.string(), pa.string(), pa.list_(pa.float32())]
    pq.write_table(pa.table(columns, schema=pa.schema(list(zip(columns, types, strict=True)))), file)


def _manifest(embeddings: Embeddings, run: str, step: int, folder: Path) -> ExportManifest:
    names = [_RELATIONS, *(_entity_file(name) for name in embeddings.rows)]
    return ExportManifest.model_validate(
        {
            "comparator": embeddings.comparator,
            "operator_side": embeddings.operator_side,
            "dim": next(iter(embeddings.rows.values())).shape[1],
            "entity_types": {name: len(rows) for name, rows in embeddings.rows.items()},
            "relations": [vars(relation) for relation in embeddings.relations],
            "run": run,
            "step": step,
            "files": {name: file_sum(folder / name) for name in names},
        }
    )
