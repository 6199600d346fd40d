"""Files of records to Parquet, part by part: an interrupted conversion goes on behind the last part that is whole.

.OUT.converting/00003-00001.parquet   part 1 of file 3, until all are done
OUT/00003-00001.parquet, OUT/manifest.json
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from rookery.data.files_config import RecordsConfig
from rookery.data.record_index import BLOCK_BYTES, BLOCK_RECORDS, FileState
from rookery.data.segdense import RecordColumns, arrow_schema, read_columns
from rookery.data.staging import require_free
from rookery.data.tf_example import BadRecord, parse_examples
from rookery.data.tfrecord import Inflater, RecordReader, Records, is_gzip, open_bytes
from rookery.errors import DataError
from rookery.storage.disk import force_to_disk
from rookery.storage.location import Location

Compression = Literal["zstd", "none"]

MANIFEST = "manifest.json"
PART_BYTES = 1_073_741_824
"""Of a part, in bytes of records: what is done again after an interruption is less."""

_LOCK = ".lock"
_METADATA = b"rookery.records"


class ConvertedFile(BaseModel):
    """A file of records and what became of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    num_records: int
    parts: tuple[str, ...]


class Conversion(BaseModel):
    """``manifest.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    kind: Literal["rookery converted records"] = "rookery converted records"
    num_records: int
    files: tuple[ConvertedFile, ...]


class _Part(BaseModel):
    """What a part says of itself, in the metadata of its Parquet file: from which records of which file it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    size: int
    mtime_ns: int
    columns: str
    compression: Compression
    first: int
    offset: int
    num_records: int
    num_bytes: int
    is_last: bool


def convert_records(
    places: Sequence[Location],
    config: RecordsConfig,
    out: Path,
    *,
    compression: Compression = "zstd",
    num_threads: int | None = None,
    overwrite: bool = False,
    notify: Callable[[int], None] = lambda num_records: None,
) -> Conversion:
    """Write the records of some files to Parquet files in the folder ``out``, which appears when all are whole.

    A row group has 16 MB of records, a file 1 GB. Each of ``num_threads`` (left out: one a core) does whole files and
    holds a row group in three forms. ``notify`` is told of records that are done, from several threads.

    Started again, it goes on with the parts that are not there yet, and with those of files that have changed since.
    Raises ``DataError`` with file, record and byte for damage and for what does not fit the schema, and where ``out``
    exists.
    """
    columns = read_columns(config)
    require_free(out, overwrite, MANIFEST)
    with _working_folder(out) as folder:
        jobs = [_FileJob(place, number, columns, folder, compression, notify) for number, place in enumerate(places)]
        files = _run_all(jobs, min(num_threads or os.cpu_count() or 1, len(jobs)))
        conversion = Conversion(num_records=sum(file.num_records for file in files), files=tuple(files))
        _finish(folder, conversion, out)
    return conversion


@contextmanager
def _working_folder(out: Path) -> Iterator[Path]:
    folder = out.absolute().with_name(f".{out.name}.converting")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / _LOCK, timeout=0):
            yield folder
    except Timeout as error:
        raise DataError(f"{out}: another process is converting to it; wait for it, or choose another name") from error
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error.strerror or error}); choose another place or make room"
        ) from error


