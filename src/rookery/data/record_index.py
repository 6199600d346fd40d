"""What one pass over a file of records tells: how many there are, and where blocks of them begin.

Kept in a folder, a file each, by the name, size and time of the file of records:
{"format": 1, "size": …, "mtime_ns": …, "is_gzip": true, "blocks": [[records, bytes], …], "digest": "…", "damage": null}
"""

from __future__ import annotations

import functools
import hashlib
import logging
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from rookery.data.protobuf import of_one_length
from rookery.data.tfrecord import (
    FOOTER_BYTES,
    ByteSource,
    Damage,
    Inflater,
    RecordReader,
    Records,
    Restart,
    is_gzip,
    open_bytes,
)
from rookery.errors import DataError
from rookery.storage.location import Location

logger = logging.getLogger(__name__)

BLOCK_BYTES = 16_777_216
"""Of a block as inflated, or one record: what is read to get at any of its rows."""
BLOCK_RECORDS = 16_384
"""Of a block at most: a record of no bytes has 28 KB of defaults, too."""
# Of 42 KB each: 210 MB for 80 GB of inflated files.
_MOST_RESTARTS = 5_000


@dataclass(frozen=True)
class FileState:
    """A file as it was at some time; that of an object is told by its size alone."""

    place: Location
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, place: Location) -> FileState:
        """Raises ``OSError`` where there is no such file."""
        if isinstance(place, Path):
            found = place.stat()
            return cls(place, found.st_size, found.st_mtime_ns)
        with open_bytes(place) as file:
            return cls(place, file.seek(0, 2), 0)


class StoredDamage(BaseModel):
    """Where a file stops making sense."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    record: int
    offset: int
    problem: str


class RecordIndex(BaseModel):
    """``blocks``: records and bytes (as inflated) of each. ``digest`` is of the sums of all records.

    ``damage``: from where on there is nothing to be read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    size: int
    mtime_ns: int
    is_gzip: bool
    blocks: tuple[tuple[int, int], ...]
    digest: str
    damage: StoredDamage | None

    @functools.cached_property
    def first_records(self) -> tuple[int, ...]:
        """The number of the first record of each block."""
        return tuple(accumulate((records for records, _ in self.blocks), initial=0))

    @functools.cached_property
    def offsets(self) -> tuple[int, ...]:
        """The byte at which each block begins."""
        return tuple(accumulate((size for _, size in self.blocks), initial=0))

    def is_of(self, state: FileState) -> bool:
        """Whether it was made of the file as it is."""
        return (self.size, self.mtime_ns) == (state.size, state.mtime_ns)


@functools.lru_cache(maxsize=65_536)
def record_index(state: FileState, folder: Path) -> RecordIndex:
    """The index of a file: that in ``folder``, or made in one pass over the file and written there.

    Raises ``OSError`` where the file cannot be read, ``DataError`` where the folder cannot be written.
    """
    stored = folder / f"{_name(state.place)}.json"
    index = _stored(stored)
    if index is None or not index.is_of(state):
        index = _scan(state)
        _store(index, stored)
    return index


def keep_index(state: FileState, folder: Path, index: RecordIndex) -> None:
    """Write an index to ``folder``, if it is of the file as it is and none is there yet.

    Raises ``DataError`` where the folder cannot be written.
    """
    stored = folder / f"{_name(state.place)}.json"
    kept = _stored(stored)
    if index.is_of(state) and not (kept is not None and kept.is_of(state)):
        _store(index, stored)


