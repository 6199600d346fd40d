"""TFRecord framing: length (8 bytes), its masked CRC-32C (4), data, their masked CRC-32C (4); plain or gzip.

Record numbers count from 0; offsets are bytes from the start of the file, of gzip of what it inflates to.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import google_crc32c
import numpy as np
from typing_extensions import Self
from zlib_ng import zlib_ng

from rookery.storage.location import Location
from rookery.storage.remote import open_sequential

MAX_RECORD_BYTES = 268_435_456
"""A record that says it is longer is taken for damage. Nothing is allocated for a length that is only claimed."""

HEADER = struct.Struct("<QI")
FOOTER_BYTES = 4
_FRAME_BYTES = HEADER.size + FOOTER_BYTES
_GZIP = b"\x1f\x8b\x08"
GZIP_WBITS = 31
# Input a call: what is left of it when enough came out is copied. Output a call: 1 KB of gzip may hold 1 MB.
_INPUT_BYTES = 131_072
_OUTPUT_BYTES = 4_194_304
_REMEDY = "write the file again, or copy it anew"
_PADDING = 16
"""Zeros behind the last record: its parser looks so far ahead."""


@dataclass(frozen=True)
class Damage:
    """Record ``record``, whose frame begins at ``offset``, is not what was written; ``problem`` has the remedy."""

    record: int
    offset: int
    problem: str

    def __str__(self) -> str:
        return f"record {self.record}, byte {self.offset}: {self.problem}"


@dataclass(frozen=True)
class Records:
    """Neighbouring records: bytes ``starts`` to ``starts + lengths`` of ``data`` (uint8, with zeros behind).

    ``first`` is the number of the first, ``offset`` that of ``data[0]`` in the file.
    """

    data: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    first: int
    offset: int

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def num_bytes(self) -> int:
        """Of their frames."""
        return int(self.lengths.sum()) + _FRAME_BYTES * len(self)

    def parts(self, most: int) -> Iterator[Records]:
        """The same records in runs of ``most``."""
        for start in range(0, len(self), most):
            rows = slice(start, start + most)
            yield replace(self, starts=self.starts[rows], lengths=self.lengths[rows], first=self.first + start)

    def offset_of(self, record: int) -> int:
        """Where the frame of a record (by its place here) begins in the file."""
        return self.offset + int(self.starts[record]) - HEADER.size


def masked_crc(data: bytes) -> int:
    """CRC-32C, turned by 15 bits and shifted, so that the CRC of data with CRCs in them is a good one."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFF_FFFF


def framed(data: bytes) -> bytes:
    """A record as files have it."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc(length)), data, struct.pack("<I", masked_crc(data))))


class ByteSource(Protocol):
    """Bytes of a file from front to back."""

    def read(self, most: int) -> bytes:
        """The next bytes, ``most`` or fewer; none at the end. ``CorruptBytes`` where they cannot be told."""
        ...


class CorruptBytes(Exception):
    """Bytes of a file cannot be inflated; the message says why."""


class Inflater:
    """What gzip holds, member after member. ``fork`` gives another one at the same place.

    Sums of gzip are compared at the end of each member.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._place = 0
        self._input = b""
        self._member: Any = zlib_ng.decompressobj(wbits=GZIP_WBITS)

    def read(self, most: int) -> bytes:
        while True:
            if not self._input:
                self._input = self._file.read(_INPUT_BYTES)
                self._place += len(self._input)
            if not self._input:
                if not self._member.eof:
                    raise CorruptBytes("the gzip data end before their end mark")
                return b""
            if self._member.eof:
                self._member = zlib_ng.decompressobj(wbits=GZIP_WBITS)
            found = self._inflate(min(most, _OUTPUT_BYTES))
            if found:
                return found

    def restart(self) -> Restart:
        """This very place. 42 KB."""
        return Restart(self._place - len(self._input), self._member.copy())

    @classmethod
    def at(cls, restart: Restart, file: BinaryIO) -> Self:
        """An inflater that goes on where ``restart`` was taken."""
        inflater = cls(file)
        file.seek(restart.place)
        inflater._place, inflater._member = restart.place, restart.member.copy()
        return inflater

    def _inflate(self, most: int) -> bytes:
        before = self._member.copy()  # 42 KB, for up to 4 MB that come out
        try:
            found: bytes = self._member.decompress(self._input, most)
        except zlib_ng.error as error:  # type: ignore[misc]  # its stub takes it for a value
            self._member = before
            found = self._inflate_to_damage(most)
            if not found:
                raise CorruptBytes(f"the gzip data are damaged ({error})") from error
            return found
        self._input = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
        return found

    def _inflate_to_damage(self, most: int) -> bytes:
        """What comes before the byte of the input at which inflating fails: a call that fails drops what it found."""
        found = b""
        failing = len(self._input)  # so many bytes of input fail
        while failing and len(found) < most:
            half, member = failing // 2, self._member.copy()
            try:
                found += member.decompress(self._input[:half], most - len(found))
            except zlib_ng.error:  # type: ignore[misc]
                failing = half
            else:
                self._member = member
                self._input = member.unconsumed_tail + self._input[half:]
                failing = failing - half if half else 0  # without input: what was still to come of the input before
        return found


@dataclass(frozen=True)
class Restart:
    """A place within gzip: input from byte ``place`` of the file on goes to (a copy of) ``member``."""

    place: int
    member: Any


def open_bytes(file: Location) -> AbstractContextManager[BinaryIO]:
    """A file for reading on from one place or another; of an object some megabytes are fetched ahead."""
    return file.open("rb") if isinstance(file, Path) else open_sequential(file)


