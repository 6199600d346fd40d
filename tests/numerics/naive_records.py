"""TFRecords and tf.Examples byte by byte: a writer of every form of a message, and a parser in plain Python."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

Lists = dict[str, tuple[str, list[Any]]]
"""Kind and values by feature."""

FIELD_OF_KIND = {"bytes_list": 1, "float_list": 2, "int64_list": 3}
ALLOWED = {"bytes_list": {2}, "float_list": {2, 5}, "int64_list": {2, 0}}
KIND_OF_FIELD = {field: kind for kind, field in FIELD_OF_KIND.items()}


class NoMessage(Exception):
    """Bytes that mean nothing."""


def crc32c(data: bytes) -> int:
    """Bit by bit, polynomial 0x1EDC6F41 reflected."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32


def frame(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked(crc32c(length))) + data + struct.pack("<I", masked(crc32c(data)))


def varint(value: int) -> bytes:
    value %= 2**64
    out = b""
    while True:
        value, low = value >> 7, value & 127
        out += bytes([low | (128 if value else 0)])
        if not value:
            return out


def field(number: int, data: bytes) -> bytes:
    return varint(number * 8 + 2) + varint(len(data)) + data


def packed(kind: str, values: Sequence[Any]) -> bytes:
    return b"".join(struct.pack("<f", value) if kind == "float_list" else varint(value) for value in values)


def unpacked(kind: str, values: Sequence[Any]) -> bytes:
    if kind == "bytes_list":
        return b"".join(field(1, value) for value in values)
    tag = b"\x0d" if kind == "float_list" else b"\x08"
    return b"".join(tag + packed(kind, [value]) for value in values)


def packed_field(kind: str, values: Sequence[Any]) -> bytes:
    if kind == "bytes_list":
        return unpacked(kind, values)
    return field(1, packed(kind, values)) if values else b""


def feature(kind: str, listed: bytes) -> bytes:
    return field(FIELD_OF_KIND[kind], listed)


def example(lists: Lists, listed: Callable[[str, Sequence[Any]], bytes] = packed_field) -> bytes:
    """As writers have it: entries of name and feature, in the order of ``lists``."""
    entries = (
        field(1, field(1, name.encode()) + field(2, feature(kind, listed(kind, values))))
        for name, (kind, values) in lists.items()
    )
    return field(1, b"".join(entries))


def parse(data: bytes) -> Lists:
    """By the rules: later fields replace earlier ones, messages merge, lists grow, what is unknown is passed over."""
    lists: Lists = {}
    for number, wire, value in _fields(data):
        if (number, wire) == (1, 2):
            for entry_number, entry_wire, entry in _fields(value):
                if (entry_number, entry_wire) == (1, 2):
                    name, found = b"", None
                    for inner, inner_wire, part in _fields(entry):
                        if inner in {1, 2} and inner_wire != 2:
                            raise NoMessage(inner_wire)
                        if inner == 1:
                            name = part
                        elif inner == 2:
                            found = _merged(found, part)
                    lists.pop(name.decode(errors="replace"), None)
                    if found is not None:
                        lists[name.decode(errors="replace")] = found
    return lists


def _merged(known: tuple[str, list[Any]] | None, data: bytes) -> tuple[str, list[Any]] | None:
    for number, wire, value in _fields(data):
        kind = KIND_OF_FIELD.get(number)
        if kind is not None:
            if wire != 2:
                raise NoMessage(wire)
            before = known[1] if known is not None and known[0] == kind else []
            known = kind, [*before, *_values(kind, value)]
    return known


def _values(kind: str, data: bytes) -> list[Any]:
    found: list[Any] = []
    for number, wire, value in _fields(data):
        if number != 1:
            continue
        if wire not in ALLOWED[kind]:
            raise NoMessage(wire)
        if kind == "bytes_list":
            found.append(value)
        elif kind == "float_list":
            if len(value) % 4:
                raise NoMessage(len(value))
            found += struct.unpack(f"<{len(value) // 4}f", value)
        elif wire == 0:
            found.append(_signed(value))
        else:
            at = 0
            while at < len(value):
                number_read, at = _varint(value, at)
                found.append(_signed(number_read))
    return found


def _fields(data: bytes) -> list[tuple[int, int, Any]]:
    found, at = [], 0
    while at < len(data):
        tag, at = _varint(data, at)
        value: Any
        if tag % 8 == 0:
            value, at = _varint(data, at)
        elif tag % 8 in {1, 2, 5}:
            size, at = _varint(data, at) if tag % 8 == 2 else ({1: 8, 5: 4}[tag % 8], at)
            value, at = data[at : at + size], at + size
        else:
            raise NoMessage(tag)
        if at > len(data):
            raise NoMessage(at)
        found.append((tag // 8, tag % 8, value))
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and data[at] >= 128:
        value, at, shift = value + ((data[at] & 127) << shift), at + 1, shift + 7
    if at >= len(data) or shift > 63:
        raise NoMessage(at)
    return value + (data[at] << shift), at + 1


def _signed(value: int) -> int:
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value
