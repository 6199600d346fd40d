"""The key columns that stand beside scores: row after row, of one type whatever the files have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from rookery.data.parquet import open_parquet
from rookery.data.row_groups import read_footer
from rookery.errors import DataError
from rookery.ranker.config import RankerConfig
from rookery.storage.location import Location

_ROWS_PER_READ = 65_536
_MANTISSA_BITS = {16: 11, 32: 24, 64: 53}  # of a float, by its bits: integers of as many are exact


def key_schema(config: RankerConfig, files: Sequence[Location]) -> pa.Schema:
    """Those of ``keys.user``, ``keys.item`` and ``keys.time`` that the first file has, each of a type for all files.

    Raises ``DataError`` for a file that lacks one of them or has it twice, and for types that no type holds. Reads
    footers alone.
    """
    schemas = {file: read_footer(file).schema.to_arrow_schema() for file in files}
    present = schemas[files[0]].names
    keys = (config.keys.user, config.keys.item, config.keys.time)
    names = dict.fromkeys(name for name in keys if name is not None and name in present)
    return pa.schema([_common_field(name, schemas) for name in names])


class KeyRows:
    """The columns of ``schema`` in ``files``, cast to its types."""

    def __init__(self, files: Sequence[Location], schema: pa.Schema) -> None:
        self._batches = _key_batches(files, schema)
        self._has_columns = bool(schema.names)
        self._pending = pa.table({})

    def take(self, num_rows: int) -> pa.Table:
        """The next rows. ``DataError`` where they cannot be read or do not fit the type."""
        if not self._has_columns:
            return self._pending
        parts = [self._pending] if self._pending.num_columns else []
        while sum(part.num_rows for part in parts) < num_rows:
            parts.append(next(self._batches))
        whole = pa.concat_tables(parts)
        self._pending = whole.slice(num_rows)
        return whole.slice(0, num_rows)


def _key_batches(files: Sequence[Location], schema: pa.Schema) -> Iterator[pa.Table]:
    for file in files:
        try:
            with open_parquet(file) as parquet:
                for batch in parquet.iter_batches(_ROWS_PER_READ, columns=schema.names):
                    yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{file}: its columns {', '.join(schema.names)} cannot be read as {', '.join(map(str, schema.types))} "
                f"({' '.join(str(error).split())}); write the file again, with the types of the others"
            ) from error


def _common_field(name: str, schemas: Mapping[Location, pa.Schema]) -> pa.Field:
    fields = {file: _only_field(name, file, schemas) for file in schemas}
    types: dict[pa.DataType, Location] = {}
    for file, field in fields.items():
        types.setdefault(field.type, file)
    is_nullable = any(field.nullable for field in fields.values())
    common = next(iter(types)) if len(types) == 1 else _common_type(list(types))
    if common is None:
        listed = ", ".join(f"{each} in {file}" for each, file in types.items())
        raise DataError(
            f"column {name!r} is {listed}, and no type holds the values of all: write it with one type in all files"
        )
    return pa.field(name, common, is_nullable)


def _only_field(name: str, file: Location, schemas: Mapping[Location, pa.Schema]) -> pa.Field:
    found = schemas[file].get_all_field_indices(name)
    if not found:
        raise DataError(
            f"{file}: no column {name!r}, but {next(iter(schemas))} has it; write all files with one schema"
        )
    if len(found) > 1:
        raise DataError(f"{file}: column {name!r} occurs {len(found)} times; write it once")
    return schemas[file].field(found[0])


def _common_type(types: Sequence[pa.DataType]) -> pa.DataType | None:
    """The narrowest type that holds every value of ``types``; dictionaries as what they are of."""
    plain = [each.value_type if pa.types.is_dictionary(each) else each for each in types]
    try:
        common = pa.unify_schemas([pa.schema({"": each}) for each in plain], promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None
    return common if all(_holds(common, each) for each in plain) else None


def _holds(common: pa.DataType, narrow: pa.DataType) -> bool:
    """Whether integers lose nothing: Arrow takes int64 for uint64, and double for both, as good enough."""
    if not pa.types.is_integer(narrow):
        return True
    if pa.types.is_floating(common):
        return bool(narrow.bit_width <= _MANTISSA_BITS[common.bit_width])
    if pa.types.is_unsigned_integer(narrow) and pa.types.is_signed_integer(common):
        return bool(narrow.bit_width < common.bit_width)
    return True
