"""Ids of any type as int64, the same on every machine and in every version: ``docs/impressions-format.md``.

Integers are themselves (uint64 above 2^63 wraps), booleans 0 and 1, floats and decimals the whole number that they
hold. Dates and times are milliseconds since 1970-01-01 UTC, rounded down. A string or bytes is the 8-byte BLAKE2b
digest of its UTF-8 (or its bytes), read as a little-endian signed integer.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

from rookery.data.columns import is_text, is_time

MISSING_ID: int = -(2**63)
"""Stands for a null, and pads lists of ids."""

_TICKS_PER_MS = {"ms": 1, "us": 1_000, "ns": 1_000_000}
_DAY_MS = 86_400_000


class NoId(ValueError):
    """A value of floats or decimals is no whole number of 64 bits; ``row`` is its place in the array."""

    def __init__(self, row: int, value: object) -> None:
        super().__init__(f"is {value}, no whole number of 64 bits")
        self.row = row


def encode_ids(array: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Int64 ``[rows]``; null is ``MISSING_ID``. Raises ``NoId`` for a float or decimal that is not whole.

    A string is hashed once a chunk, however often it stands there: 1 µs for each distinct one.
    """
    if isinstance(array, pa.ChunkedArray):
        return np.concatenate([np.empty(0, np.int64), *(encode_ids(chunk) for chunk in array.chunks)])
    if pa.types.is_dictionary(array.type):
        return _of_codes(encode_ids(array.dictionary), array.indices)
    if is_text(array.type):
        distinct = array.dictionary_encode()
        return _of_codes(_hash(distinct.dictionary), distinct.indices)
    if pa.types.is_floating(array.type):
        return _of_floats(array)
    if is_time(array.type):
        return _with_missing(_milliseconds(array), array)
    return _with_missing(_of_decimals(array) if pa.types.is_decimal(array.type) else _integers(array), array)


def _of_codes(ids: np.ndarray, codes: pa.Array) -> np.ndarray:
    """The id of each code; a null code is the one behind the last."""
    places = codes.cast(pa.int64()).fill_null(len(ids)).to_numpy()
    result: np.ndarray = np.append(ids, MISSING_ID)[places]
    return result


def _hash(texts: pa.Array) -> np.ndarray:
    digests = b"".join(
        hashlib.blake2b(text, digest_size=8).digest() for text in texts.cast(pa.large_binary()).to_pylist()
    )
    return np.frombuffer(digests, "<i8")


def _of_floats(array: pa.Array) -> np.ndarray:
    values = array.cast(pa.float64()).to_numpy(zero_copy_only=False)  # null is NaN
    missing = np.isnan(values)
    numbers = np.where(missing, 0.0, values)
    wrong = (numbers != np.floor(numbers)) | (np.abs(numbers) >= 2.0**63)
    if wrong.any():
        row = int(wrong.argmax())
        raise NoId(row, array[row].as_py())
    return np.where(missing, MISSING_ID, numbers.astype(np.int64))


def _of_decimals(array: pa.Array) -> np.ndarray:
    try:
        return _integers(array.cast(pa.int64()))
    except pa.ArrowInvalid as error:
        for row, value in enumerate(array.to_pylist()):
            if value is not None and (value % 1 or not -(2**63) <= value < 2**63):
                raise NoId(row, value) from error
        raise


def _milliseconds(array: pa.Array) -> np.ndarray:
    if pa.types.is_date32(array.type):
        return _integers(array.cast(pa.int32())) * _DAY_MS
    ticks = _integers(array.cast(pa.int64()))
    unit = "ms" if pa.types.is_date64(array.type) else array.type.unit
    return ticks * 1_000 if unit == "s" else ticks // _TICKS_PER_MS[unit]


def _integers(array: pa.Array) -> np.ndarray:
    """Int64; what stands under a null is 0."""
    numbers = array.cast(pa.int8()) if pa.types.is_boolean(array.type) else array
    values: np.ndarray = numbers.fill_null(0).to_numpy()
    return values.astype(np.int64)


def _with_missing(values: np.ndarray, array: pa.Array) -> np.ndarray:
    if not array.null_count:
        return values
    return np.where(array.is_null().to_numpy(zero_copy_only=False), MISSING_ID, values)
