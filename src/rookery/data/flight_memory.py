"""Batches between a reader and a trainer on one machine: laid in memory that both have mapped, not sent.

The memory is a file without a name (memfd_create(2)), which ends with the processes that hold it. The reader says its
own process and descriptor; the trainer opens it under /proc, if the two run as one user and see the same processes. A
copy into memory and one out of it, each with the sum of what passes, take a fifth of what gRPC takes (the log).
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch
from zlib_ng import zlib_ng

from rookery.data.flight_wire import MAX_BATCHES, MAX_MESSAGE_BYTES, Garbage, Header, Message, TensorTypes, numbers_of
from rookery.data.stream import Columns

BEGIN = b"begin"
"""What a trainer says first; it ends the call when it has taken the batches. Nothing at all would be an end, too."""

# Small enough to lie in a processor's cache between the copy and the sum.
_PIECE_BYTES = 131_072
_SMALLEST_BYTES = 1 << 20
_MAX_IDLE = 4
_MAX_MAPPED = 8


class NotShared(Exception):
    """Memory of the other process cannot be had here."""


class Handover(Message):
    """Where the batches of a ticket lie, one after another, each column after column: in file ``descriptor`` of process
    ``process``.
    """

    max_bytes: ClassVar[int] = MAX_BATCHES * MAX_MESSAGE_BYTES

    process: int
    descriptor: int
    headers: tuple[Header, ...]


def machine() -> bytes | None:
    """The same in all processes that can see each other's memory; None where there is no such thing."""
    if sys.platform != "linux":
        return None
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').stat().st_ino} {os.geteuid()}".encode()
    except OSError:
        return None


class Memory:
    """So many bytes that other processes may map, filled from the beginning with batch after batch."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.descriptor = os.memfd_create("rookery-batches", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.descriptor, num_bytes)
        # Whoever has mapped it could not read on behind a new end.
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self._bytes = np.frombuffer(mmap.mmap(self.descriptor, num_bytes), np.uint8)
        self._filled = 0

    def lay(self, batch: pa.RecordBatch) -> int:
        """Lay a batch behind those that are there. Returns the sum of its columns, as ``checksum`` does."""
        total = 0
        for array in batch.columns:
            source = np.ascontiguousarray(numbers_of(array)).view(np.uint8)
            target = self._bytes[self._filled : self._filled + len(source)]
            total = copy(source, target, total)
            self._filled += len(source)
        return total

    def clear(self) -> None:
        self._filled = 0

    def close(self) -> None:
        os.close(self.descriptor)
        del self._bytes


class Memories:
    """Memory to be used again: its pages need not be asked of the system, nor be mapped by those who read it."""

    def __init__(self) -> None:
        self._idle: list[Memory] = []
        self._lock = threading.Lock()

    def take(self, num_bytes: int) -> Memory:
        """Empty memory of at least so many bytes."""
        with self._lock:
            # The one used last is the likeliest to be in a processor's cache.
            fits = next((each for each in reversed(self._idle) if each.num_bytes >= num_bytes), None)
            if fits is not None:
                self._idle.remove(fits)
                return fits
        return Memory(max(_SMALLEST_BYTES, 1 << (num_bytes - 1).bit_length()))

    def give(self, memory: Memory) -> None:
        """Take memory back that nobody reads any more."""
        memory.clear()
        with self._lock:
            self._idle.append(memory)
            leaving = self._idle.pop(0) if len(self._idle) > _MAX_IDLE else None
        if leaving is not None:
            leaving.close()


class Mapped:
    """The memory of readers as a trainer sees it, mapped once for many tickets."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, handover: Handover) -> np.ndarray:
        """Bytes, not to be written to. ``NotShared`` where this process may not see them, ``Garbage`` for what is no
        such memory.
        """
        try:
            opened = os.open(f"/proc/{handover.process}/fd/{handover.descriptor}", os.O_RDONLY | os.O_NONBLOCK)
        except (OSError, OverflowError) as error:
            raise NotShared(str(error)) from error
        try:
            found = os.fstat(opened)
            key = found.st_dev, found.st_ino
            with self._lock:
                known = self._known.pop(key, None)
                self._known[key] = _mapped(opened, found) if known is None else known
                while len(self._known) > _MAX_MAPPED:
                    self._known.popitem(last=False)
                return self._known[key]
        finally:
            os.close(opened)


def _mapped(opened: int, found: os.stat_result) -> np.ndarray:
    try:
        if not stat.S_ISREG(found.st_mode) or not fcntl.fcntl(opened, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise Garbage("what it says is its memory may shrink while it is read")
        return np.frombuffer(mmap.mmap(opened, found.st_size, prot=mmap.PROT_READ), np.uint8)
    except (OSError, ValueError) as error:  # no seals on this kind of file; nothing in it
        raise Garbage(f"what it says is its memory cannot be mapped ({error})") from error


def take_out(memory: np.ndarray, start: int, header: Header, types: TensorTypes) -> tuple[Columns, int]:
    """The columns of the batch that lies at ``start``, in memory of their own, and where it ends.

    Raises ``Garbage`` where it ends behind the memory, or for columns with another sum than the header's.
    """
    stop = start + header.num_rows * sum(each.bytes_per_row for each in types.values())
    if stop > len(memory):
        raise Garbage(f"batch {header.batch} ends at byte {stop:,} of {len(memory):,}")
    columns, total = {}, 0
    for name, each in types.items():
        shape = (header.num_rows,) if each.width is None else (header.num_rows, each.width)
        column = torch.empty(shape, dtype=each.sent)
        target = column.numpy().reshape(-1).view(np.uint8)
        total = copy(memory[start : start + len(target)], target, total)
        start += len(target)
        columns[name] = column.to(each.dtype)
    if total != header.checksum:
        raise Garbage(f"batch {header.batch} is not what was laid down: its checksum differs")
    return columns, stop


def copy(source: np.ndarray, target: np.ndarray, total: int) -> int:
    """Copy bytes, and return the CRC-32 that goes on from ``total``."""
    for start in range(0, len(source), _PIECE_BYTES):
        piece = target[start : start + _PIECE_BYTES]
        piece[:] = source[start : start + _PIECE_BYTES]
        total = zlib_ng.crc32(piece, total)
    return total
