"""TFRecord framing against one written byte by byte, and damage at every place of a file."""

from __future__ import annotations

import gzip
import io
import random
import struct
import tracemalloc
import zlib
from contextlib import suppress

import naive_records as naive
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rookery.data.tfrecord import (
    MAX_RECORD_BYTES,
    CorruptBytes,
    Inflater,
    RecordReader,
    Records,
    framed,
    is_gzip,
    masked_crc,
)

PAYLOADS = st.lists(st.binary(max_size=40), max_size=8)
RECORDS = [b"first", b"", b"third record" * 3, b"\0\1\2"]


def payloads(records: Records) -> list[bytes]:
    return [
        records.data[start : start + size].tobytes()
        for start, size in zip(records.starts, records.lengths, strict=True)
    ]


def read_all(reader: RecordReader, num_bytes: int) -> list[bytes]:
    found = []
    while reader.damage is None and len(records := reader.read(num_bytes)):
        assert records.first == len(found)
        found += payloads(records)
    return found


@given(st.binary(max_size=100))
def test_sums_are_those_of_the_formula(data):
    assert masked_crc(data) == naive.masked(naive.crc32c(data))
    assert framed(data) == naive.frame(data)


@given(PAYLOADS, st.integers(1, 200), st.integers(0, 8))
def test_records_come_back_whole_in_blocks_of_any_size(written, num_bytes, cut):
    frames = [framed(one) for one in written]
    members = gzip.compress(b"".join(frames[:cut])) + gzip.compress(b"".join(frames[cut:]))
    for source in (io.BytesIO(b"".join(frames)), Inflater(io.BytesIO(members))):
        reader = RecordReader(source)
        assert read_all(reader, num_bytes) == written
        assert (reader.damage, reader.wrong_data) == (None, None)


@given(PAYLOADS.filter(len), st.integers(1, 100), st.data())
def test_an_inflater_goes_on_where_another_one_stood(written, num_bytes, data):
    file = io.BytesIO(gzip.compress(b"".join(map(framed, written))))
    source = Inflater(file)
    reader = RecordReader(source)
    places = [(0, 0, source.restart())]
    while len(records := reader.read(num_bytes)):
        _, offset, _ = places[-1]
        places.append((records.first + len(records), offset + records.num_bytes, source.restart()))
    for first, offset, restart in data.draw(st.permutations(places)):
        again = RecordReader(Inflater.at(restart, file), first, offset)
        rest = again.read(10_000)
        assert payloads(rest) == written[first:]
        assert (rest.first, rest.offset) == (first, offset)


def test_every_flipped_bit_is_noticed_with_its_record_and_byte():
    frames = [naive.frame(one) for one in RECORDS]
    whole = b"".join(frames)
    offsets = [sum(map(len, frames[:number])) for number in range(len(frames))]
    for place in range(len(whole)):
        number = max(number for number, offset in enumerate(offsets) if offset <= place)
        reader = RecordReader(io.BytesIO(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]))
        found = payloads(reader.read(1_000))
        damage = reader.damage or reader.wrong_data
        assert damage is not None
        assert (damage.record, damage.offset) == (number, offsets[number]), damage
        assert found[:number] == RECORDS[:number]
        if place - offsets[number] >= 12:  # data and their sum: all others can still be read
            assert "bytes of data do not have their CRC-32C; write the file again" in damage.problem
            assert found[number + 1 :] == RECORDS[number + 1 :]
        else:
            assert found == RECORDS[:number]


def test_every_place_that_a_file_may_end_at_is_told():
    frames = [naive.frame(one) for one in RECORDS]
    whole = b"".join(frames)
    ends = [sum(map(len, frames[: number + 1])) for number in range(-1, len(frames))]
    for size in range(len(whole)):
        for num_bytes in (1, 1_000):
            reader = RecordReader(io.BytesIO(whole[:size]))
            found = read_all(reader, num_bytes)
            number = max(number for number, end in enumerate(ends) if end <= size)
            assert found == RECORDS[:number]
            if size in ends:
                assert reader.damage is None
            else:
                assert reader.damage is not None
                assert (reader.damage.record, reader.damage.offset) == (number, ends[number])
                assert "the file ends within it" in str(reader.damage)


