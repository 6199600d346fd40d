"""Parsing of tf.Examples in step, against a parser in plain Python, over every form that a message may have."""

from __future__ import annotations

import math
import struct

import naive_records as naive
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rookery.data.segdense import RAGGED, RecordColumn
from rookery.data.tf_example import BadRecord, parse_examples
from rookery.data.tf_example_forms import example, usual_form
from rookery.data.tfrecord import Records

INT64S = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9)
FLOATS = st.floats(width=32)
VALUES = {"int64_list": INT64S, "float_list": FLOATS, "bytes_list": st.binary(max_size=5)}
DEFAULTS = {"int64_list": 0, "float_list": 0.0, "bytes_list": b""}


def records_of(*examples: bytes) -> Records:
    """Records as they lie in a file, frames of 12 and 4 bytes around each."""
    data = b"".join(bytes(12) + one + bytes(4) for one in examples)
    lengths = np.array([len(one) for one in examples], np.int64)
    starts = np.cumsum(lengths + 16) - lengths - 4
    return Records(np.frombuffer(data + bytes(16), np.uint8), starts, lengths, 0, 0)


def expected(examples, column):
    """The column's values by the plain parser; what is missing is the default, ``length`` times."""
    rows = []
    for one in examples:
        kind, values = naive.parse(one).get(column.feature, (column.kind, None))
        assert kind == column.kind
        if values is None:
            values = [] if column.length == RAGGED else [DEFAULTS[kind]] * column.length
        rows.append(values[0] if column.length == 1 else values)
    return rows


def same(found: pa.Array, rows) -> None:
    assert found.null_count == 0
    assert repr(found.to_pylist()) == repr(pa.array(rows, found.type).to_pylist())  # NaN equals NaN


@st.composite
def listed(draw, kind, values):
    """A list in one of the forms that mean the same."""
    form = draw(st.sampled_from(["packed", "packed", "unpacked", "pieces", "unknown"]))
    if form == "packed":
        return naive.packed_field(kind, values)
    if form == "unpacked":
        return naive.unpacked(kind, values)
    if form == "unknown":
        return naive.field(7, b"later") + naive.packed_field(kind, values) + b"\x48\x05"
    cut = draw(st.integers(0, len(values)))
    return naive.packed_field(kind, values[:cut]) + naive.unpacked(kind, values[cut:])


@st.composite
def entry(draw, name, kind, values):
    written = naive.feature(kind, draw(listed(kind, values)))
    form = draw(st.sampled_from(["usual", "usual", "swapped", "twice", "replaced", "unknown", "halves"]))
    key = naive.field(1, name.encode())
    if form == "swapped":
        return naive.field(1, naive.field(2, written) + key)
    if form == "twice":
        return naive.field(1, key + naive.field(2, naive.feature("float_list", b""))) * 2 + naive.field(
            1, key + naive.field(2, written)
        )
    if form == "replaced":
        other = naive.feature("int64_list" if kind == "float_list" else "float_list", b"")
        return naive.field(1, key + naive.field(2, other + written))
    if form == "unknown":
        return naive.field(1, key + b"\x99\x01" + bytes(8) + naive.field(2, written + naive.field(9, b"?")))
    if form == "halves":
        cut = draw(st.integers(0, len(values)))
        halves = (naive.feature(kind, naive.packed_field(kind, part)) for part in (values[:cut], values[cut:]))
        return naive.field(1, key + b"".join(naive.field(2, half) for half in halves))
    return naive.field(1, key + naive.field(2, written))


@st.composite
def written_example(draw, columns):
    entries = []
    for column in columns:
        presence = draw(st.sampled_from(["there", "there", "there", "absent", "not set"]))
        if presence == "not set":
            entries.append(naive.field(1, naive.field(1, column.feature.encode()) + naive.field(2, b"")))
        if presence == "there":
            sizes = (
                {"max_size": 4} if column.length == RAGGED else {"min_size": column.length, "max_size": column.length}
            )
            values = draw(st.lists(VALUES[column.kind], **sizes))
            entries.append(draw(entry(column.feature, column.kind, values)))
    if draw(st.booleans()):
        entries.append(draw(entry("of no column", "int64_list", [1, 300])))
    entries = draw(st.permutations(entries))
    if draw(st.booleans()):
        return naive.field(1, b"".join(entries))
    cut = draw(st.integers(0, len(entries)))
    return naive.field(1, b"".join(entries[:cut])) + naive.field(5, b"?") + naive.field(1, b"".join(entries[cut:]))


