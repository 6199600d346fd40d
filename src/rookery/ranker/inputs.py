"""What a run knows besides its configuration: vocabularies, joined vectors, masks of columns, types of ids.

inputs/manifest.json                      types of id columns, masks, and the sum of each file
inputs/vocabularies/<table>.parquet       value, count; in the order of the rows of the table
inputs/vectors/<embedding>.safetensors    ids (int64 [n]) and vectors (float32 [n, dim])

A run is scored with this folder alone: the log and the export that it was made of may be gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from rookery.checkpoint.files import DamagedCheckpoint, StoredTensors, file_sum, require_sum
from rookery.data.staging import staged
from rookery.errors import ConfigError, DataError, RunNotFound
from rookery.parallel.world import on_all, on_chief
from rookery.ranker.columns import ColumnPlan
from rookery.ranker.config import RankerConfig
from rookery.ranker.counting import Vocabulary, count_vocabularies, inline_vocabulary
from rookery.ranker.features_config import PartitionConfig
from rookery.ranker.files import missing_files, require_rows
from rookery.ranker.joins import JoinedVectors, check_join, read_join
from rookery.ranker.masks import Mask, preprocess_problems, read_masks
from rookery.ranker.schema import IdType, absent_columns, check_schema, type_problems
from rookery.ranker.shares import count_records, own_rows
from rookery.storage.disk import force_to_disk

INPUTS = "inputs"
"""Folder of a run with its vocabularies and joined vectors."""

MANIFEST = "manifest.json"


class InputsManifest(BaseModel):
    """``manifest.json``. ``files`` holds size and crc32 of every file by its path inside the folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    kind: Literal["rookery ranker inputs"] = "rookery ranker inputs"
    id_types: dict[str, IdType]
    masks: dict[str, Mask]
    vocabularies: tuple[str, ...]
    vectors: tuple[str, ...]
    files: dict[str, dict[str, int | str]]


@dataclass(frozen=True)
class Inputs:
    """``vocabularies`` by table, ``joined`` vectors by embedding, ``masks`` by block, ``id_types`` by column."""

    vocabularies: Mapping[str, Vocabulary]
    joined: Mapping[str, JoinedVectors]
    masks: Mapping[str, Mask]
    id_types: Mapping[str, IdType]

    @property
    def vectors(self) -> dict[str, Tensor]:
        """Joined vectors ``[n, dim]`` (float32) by embedding."""
        return {name: joined.vectors for name, joined in self.joined.items()}

    @classmethod
    def build(cls, config: RankerConfig, earlier: Inputs | None = None) -> Inputs:
        """Count vocabularies in the training rows, read joined vectors and masks.

        Of several processes all call it: each counts a part of the rows, and all come to the same.

        Of ``earlier``, vocabularies and trainable vectors are taken as they are: a model that starts from the weights
        of that run needs its rows. Raises ``DataError`` or ``ConfigError`` naming all that the schemas of all
        partitions and the manifests of all exports tell at once, before anything is read, and ``DataError`` naming all
        partitions without rows.
        """
        partitions = {"train_data": config.train_data} | _validation_fields(config)
        count_records(partitions.values())
        masks = on_all(lambda: read_masks(config.preprocess))
        id_types = on_all(lambda: _check(config, masks))
        on_chief(lambda: require_rows(partitions))
        vocabularies = _vocabularies(config, earlier)
        return cls(vocabularies, on_all(lambda: _joined(config, id_types, earlier)), masks, id_types)

    def write(self, folder: Path) -> None:
        """Write the folder, whole or not at all; one that exists is replaced."""
        with staged(folder, overwrite=True, marker=MANIFEST) as staging:
            out = staging.folder
            for name in ("vocabularies", "vectors"):
                (out / name).mkdir()
            for name, vocabulary in self.vocabularies.items():
                pq.write_table(vocabulary.table, out / _vocabulary_file(name))
            for name, joined in self.joined.items():
                save_file({"ids": joined.ids, "vectors": joined.vectors}, out / _vectors_file(name))
            files = [path for path in sorted(out.rglob("*")) if path.is_file()]
            manifest = InputsManifest(
                id_types=dict(self.id_types),
                masks=dict(self.masks),
                vocabularies=tuple(self.vocabularies),
                vectors=tuple(self.joined),
                files={path.relative_to(out).as_posix(): file_sum(path) for path in files},
            )
            (out / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
            for path in (*files, out / MANIFEST, out):
                force_to_disk(path)

    @classmethod
    def open(cls, folder: Path) -> Inputs:
        """Read what ``write`` wrote, sums compared. Raises ``RunNotFound`` without the folder, ``DataError`` for a
        damaged one.
        """
        manifest = _read_manifest(folder)
        for name, expected in manifest.files.items():
            try:
                require_sum(folder / name, expected)
            except (OSError, DamagedCheckpoint) as error:
                raise DataError(f"{error}; the run's inputs are damaged: restore them, or train again") from error
        vocabularies = {
            name: Vocabulary(pq.read_table(folder / _vocabulary_file(name))) for name in manifest.vocabularies
        }
        joined = {name: _read_vectors(folder / _vectors_file(name)) for name in manifest.vectors}
        return cls(vocabularies, joined, manifest.masks, manifest.id_types)


def _check(config: RankerConfig, masks: Mapping[str, Mask]) -> dict[str, IdType]:
    """All problems of configuration, exports and schemas at once; the types of id columns."""
    problems = [*preprocess_problems(config, masks)]
    problems += [problem for joined in config.features.embeddings if (problem := check_join(joined)) is not None]
    uses = ColumnPlan(config).uses
    types: dict[str, IdType] = {}
    partitions = {"train_data": config.train_data} | _validation_fields(config)
    missing = missing_files(partitions)
    problems += missing.values()
    for partition in (partition for field, partition in partitions.items() if field not in missing):
        try:
            problems += absent_columns(config, partition)
            types = check_schema(config, partition, uses, types)
        except DataError as error:
            problems += str(error).splitlines()
    if not problems:
        problems += type_problems(config, types)
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))  # partitions may share files
    return types


