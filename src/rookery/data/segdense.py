"""Segdense schemas: which features a record has, and the Arrow columns that they become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import Field, ValidationError

from rookery.config.base import StrictModel
from rookery.config.problems import reason
from rookery.config.suggest import did_you_mean
from rookery.data.files_config import RecordsConfig
from rookery.errors import ConfigError, DataError
from rookery.storage.location import Location

ListKind = Literal["int64_list", "float_list", "bytes_list"]
RAGGED = -1
"""The length of a feature whose lists differ in length."""

_VALUE_TYPES: Mapping[ListKind, pa.DataType] = {
    "int64_list": pa.int64(),
    "float_list": pa.float32(),
    "bytes_list": pa.binary(),
}


class SchemaEntry(StrictModel):
    """One feature as the schema file has it."""

    dtype: ListKind
    feature_name: str = Field(min_length=1)
    length: Annotated[int, Field(ge=RAGGED, le=2**24)]


class SchemaFile(StrictModel):
    """``{"schema": […]}``."""

    schema_: tuple[SchemaEntry, ...] = Field(alias="schema", min_length=1)


@dataclass(frozen=True)
class RecordColumn:
    """A column ``name`` that is made of a feature: ``length`` values a record, ``RAGGED`` for any number.

    ``masked_bits`` of the mantissa of each float, the lowest, become 0.
    """

    name: str
    feature: str
    kind: ListKind
    length: int
    masked_bits: int = 0

    @property
    def arrow_type(self) -> pa.DataType:
        """A number or bytes for one value a record, else a list, whose values are never null: faster in Parquet."""
        value = _VALUE_TYPES[self.kind]
        if self.length == 1:
            return value
        element = pa.field("element", value, nullable=False)
        return pa.list_(element) if self.length == RAGGED else pa.list_(element, self.length)


RecordColumns = tuple[RecordColumn, ...]


def arrow_schema(columns: Sequence[RecordColumn]) -> pa.Schema:
    """The columns of a file of records."""
    return pa.schema([pa.field(column.name, column.arrow_type, nullable=False) for column in columns])


def read_columns(config: RecordsConfig) -> RecordColumns:
    """The columns of the files that ``config`` describes, in the order of the schema.

    Raises ``DataError`` for a schema that cannot be read, ``ConfigError`` for names that it does not have, or that two
    columns would share, and for masks on what are no floats.
    """
    entries = read_schema(config.schema_path)
    known = [entry.feature_name for entry in entries]
    for ours, theirs in config.renamed_features.items():
        if theirs not in known:
            raise ConfigError(
                f"records.renamed_features.{ours}={theirs}: {config.schema_path} has no such feature; "
                f"{did_you_mean(theirs, known)}"
            )
    ours_of = {theirs: ours for ours, theirs in config.renamed_features.items()}
    columns = tuple(
        RecordColumn(
            name := ours_of.get(entry.feature_name, entry.feature_name),
            entry.feature_name,
            entry.dtype,
            entry.length,
            config.mask_mantissa_features.get(name, 0),
        )
        for entry in entries
    )
    _require_distinct(columns)
    _require_floats(config, columns)
    return columns


def read_schema(file: Location) -> tuple[SchemaEntry, ...]:
    """The features of a schema file. ``DataError`` where it is none, or lists a feature twice."""
    try:
        entries = SchemaFile.model_validate_json(file.read_text(encoding="utf-8")).schema_
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: the schema of the records cannot be read ({error}); correct schema_path") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"{file}: {place}: {reason(first)}; a schema is "
            '{"schema": [{"dtype": "float_list", "feature_name": "…", "length": 6000}, …]}'
        ) from error
    names = [entry.feature_name for entry in entries]
    for number, entry in enumerate(entries):
        if entry.length == 0:
            raise DataError(f"{file}: schema.{number}.length=0: must be at least 1, or -1 for lists of any length")
        if names.index(entry.feature_name) != number:
            raise DataError(f"{file}: feature {entry.feature_name!r} is listed twice; remove one of the two")
    return entries


def _require_distinct(columns: Sequence[RecordColumn]) -> None:
    names = [column.name for column in columns]
    for column in columns:
        if names.count(column.name) > 1:
            raise ConfigError(
                f"records.renamed_features.{column.name}: the schema has a feature of this name besides; choose "
                "another name"
            )


def _require_floats(config: RecordsConfig, columns: Sequence[RecordColumn]) -> None:
    kinds = {column.name: column.kind for column in columns}
    for name in config.mask_mantissa_features:
        field = f"records.mask_mantissa_features.{name}"
        if name not in kinds:
            raise ConfigError(f"{field}: no such column; {did_you_mean(name, list(kinds))}")
        if kinds[name] != "float_list":
            raise ConfigError(f"{field}: the column is an {kinds[name]}, which has no mantissa; remove it")