def test_every_place_that_gzip_may_end_at_is_told():
    random.seed(1)
    written = [random.randbytes(300) for _ in range(4)]
    whole = gzip.compress(b"".join(map(framed, written)))
    for size in range(1, len(whole)):
        reader = RecordReader(Inflater(io.BytesIO(whole[:size])))
        found = read_all(reader, 100)
        assert reader.damage is not None, size
        assert "the gzip data end before their end mark" in reader.damage.problem
        assert found == written[: len(found)]
        assert reader.damage.record == len(found)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda zipped: zipped + b"more", "the gzip data are damaged"),
        (lambda zipped: zipped[:-6] + b"\0\0" + zipped[-4:], "the gzip data are damaged"),
        (lambda zipped: zipped[:10] + b"\xff\xff" + zipped[12:], "the gzip data are damaged"),
    ],
    ids=["what stands behind", "the sum", "within"],
)
def test_damaged_gzip_is_told(spoil, problem):
    random.seed(2)
    written = [random.randbytes(200) for _ in range(3)]
    reader = RecordReader(Inflater(io.BytesIO(spoil(gzip.compress(b"".join(map(framed, written)))))))
    assert read_all(reader, 1) == written[: reader.damage.record if reader.damage else 0]
    assert reader.damage is not None
    assert problem in str(reader.damage)


def test_what_stands_before_damage_of_gzip_is_kept():
    random.seed(3)
    written = [random.randbytes(40) * 3 for _ in range(20)]
    plain = b"".join(map(framed, written))
    ends = [sum(len(framed(one)) for one in written[:number]) for number in range(len(written) + 1)]
    whole = gzip.compress(plain)
    for place in (*range(10, len(whole) - 8, 17), *range(len(whole) - 8, len(whole))):
        spoiled = whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :]
        inflated = inflated_by_bytes(spoiled)
        for num_bytes in (1, 1_000, 10_000_000):
            assert inflated_up_to_damage(spoiled, num_bytes).startswith(inflated), (place, num_bytes)
        if place >= len(whole) - 8:  # the sum and the length: all was inflated
            reader = RecordReader(Inflater(io.BytesIO(spoiled)))
            assert read_all(reader, 10_000) == written
            assert reader.damage is not None
            assert (reader.damage.record, reader.damage.offset) == (20, ends[20])
            assert reader.damage.problem.startswith("the records before it are whole, then the gzip data are damaged")


def inflated_up_to_damage(zipped: bytes, num_bytes: int) -> bytes:
    inflater, found = Inflater(io.BytesIO(zipped)), b""
    with suppress(CorruptBytes):
        while piece := inflater.read(num_bytes):
            assert len(piece) <= num_bytes
            found += piece
        pytest.fail("the damage went unnoticed")
    return found


def inflated_by_bytes(zipped: bytes) -> bytes:
    """What zlib makes of a file, byte by byte, up to its damage."""
    inflater, found = zlib.decompressobj(wbits=31), b""
    with suppress(zlib.error):
        for byte in zipped:
            found += inflater.decompress(bytes([byte]))
    return found


@pytest.mark.parametrize("length", [2**60, 2**63 + 1, MAX_RECORD_BYTES + 1])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_length_that_is_only_claimed_allocates_nothing(length, zipped):
    header = struct.pack("<Q", length)
    data = framed(b"sound") + header + struct.pack("<I", masked_crc(header)) + bytes(64)
    reader = RecordReader(Inflater(io.BytesIO(gzip.compress(data))) if zipped else io.BytesIO(data))
    tracemalloc.start()
    found = read_all(reader, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [b"sound"]
    assert f"it says it has {length:,} bytes, and at most {MAX_RECORD_BYTES:,} are read" in str(reader.damage)
    assert peak < 2_000_000


def test_a_length_within_the_limit_takes_no_more_than_there_is():
    header = struct.pack("<Q", MAX_RECORD_BYTES)
    data = header + struct.pack("<I", masked_crc(header)) + bytes(64)
    tracemalloc.start()
    reader = RecordReader(io.BytesIO(data))
    assert read_all(reader, 10) == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reader.damage is not None
    assert f"the file ends within it, {MAX_RECORD_BYTES - 60:,} bytes too early" in str(reader.damage)
    assert peak < 2_000_000


def test_a_record_that_begins_like_gzip_is_none():
    plain = framed(bytes(0x088B1F))
    assert plain[:3] == gzip.compress(b"")[:3]
    assert not is_gzip(io.BytesIO(plain))
    assert is_gzip(io.BytesIO(gzip.compress(plain)))
    assert not is_gzip(io.BytesIO(b""))


def test_an_inflater_gives_no_more_than_asked_for():
    inflater = Inflater(io.BytesIO(gzip.compress(bytes(10_000_000))))
    sizes = []
    while piece := inflater.read(3_000_000):
        sizes.append(len(piece))
    assert sum(sizes) == 10_000_000
    assert max(sizes) <= 3_000_000
    with pytest.raises(CorruptBytes, match="damaged"):
        Inflater(io.BytesIO(b"no gzip")).read(10)
