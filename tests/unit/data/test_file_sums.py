"""Sums of parts of files make up that which zlib gives for all of their bytes."""

from __future__ import annotations

import zlib
from functools import reduce
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rookery.data.file_sums import PartSum, joined, sum_of_part


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_joined_sums_are_those_of_the_joined_bytes(parts: list[bytes]) -> None:
    whole = b"".join(parts)
    assert reduce(joined, [PartSum(zlib.crc32(part), len(part)) for part in parts]) == (zlib.crc32(whole), len(whole))


def test_lengths_beyond_32_bits() -> None:
    """8 GB of zeros, each sum of twice the bytes of the one before: what follows may be joined before or after."""
    zeros = PartSum(zlib.crc32(bytes(1 << 20)), 1 << 20)
    tail = PartSum(zlib.crc32(b"tail"), 4)
    for _ in range(13):
        half, zeros = zeros, joined(zeros, zeros)
        assert joined(zeros, tail) == joined(half, joined(half, tail))
    assert zeros.num_bytes == 1 << 33


@pytest.mark.parametrize("num_parts", [1, 2, 3, 7, 4_000])
def test_parts_are_equal_and_cover_every_byte_once(tmp_path: Path, num_parts: int) -> None:
    contents = [bytes(range(250)) * 4, b"", b"x", bytes(1_800)]
    files = [tmp_path / str(number) for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    parts = [sum_of_part(files, part, num_parts) for part in range(num_parts)]
    whole = b"".join(contents)
    assert reduce(joined, parts) == (zlib.crc32(whole), len(whole))
    assert {part.num_bytes for part in parts} <= {len(whole) // num_parts, -(-len(whole) // num_parts)}
    at = 0
    for part in parts:
        assert part.crc == zlib.crc32(whole[at : at + part.num_bytes])
        at += part.num_bytes
