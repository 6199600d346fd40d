"""Files of records as sources of rows: their blocks stand for the row groups of Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from rookery.data.damage import is_damage
from rookery.data.files_config import RecordsConfig
from rookery.data.record_index import BlockReader, FileState, RecordIndex, keep_index, record_index
from rookery.data.segdense import RecordColumns, arrow_schema, read_columns
from rookery.data.tf_example import BadRecord, parse_examples
from rookery.data.tfrecord import Damage, Records
from rookery.data.warn_once import warn_once
from rookery.errors import DataError
from rookery.storage.cache import cache_folder
from rookery.storage.location import Location

ENDINGS = (".gz", ".tfrecord", ".tfrecords")
"""Names of the files of records in a folder."""


class DamagedBlock(DataError):
    """A block of records cannot be read; the message names file, record and byte."""


@dataclass(frozen=True)
class RecordFile:
    """A file of tf.Examples with these columns. Its index is kept in ``index_dir``.

    ``skips_damage``: where the rest of the file is lost, what stands before is read all the same.
    """

    place: Location
    columns: RecordColumns
    index_dir: Path
    skips_damage: bool = False

    def __str__(self) -> str:
        return str(self.place)

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def schema(self) -> pa.Schema:
        """Of all columns."""
        return arrow_schema(self.columns)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Rows of each block. The first call reads the file once, if its index is not kept yet.

        Raises ``DataError`` with file, record and byte where the file is damaged so that the rest of it cannot be read.
        """
        index = self._index()[1]
        if index.damage is not None:
            self._tell_damage(index)
        return tuple(records for records, _ in index.blocks)

    def read(self, block: int, names: Sequence[str]) -> pa.Table:
        """Some columns of a block.

        Raises ``DamagedBlock`` for records that are not what was written, and ``DataError`` for those that do not fit
        the schema.
        """
        records, damage = self._records(block)
        if damage is not None:
            raise DamagedBlock(f"{self}: {damage}")
        by_name = {column.name: column for column in self.columns}
        try:
            arrays = parse_examples(records, [by_name[name] for name in names])
        except BadRecord as error:
            place = f"record {records.first + error.place}, byte {records.offset_of(error.place)}"
            raise DataError(f"{self}: {place}: {error}") from error
        return pa.table(arrays, schema=arrow_schema([by_name[name] for name in names]))

    def record(self, block: int, row: int) -> int:
        """The number in the file of a row of a block."""
        return self._index()[1].first_records[block] + row

    def identity(self) -> str:
        """What tells its content, the same wherever it lies."""
        index = self._index()[1]
        return f"{self.name} {index.size} {index.digest} {self.columns}"

    def index(self) -> RecordIndex:
        """What one pass over the file tells. Raises ``DamagedBlock`` where it is gone, ``DataError`` where it cannot be
        read.
        """
        return self._index()[1]

    def keep_index(self, index: RecordIndex) -> None:
        """Take the index that another process made, if it is of the file as it is here and none is kept yet."""
        keep_index(FileState.of(self.place), self.index_dir, index)

    def _index(self) -> tuple[FileState, RecordIndex]:
        """Raises ``DamagedBlock`` where the file is gone, ``DataError`` where this process cannot read it."""
        try:
            state = FileState.of(self.place)
            return state, record_index(state, self.index_dir)
        except OSError as error:
            raise self._unreadable(error) from error

    def _records(self, block: int) -> tuple[Records, Damage | None]:
        state, index = self._index()
        if block >= len(index.blocks):
            raise DataError(f"{self}: was written anew while it was read; start again")
        try:
            return BlockReader(state, index).read(block)
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> DataError:
        what = f"{self}: cannot be read ({error.strerror or error})"
        if is_damage(error):
            return DamagedBlock(f"{what}; correct the path, or write the file again")
        return DataError(f"{what}; give this process more of what it lacks")

    def _tell_damage(self, index: RecordIndex) -> None:
        found = index.damage
        assert found is not None
        message = f"{self}: record {found.record}, byte {found.offset}: {found.problem}"
        if not self.skips_damage:
            raise DataError(message)
        warn_once(f"{message}. What stands behind it is left out (on_corrupt is skip)")


def record_files(places: Sequence[Location], config: RecordsConfig, *, skip_damage: bool = False) -> list[RecordFile]:
    """Files as ``config`` describes them. Raises ``DataError`` or ``ConfigError`` for its schema."""
    columns = read_columns(config)
    folder = config.index_dir or cache_folder() / "records"
    return [RecordFile(place, columns, folder, skip_damage) for place in places]