def _validation_fields(config: RankerConfig) -> dict[str, PartitionConfig]:
    return {f"validation_data.{name}": partition for name, partition in config.validation_data.items()}


def _vocabularies(config: RankerConfig, earlier: Inputs | None) -> dict[str, Vocabulary]:
    known = {} if earlier is None else dict(earlier.vocabularies)
    wanted = [table for table in config.features.tables if table.vocabulary is not None and table.name not in known]
    data = config.train_data
    counted = count_vocabularies(config.features, wanted, own_rows(data), data.on_corrupt) if wanted else {}
    inline = {table.name: inline_vocabulary(table) for table in config.features.tables if table.values is not None}
    vocabularies = {**known, **counted, **inline}
    return {table.name: vocabularies[table.name] for table in config.features.tables if table.name in vocabularies}


def _joined(config: RankerConfig, id_types: Mapping[str, IdType], earlier: Inputs | None) -> dict[str, JoinedVectors]:
    known = {} if earlier is None else earlier.joined
    return {
        joined.name: known[joined.name]
        if joined.trainable and joined.name in known
        else read_join(joined, id_types[joined.key])
        for joined in config.features.embeddings
    }


def _read_manifest(folder: Path) -> InputsManifest:
    file = folder / MANIFEST
    try:
        return InputsManifest.model_validate_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunNotFound(f"{file}: {error.strerror or error}; name the save_dir of a ranker's run") from error
    except ValidationError as error:
        raise DataError(f"{file}: not the inputs of a run in format 1; train the run again") from error


def _read_vectors(file: Path) -> JoinedVectors:
    stored = StoredTensors(file)
    return JoinedVectors(stored["ids"], stored["vectors"])


def _vocabulary_file(table: str) -> str:
    return f"vocabularies/{quote(table, safe='')}.parquet"


def _vectors_file(embedding: str) -> str:
    return f"vectors/{quote(embedding, safe='')}.safetensors"
