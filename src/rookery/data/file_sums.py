"""CRC-32 of large files that can be shared out: sums of parts of the bytes make up that of the whole."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from zlib_ng import zlib_ng

from rookery.errors import DataError
from rookery.storage.location import Location

_BLOCK_BYTES = 1 << 20
_POLYNOMIAL = 0xEDB88320
"""That of zlib's CRC-32 without its 32nd power; the highest bit stands for the power 0."""


class PartSum(NamedTuple):
    """CRC-32 of so many bytes."""

    crc: int
    num_bytes: int


def sum_of_part(files: Sequence[Location], part: int, num_parts: int) -> PartSum:
    """Of one of ``num_parts`` runs of bytes, as equal as can be, of files one after another; about 1 GB/s.

    Raises ``DataError`` for a file that cannot be read.
    """
    sizes = [_told(file, _size) for file in files]
    first, end = (each * sum(sizes) // num_parts for each in (part, part + 1))
    crc, start = 0, 0
    for file, size in zip(files, sizes, strict=True):
        read = functools.partial(_crc32, first=max(0, first - start), end=min(size, end - start), crc=crc)
        crc = _told(file, read)
        start += size
    return PartSum(crc, end - first)


def joined(left: PartSum, right: PartSum) -> PartSum:
    """The sum of the bytes of ``left`` followed by those of ``right``, as zlib's ``crc32_combine`` gives it.

    A CRC is the remainder of a polynomial over GF(2): bytes that follow raise the powers of those before.
    """
    return PartSum(_product(_power(8 * right.num_bytes), left.crc) ^ right.crc, left.num_bytes + right.num_bytes)


def _told(file: Location, read: Callable[[Location], int]) -> int:
    try:
        return read(file)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"{file}: cannot be read ({reason}); restore the file, or its permissions, on every machine"
        ) from error


def _size(file: Location) -> int:
    with file.open("rb") as stream:
        return stream.seek(0, 2)


def _crc32(file: Location, first: int, end: int, crc: int) -> int:
    """``crc`` carried on over the bytes ``first`` to ``end`` of a file."""
    if first >= end:
        return crc
    with file.open("rb") as stream:
        stream.seek(first)
        for start in range(first, end, _BLOCK_BYTES):
            crc = zlib_ng.crc32(stream.read(min(_BLOCK_BYTES, end - start)), crc)
    return crc


def _power(exponent: int) -> int:
    """x ** exponent, by squares."""
    power, square = 1 << 31, 1 << 30
    while exponent:
        if exponent & 1:
            power = _product(power, square)
        square = _product(square, square)
        exponent >>= 1
    return power


def _product(left: int, right: int) -> int:
    """Of two polynomials, modulo the CRC's."""
    product = 0
    for place in range(31, -1, -1):
        if left >> place & 1:
            product ^= right
        right = right >> 1 ^ (_POLYNOMIAL if right & 1 else 0)  # times x
    return product
