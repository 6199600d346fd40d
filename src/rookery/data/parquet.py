"""Parquet files wherever they lie: on this machine, or in an object store, of which only what is read is fetched."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rookery.errors import DataError
from rookery.storage.location import Location, as_location
from rookery.storage.remote import files_under, is_object, matching, open_ranges, require_bucket


@contextmanager
def open_parquet(file: Location) -> Iterator[pq.ParquetFile]:
    """A Parquet file, its pages verified where they have sums.

    Raises what Arrow raises, ``FileNotFoundError``, and ``DataError`` where a store refuses or cannot be reached.
    """
    if isinstance(file, Path):
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            yield parquet
        return
    # Buffered ahead: ranges that lie near each other are fetched as one, while others are decoded.
    options = {"pre_buffer": True, "page_checksum_verification": True}
    with open_ranges(file) as source, pq.ParquetFile(source, **options) as parquet:
        yield parquet


def read_parquet(file: Location, columns: Sequence[str] | None = None) -> pa.Table:
    """Some columns of a whole file, in this order. ``KeyError`` without one of them, else as ``open_parquet``."""
    with open_parquet(file) as parquet:
        table = parquet.read(columns=None if columns is None else list(columns))
    return table if columns is None else table.select(list(columns))


def read_metadata(file: Location) -> pq.FileMetaData:
    """What a file says of itself; raises as ``open_parquet`` does."""
    if isinstance(file, Path):
        return pq.read_metadata(file)
    with open_ranges(file) as source:
        return pq.read_metadata(source)


def find_files(place: str, endings: tuple[str, ...] = (".parquet",)) -> list[Location]:
    """The files of a file, a folder or a glob, by path or URL; sorted, empty where there are none.

    Of a folder those are taken whose names end so.

    Raises ``DataError`` for a URL that cannot be looked into.
    """
    try:
        location = as_location(place)
    except ValueError as error:
        raise DataError(f"{place}: {error}") from error
    if not isinstance(location, Path):
        found = [location] if is_object(location) else matching(location)
        if not found:
            found = [location / name for name in files_under(location, depth=1) if name.endswith(endings)]
        if not found:
            require_bucket(location)
        return list(found)
    if location.is_file():  # a name may have brackets in it
        return [location]
    if location.is_dir():
        return sorted(file for file in location.iterdir() if file.name.endswith(endings) and file.name[0] != ".")
    return sorted(Path(name) for name in glob.glob(str(location), recursive=True))  # noqa: PTH207 (absolute patterns)
