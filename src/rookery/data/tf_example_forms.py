"""Single tf.Examples by the rules of protocol buffers: brought into the form that writers give them.

Of a field that occurs twice the later one counts, messages are merged, lists are joined, unknown fields are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from rookery.data.protobuf import FIXED32, LENGTH, VARINT, Garbled, decode_varints, delimited, fields, varint
from rookery.data.segdense import ListKind

LIST_FIELD: Mapping[ListKind, int] = {"bytes_list": 1, "float_list": 2, "int64_list": 3}
"""The field of Feature that has a list."""

_LIST_OF_FIELD = {field: kind for kind, field in LIST_FIELD.items()}


def usual_form(data: bytes) -> bytes:
    """An Example with one Features, entries of a name and then a feature, features of one list, lists packed.

    Raises ``Garbled`` for what is no Example.
    """
    entries: dict[bytes, bytes] = {}
    for example in fields(data, 0, len(data)):
        if example.number == 1:
            _require(LENGTH, example.wire, "features")
            for entry in fields(data, example.start, example.stop):
                if entry.number == 1:
                    _require(LENGTH, entry.wire, "an entry")
                    name, feature = _entry(data, entry.start, entry.stop)
                    entries[name] = feature
    every = (delimited(1, delimited(1, name) + delimited(2, feature)) for name, feature in entries.items())
    return delimited(1, b"".join(every))


def packed_list(kind: ListKind, data: bytes) -> bytes:
    """An Int64List or FloatList with all its values in one packed field; nothing for an empty one."""
    values = KINDS[kind](data)
    return delimited(1, b"".join(values)) if values else b""


def _entry(data: bytes, start: int, stop: int) -> tuple[bytes, bytes]:
    """Name and feature; either may be missing, and is then empty."""
    name, features = b"", []
    for field in fields(data, start, stop):
        if field.number in {1, 2}:
            _require(LENGTH, field.wire, "a name or a feature")
        if field.number == 1:
            name = data[field.start : field.stop]
        elif field.number == 2:
            features.append(data[field.start : field.stop])
    return name, _feature(b"".join(features))


def _feature(data: bytes) -> bytes:
    """The last list that is set, joined with those of its kind that stand directly before it."""
    kind: ListKind | None = None
    pieces: list[bytes] = []
    for field in fields(data, 0, len(data)):
        found = _LIST_OF_FIELD.get(field.number)
        if found is None:
            continue
        _require(LENGTH, field.wire, f"a {found}")
        if found != kind:
            kind, pieces = found, []
        pieces.append(data[field.start : field.stop])
    if kind is None:
        return b""
    joined = b"".join(pieces)
    return delimited(LIST_FIELD[kind], _bytes_list(joined) if kind == "bytes_list" else packed_list(kind, joined))


def _bytes_list(data: bytes) -> bytes:
    return b"".join(delimited(1, value) for value in _byte_strings(data))


def _byte_strings(data: bytes) -> list[bytes]:
    found = []
    for field in fields(data, 0, len(data)):
        if field.number == 1:
            _require(LENGTH, field.wire, "bytes")
            found.append(data[field.start : field.stop])
    return found


def _float_pieces(data: bytes) -> list[bytes]:
    """Runs of 4 bytes each."""
    if len(data) % 5 == 0:
        single = np.frombuffer(data, np.uint8).reshape(-1, 5)
        if (single[:, 0] == (1 << 3 | FIXED32)).all():
            return [single[:, 1:].tobytes()] if data else []
    found = []
    for field in fields(data, 0, len(data)):
        if field.number != 1:
            continue
        if field.wire not in {LENGTH, FIXED32}:
            raise Garbled(f"a float of wire type {field.wire}")
        if (field.stop - field.start) % 4:
            raise Garbled(f"{field.stop - field.start:,} bytes, which are no whole number of floats")
        found.append(data[field.start : field.stop])
    return found


def _integer_pieces(data: bytes) -> list[bytes]:
    """Runs of varints."""
    flat = np.frombuffer(data, np.uint8)
    if len(data) and flat[-1] < 0x80:
        values, _ = decode_varints(flat)
        if len(values) % 2 == 0 and (values[::2] == (1 << 3 | VARINT)).all():
            return [b"".join(varint(value) for value in values[1::2].view(np.uint64).tolist())]
    found = []
    for field in fields(data, 0, len(data)):
        if field.number != 1:
            continue
        if field.wire not in {LENGTH, VARINT}:
            raise Garbled(f"an integer of wire type {field.wire}")
        piece = data[field.start : field.stop]
        if piece and piece[-1] >= 0x80:
            raise Garbled("an integer that does not end")
        found.append(piece)
    return found


KINDS: Mapping[ListKind, Callable[[bytes], list[bytes]]] = {
    "bytes_list": _byte_strings,
    "float_list": _float_pieces,
    "int64_list": _integer_pieces,
}
"""What a list has: each of its byte strings, or runs of its values as a packed field has them."""


def _require(wanted: int, wire: int, what: str) -> None:
    if wire != wanted:
        raise Garbled(f"{what} of wire type {wire}, which should have {wanted}")


def example(features: Iterable[tuple[str, ListKind, np.ndarray]]) -> bytes:
    """An Example of numbers, packed: names, kinds and values ``[n]``, in this order."""
    entries = []
    for name, kind, values in features:
        if kind == "float_list":
            packed = values.astype("<f4").tobytes()
        elif len(values) and values.min() >= 0 and values.max() < 0x80:
            packed = values.astype(np.uint8).tobytes()
        else:
            packed = b"".join(varint(value) for value in values.astype(np.int64).view(np.uint64).tolist())
        listed = delimited(1, packed) if len(values) else b""
        feature = delimited(LIST_FIELD[kind], listed)
        entries.append(delimited(1, delimited(1, name.encode()) + delimited(2, feature)))
    return delimited(1, b"".join(entries))
