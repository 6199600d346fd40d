"""Vectors of entities as plain files, opened by whoever needs them: TwHIN writes them, the heavy ranker joins them.

EXPORT/manifest.json                comparator, operators, sides, dimension, source step, and the sum of each file
EXPORT/entities/<type>.parquet      id (string or int64), vector (fixed-size list of float32)
EXPORT/relation_parameters.parquet  relation, operator, direction, parameters (list of float32)

``docs/retrieval.md`` says how a score is made of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor
from typing_extensions import Self

from rookery.checkpoint.files import DamagedCheckpoint, require_sum
from rookery.errors import DataError

MANIFEST = "manifest.json"
RELATION_PARAMETERS = "relation_parameters.parquet"  # no other kind of folder has a file of this name
CHUNK_ROWS = 65_536  # rows in memory beside the table, and in a row group


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


@dataclass(frozen=True)
class VectorExport:
    """An export, opened for reading. A file's sum is compared when the file is first read."""

    path: Path
    manifest: ExportManifest

    @classmethod
    def open(cls, path: Path) -> Self:
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
        return (path / RELATION_PARAMETERS).is_file()

    def vectors(self, entity_type: str) -> Tensor:
        """All vectors ``[num_entities, dim]`` of a type, float32."""
        vectors = torch.empty(self.manifest.entity_types[entity_type], self.manifest.dim)
        start = 0
        with pq.ParquetFile(self.verified(entity_file(entity_type))) as file:
            for batch in file.iter_batches(CHUNK_ROWS, columns=["vector"]):
                flat = batch.column("vector").flatten().to_numpy(zero_copy_only=False)
                vectors[start : start + batch.num_rows] = torch.tensor(flat).view(batch.num_rows, -1)
                start += batch.num_rows
        return vectors

    def ids(self, entity_type: str) -> pa.Table:
        """The ids of a type in row order, as the column ``id``: strings or int64."""
        return pq.read_table(self.verified(entity_file(entity_type)), columns=["id"])

    def verified(self, name: str) -> Path:
        """A file of the export whose sum is right. Raises ``DataError`` if it is missing or damaged."""
        file = self.path / name
        try:
            require_sum(file, self.manifest.files[name])
        except (OSError, DamagedCheckpoint) as error:
            raise DataError(f"{error}; the export is damaged: export the run again") from error
        return file


def entity_file(entity_type: str) -> str:
    """The path of a type's file inside an export."""
    return f"entities/{entity_type}.parquet"
