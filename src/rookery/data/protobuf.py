"""Reading protocol-buffer bytes with numpy: many varints, and many spans of bytes, at a time.

Bytes are uint8 arrays with at least 16 bytes behind whatever is pointed to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
MAX_VARINT_BYTES = 10
_LENGTH_BYTES = 5
_FIXED_BYTES = {FIXED64: 8, FIXED32: 4}


class Garbled(ValueError):
    """Bytes that are no message; the message says what is wrong with them."""


class Field(NamedTuple):
    """A field of a message: its number, wire type and value: a number, or bytes ``start`` to ``stop``."""

    number: int
    wire: int
    value: int
    start: int
    stop: int


def read_lengths(data: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A length at each of the places ``at``: its value, the place behind it, and whether it is one (of 5 bytes)."""
    byte = data[at]
    value = (byte & 0x7F).astype(np.int64)
    behind = at + 1
    longer = np.flatnonzero(byte >= 0x80)
    for shift in range(7, 7 * _LENGTH_BYTES, 7):
        if not len(longer):
            break
        byte = data[behind[longer]]
        value[longer] |= (byte & 0x7F).astype(np.int64) << shift
        behind[longer] += 1
        longer = longer[byte >= 0x80]
    is_length = np.ones(len(at), bool)
    is_length[longer] = False
    return value, behind, is_length


def gathered(data: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """The bytes of some spans, one after another."""
    if not len(starts):
        return np.empty(0, np.uint8)
    lengths = stops - starts
    if (lengths == lengths[0]).all():
        return of_one_length(data, starts, int(lengths[0])).reshape(-1)
    view = memoryview(data)  # type: ignore[arg-type]
    spans = zip(starts.tolist(), stops.tolist(), strict=True)
    return np.frombuffer(b"".join([view[start:stop] for start, stop in spans]), np.uint8)


def of_one_length(data: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """``[spans, length]``: the bytes from each of ``starts`` on."""
    if not length:
        return np.empty((len(starts), 0), np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(data, length)
    found: np.ndarray = windows[starts]
    return found


def decode_varints(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The varints (int64) that make up ``flat``, and the place of the last byte of each.

    Raises ``Garbled`` for one of more than 10 bytes; bytes behind the last whole one are left out.
    """
    last = np.flatnonzero(flat < 0x80)
    if len(last) == len(flat):
        return flat.astype(np.int64), last
    first = np.empty_like(last)
    first[:1] = 0
    first[1:] = last[:-1] + 1
    sizes = last - first + 1
    values = (flat[first] & 0x7F).astype(np.uint64)
    longest = int(sizes.max(initial=0))
    if longest > MAX_VARINT_BYTES:
        raise Garbled(f"an integer of {longest} bytes, and at most {MAX_VARINT_BYTES} make one")
    for place in range(1, longest):
        longer = np.flatnonzero(sizes > place)
        byte = flat[first[longer] + place] & 0x7F
        values[longer] |= byte.astype(np.uint64) << np.uint64(7 * place)
    return values.view(np.int64), last


def varint(value: int) -> bytes:
    """A number from 0 to 2^64 - 1 as a varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def delimited(number: int, value: bytes) -> bytes:
    """A field of bytes, or of a message."""
    return b"".join((varint(number << 3 | LENGTH), varint(len(value)), value))


def fields(data: bytes, start: int, stop: int) -> Iterator[Field]:
    """The fields of a message, in order. Raises ``Garbled`` where it is none."""
    while start < stop:
        tag, start = read_varint(data, start, stop)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, behind = read_varint(data, start, stop)
            yield Field(number, wire, value, start, behind)
        elif wire == LENGTH:
            value, start = read_varint(data, start, stop)
            behind = start + value
        elif wire in _FIXED_BYTES:
            value, behind = 0, start + _FIXED_BYTES[wire]
        else:
            raise Garbled(f"a field of wire type {wire}, which there is not")
        if behind > stop:
            raise Garbled(f"a field of {behind - start:,} bytes where {stop - start:,} are left")
        if wire != VARINT:
            yield Field(number, wire, 0, start, behind)
        start = behind


def read_varint(data: bytes, at: int, stop: int) -> tuple[int, int]:
    """A varint and the place behind it. Raises ``Garbled`` where it does not end in time."""
    value = 0
    for place in range(MAX_VARINT_BYTES):
        if at + place >= stop:
            raise Garbled("an integer that does not end")
        byte = data[at + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at + place + 1
    raise Garbled(f"an integer of more than {MAX_VARINT_BYTES} bytes")