def is_gzip(file: BinaryIO) -> bool:
    """Whether a file is gzip, by its first bytes; those of a plain record may look like it, but not with their CRC."""
    file.seek(0)
    head = file.read(HEADER.size)
    file.seek(0)
    return head.startswith(_GZIP) and not (len(head) == HEADER.size and _is_header(head))


def _is_header(head: bytes) -> bool:
    return masked_crc(head[:8]) == int.from_bytes(head[8:], "little")


class RecordReader:
    """Takes records off ``source``, which stands at the start of record ``first``, ``offset`` bytes into the file.

    ``damage`` is what keeps it from going on, if anything; ``wrong_data`` is the first of the records read last whose
    data do not have their CRC.
    """

    def __init__(self, source: ByteSource, first: int = 0, offset: int = 0) -> None:
        self._source = source
        self._first, self._offset = first, offset
        self.damage: Damage | None = None
        self.wrong_data: Damage | None = None
        self._unreadable: str | None = None

    def read(self, num_bytes: int) -> Records:
        """As many whole records as ``num_bytes`` reach into; none at the end of the file, or at damage.

        The source then stands behind the last of them.
        """
        assert self.damage is None
        frames = _Frames()
        data = b"".join((*self._take(num_bytes), bytes(_PADDING)))
        frames.walk(data, len(data) - _PADDING)
        if frames.missing:
            data = self._completed(frames, data)
        self.wrong_data = self._located(frames.wrong_data)
        self.damage = self._located(frames.damage_at_end(self._unreadable))
        records = Records(np.frombuffer(data, np.uint8), *frames.places(), self._first, self._offset)
        self._first += len(records)
        self._offset += frames.end
        return records

    def _completed(self, frames: _Frames, data: bytes) -> bytes:
        """``data`` with what its last record lacks, as far as there is more."""
        end = frames.end
        tail = data[end:-_PADDING]
        while frames.missing and (more := self._take(frames.missing)):
            tail = b"".join((tail, *more))
            frames.walk(tail, len(tail), end)
        return b"".join((memoryview(data)[:end], tail, bytes(_PADDING)))

    def skip(self, num_records: int, num_bytes: int) -> None:
        """Pass over records whose number and bytes are known."""
        left = num_bytes
        while left and (pieces := self._take(min(left, _OUTPUT_BYTES))):
            left -= sum(map(len, pieces))
        self._first += num_records
        self._offset += num_bytes - left

    def _take(self, num_bytes: int) -> list[bytes]:
        """So many bytes; fewer at the end of the file, or where they cannot be told any more."""
        pieces: list[bytes] = []
        while num_bytes:
            try:
                piece = self._source.read(num_bytes)
            except CorruptBytes as error:
                self._unreadable = str(error)
                break
            if not piece:
                break
            pieces.append(piece)
            num_bytes -= len(piece)
        return pieces

    def _located(self, damage: Damage | None) -> Damage | None:
        if damage is None:
            return None
        return replace(damage, record=self._first + damage.record, offset=self._offset + damage.offset)


class _Frames:
    """The frames of a run of bytes: ``end`` is behind the last whole one, ``missing`` what the next still lacks."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.lengths: list[int] = []
        self.end = 0
        self.missing = 0
        self.wrong_data: Damage | None = None
        self._damage: Damage | None = None

    def walk(self, data: bytes, size: int, base: int = 0) -> None:
        """Go on over ``data`` up to ``size``; its first byte is byte ``base`` of the run."""
        at, self.missing = self.end - base, 0
        while at < size:
            if size - at < HEADER.size:
                self.missing = HEADER.size - (size - at)
                break
            length, crc = HEADER.unpack_from(data, at)
            if crc != masked_crc(data[at : at + 8]):
                self._stop("its length does not have its CRC-32C")
                break
            if length > MAX_RECORD_BYTES:
                self._stop(f"it says it has {length:,} bytes, and at most {MAX_RECORD_BYTES:,} are read")
                break
            stop = at + _FRAME_BYTES + length
            if stop > size:
                self.missing = stop - size
                break
            self._add(data, at + HEADER.size, length, base)
            self.end = base + stop
            at = stop

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the data of each record start, and their lengths."""
        return np.array(self.starts, np.int64), np.array(self.lengths, np.int64)

    def damage_at_end(self, unreadable: str | None) -> Damage | None:
        """What is amiss with what stands behind the last whole frame."""
        if unreadable is not None:
            where = "" if self.missing else "the records before it are whole, then "
            return Damage(len(self.starts), self.end, f"{where}{unreadable}; {_REMEDY}")
        if self._damage is None and self.missing:
            problem = f"the file ends within it, {self.missing:,} bytes too early; {_REMEDY}"
            return Damage(len(self.starts), self.end, problem)
        return self._damage

    def _add(self, data: bytes, start: int, length: int, base: int) -> None:
        """The record of ``length`` bytes from ``start`` on."""
        stop = start + length
        # The slice is copied, 28 KB in 1.5 µs: the library takes nothing but bytes.
        if masked_crc(data[start:stop]) != int.from_bytes(data[stop : stop + FOOTER_BYTES], "little"):
            problem = f"its {length:,} bytes of data do not have their CRC-32C; {_REMEDY}"
            self.wrong_data = self.wrong_data or Damage(len(self.starts), base + start - HEADER.size, problem)
        self.starts.append(base + start)
        self.lengths.append(length)

    def _stop(self, problem: str) -> None:
        self._damage = Damage(len(self.starts), self.end, f"{problem}; {_REMEDY}, or name TFRecords")
