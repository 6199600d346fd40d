"""A run's vectors as plain files that need neither the run nor Rookery to be read: ``train/vector_export.py``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from rookery.checkpoint.files import file_sum
from rookery.data.graph import Vocabulary
from rookery.data.staging import staged
from rookery.train.vector_export import (
    CHUNK_ROWS,
    MANIFEST,
    RELATION_PARAMETERS,
    ExportManifest,
    VectorExport,
    entity_file,
)
from rookery.twhin.embeddings import Embeddings, ScoredRelation
from rookery.twhin.score import parameter_key
from rookery.types import Side

V = TypeVar("V")


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
    with staged(out, overwrite=overwrite, marker=RELATION_PARAMETERS) as staging:
        (staging.folder / "entities").mkdir()
        for name, rows in embeddings.rows.items():
            _write_entities(staging.folder / entity_file(name), vocabularies[name], rows)
        _write_relations(staging.folder / RELATION_PARAMETERS, embeddings)
        manifest = _manifest(embeddings, run, step, staging.folder)
        (staging.folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return manifest


class Export(VectorExport):
    """An export with what scores its vectors."""

    def vocabulary(self, entity_type: str) -> Vocabulary:
        """The ids of a type in row order."""
        return Vocabulary(entity_type, self.ids(entity_type))

    def embeddings(self) -> Embeddings:
        """Ready to score; a type's vectors are read when they are first needed."""
        relations = tuple(ScoredRelation(**entry.model_dump()) for entry in self.manifest.relations)
        rows = LazyMapping(tuple(self.manifest.entity_types), self.vectors)
        return Embeddings(
            relations, self.manifest.comparator, self.manifest.operator_side, rows, self._parameters(relations)
        )

    def _parameters(self, relations: tuple[ScoredRelation, ...]) -> dict[tuple[int, Side], Tensor]:
        table = pq.read_table(
            self.verified(RELATION_PARAMETERS), columns=["relation", "direction", "parameters"]
        ).to_pydict()
        stored = dict(zip(zip(table["relation"], table["direction"], strict=True), table["parameters"], strict=True))
        return {
            (number, side): torch.tensor(stored[relation.name, self._direction(relation, side)], dtype=torch.float32)
            for number, relation in enumerate(relations)
            for side in Side
        }

    def _direction(self, relation: ScoredRelation, side: Side) -> str:
        return parameter_key(relation.operator, self.manifest.operator_side, side)[1]


def _write_entities(file: Path, vocabulary: Vocabulary, rows: Tensor) -> None:
    num_rows, dim = rows.shape
    schema = pa.schema([("id", vocabulary.id_type), ("vector", pa.list_(pa.float32(), dim))])
    # Vectors neither repeat nor compress: a dictionary and a codec would cost time and save nothing.
    with pq.ParquetWriter(file, schema, use_dictionary=False, compression={"id": "zstd", "vector": "none"}) as writer:
        for start in range(0, num_rows, CHUNK_ROWS):
            chunk = rows[start : start + CHUNK_ROWS].float().cpu().numpy()
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
    names = [RELATION_PARAMETERS, *(entity_file(name) for name in embeddings.rows)]
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