def _run_all(jobs: Sequence[_FileJob], num_threads: int) -> list[ConvertedFile]:
    """The first failure stops the others at their next block."""
    stop = threading.Event()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="convert") as threads:
        running = [threads.submit(job.run, stop) for job in jobs]
        try:
            wait(running, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
            for each in running:
                each.cancel()
    errors = [each.exception() for each in running if not each.cancelled()]
    for error in errors:
        if error is not None and not isinstance(error, _Stopped):
            raise error
    return [each.result() for each in running]


def _finish(folder: Path, conversion: Conversion, out: Path) -> None:
    wanted = {part for file in conversion.files for part in file.parts}
    for file in folder.iterdir():
        if file.name not in wanted:  # of an earlier start, with other files
            file.unlink()
    (folder / MANIFEST).write_text(conversion.model_dump_json(indent=1) + "\n", encoding="utf-8")
    for path in (folder / MANIFEST, folder):
        force_to_disk(path)
    if out.exists():
        replaced = out.absolute().with_name(f".{out.name}.replaced")
        out.rename(replaced)
        folder.rename(out)
        for file in replaced.iterdir():
            file.unlink()
        replaced.rmdir()
    else:
        folder.rename(out)
    force_to_disk(out.absolute().parent)


class _Stopped(Exception):
    """Another file failed, or the user stopped all."""


@dataclass(frozen=True)
class _FileJob:
    """One file, from its first record to its last."""

    place: Location
    number: int
    columns: RecordColumns
    folder: Path
    compression: Compression
    notify: Callable[[int], None]

    def run(self, stop: threading.Event) -> ConvertedFile:
        """Raises ``DataError`` for damage."""
        try:
            parts = self._all_parts(FileState.of(self.place), stop)
        except OSError as error:
            raise DataError(
                f"{self.place}: cannot be read, or {self.folder} not be written ({error.strerror or error}); look at "
                "the disks, then start again"
            ) from error
        names = tuple(self._path(part).name for part in range(len(parts)) if parts[part].num_records)
        return ConvertedFile(source=str(self.place), num_records=sum(part.num_records for part in parts), parts=names)

    def _all_parts(self, state: FileState, stop: threading.Event) -> list[_Part]:
        parts = list(self._whole_parts(state))
        if parts and parts[-1].is_last:
            return parts
        with open_bytes(self.place) as file:
            reader = RecordReader(Inflater(file) if is_gzip(file) else file)
            for part in parts:
                reader.skip(part.num_records, part.num_bytes)
            return [*parts, *self._convert(reader, state, len(parts), stop)]

    def _path(self, part: int) -> Path:
        return self.folder / f"{self.number:05d}-{part:05d}.parquet"

    def _whole_parts(self, state: FileState) -> Iterator[_Part]:
        """The parts that an earlier start wrote of the file as it is."""
        first = offset = 0
        for number in range(1_000_000):
            part = _read_part(self._path(number))
            made_of = {"columns": repr(self.columns), "compression": self.compression, "first": first, "offset": offset}
            if part is None or part != part.model_copy(update=self._source(state) | made_of):
                return
            self.notify(part.num_records)
            yield part
            if part.is_last:
                return
            first, offset = first + part.num_records, offset + part.num_bytes

    def _source(self, state: FileState) -> dict[str, Any]:
        return {"source": str(self.place), "size": state.size, "mtime_ns": state.mtime_ns}

    def _convert(self, reader: RecordReader, state: FileState, number: int, stop: threading.Event) -> Iterator[_Part]:
        blocks = _Ahead(self._blocks(reader, stop))
        while True:
            path = self._path(number)
            beside = path.with_name(f".{path.name}.writing")
            part = self._write(beside, blocks, state)
            force_to_disk(beside)
            beside.replace(path)
            yield part
            number += 1
            if part.is_last:
                return

    def _write(self, file: Path, blocks: _Ahead, state: FileState) -> _Part:
        """Blocks up to the size of a part, or all that there are."""
        schema = arrow_schema(self.columns)
        first, offset, num_records, num_bytes = None, 0, 0, 0
        with pq.ParquetWriter(
            file, schema, compression=self.compression, use_dictionary=False, write_page_checksum=True
        ) as writer:
            while num_bytes < PART_BYTES and (records := blocks.take()) is not None:
                if first is None:
                    first, offset = records.first, records.offset
                writer.write_table(self._table(records, schema), len(records))
                num_records += len(records)
                num_bytes += records.num_bytes
                self.notify(len(records))
            part = _Part(
                **self._source(state),
                columns=repr(self.columns),
                compression=self.compression,
                first=first or 0,
                offset=offset,
                num_records=num_records,
                num_bytes=num_bytes,
                is_last=blocks.at_end,
            )
            writer.add_key_value_metadata({_METADATA: part.model_dump_json().encode()})
        return part

    def _blocks(self, reader: RecordReader, stop: threading.Event) -> Iterator[Records]:
        while len(records := reader.read(BLOCK_BYTES)):
            damage = reader.wrong_data or reader.damage
            if damage is not None:
                raise DataError(f"{self.place}: {damage}")
            if stop.is_set():
                raise _Stopped
            yield from records.parts(BLOCK_RECORDS)
        if reader.damage is not None:
            raise DataError(f"{self.place}: {reader.damage}")

    def _table(self, records: Records, schema: pa.Schema) -> pa.Table:
        try:
            return pa.table(parse_examples(records, self.columns), schema=schema)
        except BadRecord as error:
            place = f"record {records.first + error.place}, byte {records.offset_of(error.place)}"
            raise DataError(f"{self.place}: {place}: {error}") from error


class _Ahead:
    """Blocks, and whether the one taken last is the last of all."""

    def __init__(self, blocks: Iterator[Records]) -> None:
        self._blocks = blocks
        self._next = next(blocks, None)

    @property
    def at_end(self) -> bool:
        return self._next is None

    def take(self) -> Records | None:
        taken = self._next
        if taken is not None:
            self._next = next(self._blocks, None)
        return taken


def _read_part(file: Path) -> _Part | None:
    """What a whole part says of itself."""
    try:
        metadata = pq.read_metadata(file).metadata or {}
        return _Part.model_validate_json(metadata.get(_METADATA, b""))
    except (OSError, pa.ArrowException, ValidationError):
        return None
