"""Whether files have the columns that a configuration reads; told by their footers, all problems at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import pyarrow as pa

from rookery.config.suggest import did_you_mean
from rookery.data.columns import ColumnRequest, UnfitType, column_type, is_text
from rookery.data.row_groups import SourceFile, facts_of, twice
from rookery.errors import DataError
from rookery.ranker.columns import ColumnUse
from rookery.ranker.config import RankerConfig
from rookery.ranker.features_config import PartitionConfig
from rookery.ranker.files import find_files

IdType = Literal["number", "text"]
"""Numbers, truth values and times, or strings and bytes: ids of one kind never equal those of the other."""


def check_schema(
    config: RankerConfig, partition: PartitionConfig, uses: Sequence[ColumnUse], known: Mapping[str, IdType]
) -> dict[str, IdType]:
    """The type of each id column of ``uses`` in a partition's files, added to ``known``.

    Raises ``DataError`` with a line for each column that is missing, that cannot become what is wanted, or whose ids
    are of another type than in the files before or in ``known``. Reads footers alone.
    """
    problems: list[str] = []
    types: dict[str, IdType] = dict(known)
    seen: list[pa.Schema] = []
    for file, facts in facts_of(find_files(partition)):
        schema = facts.schema
        if not any(schema.equals(other) for other in seen):
            seen.append(schema)
            problems += _file_problems(config, file, schema, uses, types)
    if problems:
        raise DataError("\n".join(dict.fromkeys(problems)))
    return types


def type_problems(config: RankerConfig, types: Mapping[str, IdType]) -> Iterator[str]:
    """What keeps the features of a table, and its listed values, from ever being equal."""
    looked_up = config.features.looked_up
    for table in config.features.tables:
        columns = [feature.source for feature in looked_up if feature.table == table.name and feature.source in types]
        found = {types[column] for column in columns}
        if len(found) > 1:
            listed = ", ".join(f"{column} ({types[column]})" for column in columns)
            yield f"features.tables.{table.name}: numbers and text in one table: {listed}; use two"
        elif table.values and found and ("text" if isinstance(table.values[0], str) else "number") not in found:
            yield (
                f"features.tables.{table.name}.values: {table.values[0]!r} never equals what {columns[0]} holds, "
                f"{found.pop()}s; write the values as the column has them"
            )
        elif "text" in found and table.num_embeddings is not None:
            yield (
                f"features.tables.{table.name}.num_embeddings={table.num_embeddings}: {columns[0]} holds text, no "
                "row numbers; use hash_buckets or a vocabulary"
            )
    position = config.keys.position if config.model.position_debias_config is not None else None
    if position is not None and types.get(position) == "text":
        yield f"keys.position: column {position} holds text; a position is a whole number, counted from 0"
    for one in config.evaluation.stratifiers:
        wanted = "text" if isinstance(one.value, str) else "number"
        if types.get(one.column, wanted) != wanted:
            yield (
                f"evaluation.stratifiers.{one.name}.value={one.value!r}: column {one.column} holds "
                f"{types[one.column]}s; write the value as the column has it"
            )


def id_type(arrow_type: pa.DataType) -> IdType:
    """The type of ids in a column, or in the lists of one."""
    inner = arrow_type
    while pa.types.is_dictionary(inner) or pa.types.is_list(inner) or pa.types.is_large_list(inner):
        inner = inner.value_type
    inner = inner.value_type if pa.types.is_fixed_size_list(inner) else inner
    return "text" if is_text(inner) else "number"


def _file_problems(
    config: RankerConfig, file: SourceFile, schema: pa.Schema, uses: Sequence[ColumnUse], types: dict[str, IdType]
) -> Iterator[str]:
    mixed: set[str] = set()
    for use in uses:
        name, problem = use.request.name, _problem(schema, use.request)
        if problem is not None:
            yield f"{file}: {problem} ({use.field})"
        elif use.request.kind in {"id", "id_list"} and name not in mixed:
            found = id_type(schema.field(name).type)
            if types.setdefault(name, found) != found:
                mixed.add(name)
                yield (
                    f"{file}: column {name!r} holds {found}s, and {types[name]}s before; an id written in two ways is "
                    f"two ids: write it in one ({use.field})"
                )
    for one in config.preprocess.extract_features:
        if one.name in schema.names:
            yield (
                f"{file}: has a column {one.name!r}, and preprocess.extract_features makes one of this name; choose "
                "another name"
            )


def absent_columns(config: RankerConfig, partition: PartitionConfig) -> Iterator[str]:
    """What is amiss with columns that no batch has and that the configuration names all the same.

    These are the columns of items, of times and of row filters.
    """
    named = {"keys.item": config.keys.item, "keys.time": config.keys.time}
    if partition.rows is not None:
        named["rows.column"] = partition.rows.column
    for file, facts in facts_of(find_files(partition)):
        names = facts.schema.names
        for field, column in named.items():
            if column is None:
                continue
            if column not in names:
                yield f"{file}: no column {column!r}; {did_you_mean(column, names)} ({field})"
            elif names.count(column) > 1:
                yield f"{file}: {twice(column)} ({field})"


def _problem(schema: pa.Schema, request: ColumnRequest) -> str | None:
    if request.name not in schema.names:
        return f"no column {request.name!r}; {did_you_mean(request.name, schema.names)}"
    if schema.names.count(request.name) > 1:
        return twice(request.name)
    arrow_type = schema.field(request.name).type
    try:
        column_type(request, arrow_type)
    except UnfitType as error:
        return f"column {request.name!r} is {arrow_type}; {error}"
    return None