class BlockReader:
    """Reads blocks of a file, in any order and from several threads.

    Of gzip the places are kept (for all files together, 210 MB of them) at which blocks begin, as the file is passed
    over: a block costs the way from the last such place before it.
    """

    def __init__(self, state: FileState, index: RecordIndex) -> None:
        self._state, self._index = state, index

    def read(self, block: int) -> tuple[Records, Damage | None]:
        """The records of a block, and what is amiss with one of them."""
        with self._at(block) as source:
            reader = RecordReader(source, self._index.first_records[block], self._index.offsets[block])
            records = reader.read(self._index.blocks[block][1])
            damage = reader.damage or reader.wrong_data
        if damage is None and len(records) != self._index.blocks[block][0]:
            damage = Damage(records.first, records.offset, "its file was written anew while it was read; start again")
        return records, damage

    @contextmanager
    def _at(self, block: int) -> Iterator[ByteSource]:
        with open_bytes(self._state.place) as file:
            if not self._index.is_gzip:
                file.seek(self._index.offsets[block])
                yield file
                return
            restarts = _restarts()
            # Who goes where nobody was before lets others wait: they need the places that are found on the way.
            with restarts.alone(self._state, {block, min(block + 1, len(self._index.blocks) - 1)}):
                inflater = self._inflater(file, block)
                yield inflater
                if block + 1 < len(self._index.blocks):
                    restarts.keep(self._state, block + 1, inflater)

    def _inflater(self, file: BinaryIO, block: int) -> Inflater:
        restarts = _restarts()
        known, restart = restarts.last_before(self._state, block)
        inflater = Inflater(file) if restart is None else Inflater.at(restart, file)
        reader = RecordReader(inflater)
        for passed in range(known, block):
            reader.skip(*self._index.blocks[passed])
            restarts.keep(self._state, passed + 1, inflater)
        return inflater


class _Restarts:
    """Places within gzip files at which blocks begin, those used last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._places: OrderedDict[tuple[FileState, int], Restart] = OrderedDict()
        self._passing: dict[FileState, threading.Lock] = {}
        self._lock = threading.Lock()

    def keep(self, file: FileState, block: int, inflater: Inflater) -> None:
        """``inflater`` stands where ``block`` begins."""
        with self._lock:
            if (file, block) in self._places:
                return
        restart = inflater.restart()
        with self._lock:
            self._places[file, block] = restart
            while len(self._places) > self._most:
                self._places.popitem(last=False)

    def last_before(self, file: FileState, block: int) -> tuple[int, Restart | None]:
        """The last block up to ``block`` whose place is known; block 0 without one."""
        with self._lock:
            for number in range(block, 0, -1):
                restart = self._places.get((file, number))
                if restart is not None:
                    self._places.move_to_end((file, number))
                    return number, restart
        return 0, None

    @contextmanager
    def alone(self, file: FileState, blocks: set[int]) -> Iterator[None]:
        """Keep others from passing over the file meanwhile, unless all of ``blocks`` are known."""
        with self._lock:
            if all((file, block) in self._places for block in blocks - {0}):
                passing = None
            else:
                passing = self._passing.setdefault(file, threading.Lock())
        if passing is None:
            yield
            return
        with passing:
            yield


@functools.cache
def _restarts() -> _Restarts:
    """Those of this process."""
    return _Restarts(_MOST_RESTARTS)


def _scan(state: FileState) -> RecordIndex:
    """Raises ``OSError`` where the file cannot be read; what it holds may be damaged all the same."""
    logger.info("counting the records of %s", state.place)
    digest = hashlib.sha256()
    blocks: list[tuple[int, int]] = []
    with open_bytes(state.place) as file:
        zipped = is_gzip(file)
        source = Inflater(file) if zipped else file
        reader = RecordReader(source)
        while reader.damage is None and len(records := reader.read(BLOCK_BYTES)):
            blocks += ((len(part), part.num_bytes) for part in records.parts(BLOCK_RECORDS))
            digest.update(of_one_length(records.data, records.starts + records.lengths, FOOTER_BYTES).tobytes())
            if isinstance(source, Inflater) and reader.damage is None:
                _restarts().keep(state, len(blocks), source)
    damage = reader.damage
    return RecordIndex(
        size=state.size,
        mtime_ns=state.mtime_ns,
        is_gzip=zipped,
        blocks=tuple(blocks),
        digest=digest.hexdigest()[:32],
        damage=None if damage is None else StoredDamage(**vars(damage)),
    )


def _name(place: Location) -> str:
    return hashlib.sha256(str(place.absolute()).encode()).hexdigest()[:32]


def _stored(file: Path) -> RecordIndex | None:
    """What was stored, unless it is damaged: it can be made again."""
    try:
        return RecordIndex.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None


def _store(index: RecordIndex, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=f".{file.name}.", delete=False) as beside:
            beside.write(index.model_dump_json())
        Path(beside.name).replace(file)
    except OSError as error:
        raise DataError(
            f"{file.parent}: the numbers of records cannot be kept there ({error.strerror or error}); name another "
            "folder as records.index_dir"
        ) from error