COLUMNS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "ab", "ac", "a much longer name " * 8, "é"]),
        st.sampled_from(sorted(VALUES)),
        st.sampled_from([1, 2, 3, RAGGED]),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda one: one[0],
).map(lambda found: tuple(RecordColumn(name, name, kind, length) for name, kind, length in found))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_form_of_a_record_gives_what_the_plain_parser_gives(data):
    columns = data.draw(COLUMNS)
    examples = data.draw(st.lists(written_example(columns), max_size=5))
    for column, found in zip(columns, parse_examples(records_of(*examples), columns), strict=True):
        assert found.type == column.arrow_type
        same(found, expected(examples, column))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_records_are_refused_or_mean_something(data):
    """Bytes that a CRC would have caught: no crash, no value out of nowhere."""
    columns = (RecordColumn("a", "a", "int64_list", 2), RecordColumn("b", "b", "float_list", RAGGED))
    lists = {"a": ("int64_list", [7, 2**40]), "b": ("float_list", [0.5, 1.5]), "c": ("bytes_list", [b"xy"])}
    sound = naive.example(lists)
    damaged = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
    refusal = None
    try:
        found = parse_examples(records_of(sound, bytes(damaged), sound), columns)
    except BadRecord as error:
        refusal = error
    if refusal is not None:
        assert (refusal.place, bool(str(refusal))) == (1, True)
        return
    for column, values in zip(columns, found, strict=True):
        same(values.take([0, 2]), expected([sound, sound], column))
    try:
        meant = naive.parse(bytes(damaged))
    except naive.NoMessage:  # in a part that no column is read from
        return
    for column, values in zip(columns, found, strict=True):
        if column.feature in meant:
            same(values.slice(1, 1), expected([bytes(damaged)], column))


@given(st.lists(INT64S, max_size=6), st.lists(FLOATS, max_size=6))
def test_what_we_write_is_in_the_usual_form(integers, floats):
    lists = [("i", "int64_list", np.array(integers, np.int64)), ("f", "float_list", np.array(floats, np.float32))]
    written = example(lists)
    assert repr(naive.parse(written)) == repr({"i": ("int64_list", integers), "f": ("float_list", floats)})
    assert written == naive.example({"i": ("int64_list", integers), "f": ("float_list", floats)})
    assert usual_form(written) == written


def test_an_empty_record_has_every_default():
    columns = tuple(
        RecordColumn(f"{kind}{length}", f"{kind}{length}", kind, length) for kind in VALUES for length in (1, 2, RAGGED)
    )
    found = parse_examples(records_of(b"", naive.field(1, b"")), columns)
    for column, values in zip(columns, found, strict=True):
        same(values, expected([b"", b""], column))
    assert parse_examples(records_of(), columns)[0].to_pylist() == []


@pytest.mark.parametrize("bits", [0, 1, 13, 16, 23])
def test_masked_bits_of_the_mantissa_are_cut_off(bits):
    values = [1.2345678, -7.654321e-30, math.inf, -0.0, 3.0]
    column = RecordColumn("f", "f", "float_list", len(values), masked_bits=bits)
    (found,) = parse_examples(records_of(naive.example({"f": ("float_list", values)})), [column])
    for value, cut in zip(values, found[0].as_py(), strict=True):
        pattern = struct.unpack("<I", struct.pack("<f", value))[0]
        assert struct.pack("<f", cut) == struct.pack("<I", pattern >> bits << bits)


def of(kind, values, listed=naive.packed_field):
    return naive.example({"f": (kind, values)}, listed)


@pytest.mark.parametrize(
    ("kind", "length", "record", "problem"),
    [
        (
            "int64_list",
            2,
            of("int64_list", [1, 2, 3]),
            r"'f' has 3 values, and the schema says 2; correct the schema's",
        ),
        ("float_list", 1, of("float_list", []), r"'f' has 0 values, and the schema says 1"),
        ("bytes_list", 1, of("bytes_list", [b"", b""]), r"'f' has 2 values, and the schema says 1"),
        ("int64_list", 1, of("float_list", [1.0]), r"'f' is float_list, and the schema says int64_list; correct"),
        ("bytes_list", -1, of("int64_list", [1]), r"'f' is int64_list, and the schema says bytes_list; correct"),
        (
            "float_list",
            -1,
            of("float_list", b"", lambda *_: naive.field(1, b"abcde")),
            r"'f' has 5 bytes, which are no",
        ),
        (
            "int64_list",
            -1,
            of("int64_list", b"", lambda *_: naive.field(1, b"\x80")),
            r"'f' has an integer that does not",
        ),
        (
            "int64_list",
            -1,
            of("int64_list", b"", lambda *_: naive.field(1, b"\x81" * 10 + b"\0")),
            r"integer of 11 bytes",
        ),
        ("int64_list", -1, of("int64_list", b"", lambda *_: b"\x0d1234"), r"'f' has an integer of wire type 5"),
        ("float_list", -1, of("float_list", b"", lambda *_: b"\x08\x01"), r"'f' has a float of wire type 0"),
        ("bytes_list", -1, of("bytes_list", b"", lambda *_: b"\x08\x01"), r"'f' has bytes of wire type 0"),
        ("int64_list", 1, b"\x0a", r"no tf.Example: an integer that does not end; leave the record out"),
        ("int64_list", 1, b"\x0a\x05abc", r"no tf.Example: a field of 5 bytes where 3 are left"),
        ("int64_list", 1, b"\x0f", r"no tf.Example: a field of wire type 7"),
        ("int64_list", 1, b"\x08\x01", r"no tf.Example: features of wire type 0, which should have 2"),
    ],
)
def test_what_does_not_fit_is_refused_by_record_and_feature(kind, length, record, problem):
    column = RecordColumn("ours", "f", kind, length)
    with pytest.raises(BadRecord, match=problem) as caught:
        parse_examples(records_of(b"", record), [column])
    assert caught.value.place == 1
