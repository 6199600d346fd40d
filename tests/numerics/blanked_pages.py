"""Parquet files that went bad."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq


def blank_row_group(file: Path, number: int, column: str) -> None:
    """Overwrite the pages of one column of a row group."""
    group = pq.read_metadata(file).row_group(number)
    chunk = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data = bytearray(file.read_bytes())
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    file.write_bytes(data)
