"""Writes impression logs in the layouts that stream fastest: ``docs/impressions-format.md`` has the rates."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rookery.errors import DataError

# Large enough to read at full speed, small enough that a shuffled buffer mixes many.
_ROW_GROUP_BYTES = 16_777_216
_MOST_ROWS = 65_536
_PACKABLE = (pa.float32(), pa.float16(), pa.uint8())


def write_impressions(table: pa.Table, file: Path) -> None:
    """Write one Parquet file with row groups of 16 MB, in which vectors lie uncompressed: floats hardly compress.

    Fixed-size lists without a null are written as lists that cannot hold one, which are faster to decode.
    """
    for place, field in enumerate(table.schema):
        if pa.types.is_fixed_size_list(field.type) and not _holds_null(table.column(place)):
            strict = pa.field(field.name, _strict(field.type), nullable=False)
            table = table.set_column(place, strict, table.column(place).cast(strict.type))
    wide = {field.name for field in table.schema if _is_wide(field.type)}
    leaves = _leaves(table.schema)
    narrow = [path for path, name in leaves.items() if name not in wide]
    bytes_per_row = max(1, table.nbytes // max(1, table.num_rows))
    pq.write_table(
        table,
        file,
        row_group_size=max(1, min(_MOST_ROWS, _ROW_GROUP_BYTES // bytes_per_row)),
        compression={path: "none" if name in wide else "snappy" for path, name in leaves.items()},
        use_dictionary=narrow,
        write_statistics=narrow,
    )


def pack_vectors(table: pa.Table) -> pa.Table:
    """Its fixed-size lists of float32, float16 and uint8 as fixed-size binary: the same bytes, little-endian.

    They are read three times as fast, but the file no longer tells the width: whoever reads it must say it. Raises
    ``DataError`` for a column that holds a null.
    """
    for place, field in enumerate(table.schema):
        if pa.types.is_fixed_size_list(field.type) and field.type.value_type in _PACKABLE:
            if _holds_null(table.column(place)):
                raise DataError(f"column {field.name!r} holds a null; give it a value, or leave the vectors as lists")
            packed = pa.binary(field.type.list_size * field.type.value_type.bit_width // 8)
            chunks = [_packed(chunk, packed) for chunk in table.column(place).chunks]
            table = table.set_column(
                place, pa.field(field.name, packed, nullable=False), pa.chunked_array(chunks, packed)
            )
    return table


def _leaves(schema: pa.Schema) -> dict[str, str]:
    """The path of each of Parquet's columns, as writers name them, and the column that it is part of."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    parquet = pq.read_metadata(pa.BufferReader(sink.getvalue())).schema
    paths = [parquet.column(place).path for place in range(len(parquet))]
    return {path: path.split(".")[0] for path in paths}


def _holds_null(column: pa.ChunkedArray) -> bool:
    return any(chunk.null_count or chunk.flatten().null_count for chunk in column.chunks)


def _strict(lists: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field(lists.value_field.name, lists.value_type, nullable=False), lists.list_size)


def _is_wide(arrow_type: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(arrow_type) or pa.types.is_fixed_size_binary(arrow_type))


def _packed(chunk: pa.Array, packed: pa.DataType) -> pa.Array:
    # Values of a slice begin where it does.
    values = chunk.flatten()
    size = values.type.bit_width // 8
    data = values.buffers()[1].slice(values.offset * size, len(values) * size)
    return pa.FixedSizeBinaryArray.from_buffers(packed, len(chunk), [None, data])
