"""Records of tf.Example as Arrow columns, all records of a block at a time.

    Example   { 1: Features }                 Int64List { 1: repeated int64, packed or not }
    Features  { 1: repeated Entry }           FloatList { 1: repeated float, packed or not }
    Entry     { 1: name, 2: Feature }         BytesList { 1: repeated bytes }
    Feature   { one of 1: BytesList, 2: FloatList, 3: Int64List }

All records are walked in step: the k-th entry of each is read by the same numpy calls, whatever its name, so their cost
is that of some hundred calls a block. A record that is written in another way than writers do (fields in another order,
unknown ones, a list in pieces, not packed) is first brought into that form: some 300 µs where it has 28 KB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rookery.data.protobuf import Garbled, decode_varints, gathered, of_one_length, read_lengths
from rookery.data.segdense import RAGGED, ListKind, RecordColumn
from rookery.data.tf_example_forms import KINDS, LIST_FIELD, packed_list, usual_form
from rookery.data.tfrecord import Records

_ENTRY = 0x0A  # field 1, by length: also Example.features and Entry.name
_VALUE = 0x12
_PACKED = 0x0A
_KIND_OF_TAG: Mapping[int, ListKind] = {field << 3 | 2: kind for kind, field in LIST_FIELD.items()}
_LIST_TAGS = np.array(list(_KIND_OF_TAG), np.uint8)


class BadRecord(ValueError):
    """A record that does not fit the schema: ``place`` is its place among the records, the message has the remedy."""

    def __init__(self, place: int, problem: str) -> None:
        super().__init__(problem)
        self.place = place


def parse_examples(records: Records, columns: Sequence[RecordColumn]) -> list[pa.Array]:
    """The columns of some records, each ``len(records)`` values.

    A feature that a record lacks is 0, or empty bytes, ``length`` times; of a ragged one it is an empty list. Raises
    ``BadRecord`` for what is no tf.Example, a list of another type or length than the schema says.
    """
    spans = _find(records, columns)
    return [_decode(spans, number, column) for number, column in enumerate(columns)]


@dataclass
class _Spans:
    """Where the list of each column stands: bytes ``starts`` to ``stops`` ``[columns, records]`` of ``data``.

    -1 where a record has none. ``tags`` are those of the lists in Feature, which tell their type.
    """

    data: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    tags: np.ndarray

    def of(self, column: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.starts[column][rows], self.stops[column][rows]


def _find(records: Records, columns: Sequence[RecordColumn]) -> _Spans:
    shape = (len(columns), len(records))
    spans = _Spans(records.data, np.full(shape, -1), np.full(shape, -1), np.zeros(shape, np.uint8))
    walk = _Walk(spans, columns)
    rows = np.arange(len(records))
    unusual = walk(rows, records.starts, records.starts + records.lengths)
    if len(unusual):
        starts, stops = _rewrite(spans, records, unusual)
        left = walk(unusual, starts, stops)
        assert not len(left), left
    return spans


def _rewrite(spans: _Spans, records: Records, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bring records into the usual form behind all others; where they stand then."""
    written, starts, stops, end = [spans.data], [], [], len(spans.data)
    for row in rows.tolist():
        start = int(records.starts[row])
        data = records.data[start : start + int(records.lengths[row])].tobytes()
        try:
            form = usual_form(data)
        except Garbled as error:
            raise BadRecord(row, f"no tf.Example: {error}; leave the record out") from error
        written.append(np.frombuffer(form, np.uint8))
        starts.append(end)
        end += len(form)
        stops.append(end)
        # What was found before it turned out to be unusual.
        spans.starts[:, row] = -1
    written.append(np.zeros(16, np.uint8))
    spans.data = np.concatenate(written)
    return np.array(starts), np.array(stops)


class _Walk:
    """Goes over the entries of records in step and notes the lists of ``columns``."""

    def __init__(self, spans: _Spans, columns: Sequence[RecordColumn]) -> None:
        self._spans = spans
        self._names = [np.frombuffer(column.feature.encode(), np.uint8) for column in columns]
        self._by_length: dict[int, list[int]] = {}
        for number, name in enumerate(self._names):
            self._by_length.setdefault(len(name), []).append(number)

    def __call__(self, rows: np.ndarray, at: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """Walk the records ``rows``, bytes ``at`` to ``stops``; the ones that are in no usual form."""
        data = self._spans.data
        filled = at < stops
        rows, at, stops = rows[filled], at[filled], stops[filled]
        size, inside, good = read_lengths(data, at + 1)
        good &= (data[at] == _ENTRY) & (inside + size == stops)
        unusual = [rows[~good]]
        behind = inside
        while len(rows):
            on = good & (behind < stops)
            rows, at, stops = rows[on], behind[on], stops[on]
            good, behind = self._entries(rows, at, stops)
            unusual.append(rows[~good])
        return np.sort(np.concatenate(unusual))

    def _entries(self, rows: np.ndarray, at: np.ndarray, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The entry at ``at`` of each row: whether it is as usual, and the place behind it."""
        data = self._spans.data
        # An entry has at least 2 + 2 bytes; places are within the data or the zeros behind, as each was compared.
        size, inside, good = read_lengths(data, at + 1)
        behind = inside + size
        good &= (data[at] == _ENTRY) & (behind <= limit)
        key_size, key, is_length = read_lengths(data, _within(inside + 1, limit))
        value = key + key_size
        good &= is_length & (data[_within(inside, limit)] == _ENTRY) & (value < behind)
        value = _within(value, limit)
        feature_size, feature, is_length = read_lengths(data, value + 1)
        good &= is_length & (data[value] == _VALUE) & (feature + feature_size == behind)
        feature = _within(feature, limit)
        list_size, start, is_length = read_lengths(data, feature + 1)
        is_set = feature < behind
        tag = data[feature]
        is_list = is_length & (start + list_size == behind) & np.isin(tag, _LIST_TAGS)
        good &= ~is_set | is_list
        self._note(rows, good, key, key_size, np.where(is_set, start, -1), behind, tag)
        return good, behind

    def _note(
        self,
        rows: np.ndarray,
        good: np.ndarray,
        key: np.ndarray,
        key_size: np.ndarray,
        starts: np.ndarray,
        stops: np.ndarray,
        tags: np.ndarray,
    ) -> None:
        """Enter the lists of entries by their names; of two of one name the later one counts."""
        left = np.flatnonzero(good)
        spans = self._spans
        while len(left):
            length = int(key_size[left[0]])
            of_length = left[key_size[left] == length]
            left = left[key_size[left] != length] if len(of_length) < len(left) else left[:0]
            if length not in self._by_length:
                continue
            names = of_one_length(spans.data, key[of_length], length)
            for number in self._by_length[length]:
                named = (names == self._names[number]).all(1)
                found = of_length if named.all() else of_length[named]
                spans.starts[number, rows[found]] = starts[found]
                spans.stops[number, rows[found]] = stops[found]
                spans.tags[number, rows[found]] = tags[found]
                if len(found) == len(of_length):
                    break


def _within(at: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Places that damage sent beyond the record, brought back; what stands there is not looked at."""
    places: np.ndarray = np.minimum(at, limit)
    return places


def _decode(spans: _Spans, number: int, column: RecordColumn) -> pa.Array:
    rows = np.flatnonzero(spans.starts[number] >= 0)
    _require_kind(spans.tags[number][rows], rows, column)
    if column.kind == "bytes_list":
        return _bytes(spans, number, column, rows)
    _pack(spans, number, column, rows)
    starts, stops = spans.of(number, rows)
    # Tag and length of the packed values, none where the list is empty.
    filled = starts < stops
    starts = starts.copy()
    starts[filled] = read_lengths(spans.data, starts[filled] + 1)[1]
    num_records = spans.starts.shape[1]
    if column.kind == "float_list":
        return _numbers(_floats(spans.data, starts, stops, rows, column), rows, num_records, column)
    return _numbers(_integers(spans.data, starts, stops, rows, column), rows, num_records, column)


def _require_kind(tags: np.ndarray, rows: np.ndarray, column: RecordColumn) -> None:
    wrong = np.flatnonzero(tags != (LIST_FIELD[column.kind] << 3 | 2))
    if len(wrong):
        found = _KIND_OF_TAG[int(tags[wrong[0]])]
        raise BadRecord(
            int(rows[wrong[0]]),
            f"feature {column.feature!r} is {found}, and the schema says {column.kind}; correct the schema's dtype",
        )


def _pack(spans: _Spans, number: int, column: RecordColumn, rows: np.ndarray) -> None:
    """Bring lists that are not packed, or in pieces, into the usual form, behind all else."""
    starts, stops = spans.of(number, rows)
    size, inside, good = read_lengths(spans.data, starts + 1)
    good &= (spans.data[starts] == _PACKED) & (inside + size == stops)
    unusual = np.flatnonzero(~good & (starts < stops))
    if not len(unusual):
        return
    written, end = [spans.data], len(spans.data)
    for place in unusual.tolist():
        data = spans.data[starts[place] : stops[place]].tobytes()
        row = int(rows[place])
        try:
            form = packed_list(column.kind, data)
        except Garbled as error:
            raise _garbled(row, column, error) from error
        written.append(np.frombuffer(form, np.uint8))
        spans.starts[number, row], end = end, end + len(form)
        spans.stops[number, row] = end
    spans.data = np.concatenate([*written, np.zeros(16, np.uint8)])


def _garbled(row: int, column: RecordColumn, problem: object) -> BadRecord:
    return BadRecord(row, f"feature {column.feature!r} has {problem}; leave the record out")


@dataclass(frozen=True)
class _Lists:
    """Values one after another, and how many each record has of them."""

    values: np.ndarray
    counts: np.ndarray


def _floats(data: np.ndarray, starts: np.ndarray, stops: np.ndarray, rows: np.ndarray, column: RecordColumn) -> _Lists:
    sizes = stops - starts
    broken = np.flatnonzero(sizes % 4)
    if len(broken):
        problem = f"{sizes[broken[0]]:,} bytes, which are no whole number of floats"
        raise _garbled(int(rows[broken[0]]), column, problem)
    values = gathered(data, starts, stops).view("<f4")
    if column.masked_bits:
        kept = np.uint32(0x1_0000_0000 - (1 << column.masked_bits))
        values = (values.view(np.uint32) & kept).view(np.float32)
    return _Lists(values, sizes // 4)


def _integers(
    data: np.ndarray, starts: np.ndarray, stops: np.ndarray, rows: np.ndarray, column: RecordColumn
) -> _Lists:
    flat = gathered(data, starts, stops)
    ends = np.cumsum(stops - starts)
    filled = np.flatnonzero(stops > starts)
    broken = filled[flat[ends[filled] - 1] >= 0x80]
    if len(broken):
        raise _garbled(int(rows[broken[0]]), column, "an integer that does not end")
    try:
        values, last = decode_varints(flat)
    except Garbled as error:
        raise _garbled(_row_with_long_varint(flat, ends, rows), column, error) from error
    if len(values) == len(flat):
        return _Lists(values, stops - starts)
    return _Lists(values, np.diff(np.searchsorted(last, ends), prepend=0))


def _row_with_long_varint(flat: np.ndarray, ends: np.ndarray, rows: np.ndarray) -> int:
    last = np.flatnonzero(flat < 0x80)
    place = last[np.diff(last, prepend=-1) > 10][0]
    return int(rows[np.searchsorted(ends, place, side="right")])


def _numbers(lists: _Lists, rows: np.ndarray, num_records: int, column: RecordColumn) -> pa.Array:
    """The column of lists that the records ``rows`` have, the others none."""
    if column.length == RAGGED:
        counts = np.zeros(num_records, np.int64)
        counts[rows] = lists.counts
        return _ragged(counts, pa.array(lists.values), column)
    _require_length(lists.counts, rows, column)
    values = lists.values
    if len(rows) < num_records:
        every = np.zeros((num_records, column.length), values.dtype)
        every[rows] = values.reshape(-1, column.length)
        values = every.reshape(-1)
    flat = pa.array(values)
    return flat if column.length == 1 else pa.FixedSizeListArray.from_arrays(flat, type=column.arrow_type)


def _require_length(counts: np.ndarray, rows: np.ndarray, column: RecordColumn) -> None:
    wrong = np.flatnonzero(counts != column.length)
    if len(wrong):
        raise BadRecord(
            int(rows[wrong[0]]),
            f"feature {column.feature!r} has {counts[wrong[0]]:,} values, and the schema says {column.length:,}; "
            "correct the schema's length (-1: any), or leave the record out",
        )


def _bytes(spans: _Spans, number: int, column: RecordColumn, rows: np.ndarray) -> pa.Array:
    counts = np.zeros(spans.starts.shape[1], np.int64)
    found: dict[int, list[bytes]] = {}
    for row, start, stop in zip(rows.tolist(), *(each.tolist() for each in spans.of(number, rows)), strict=True):
        try:
            found[row] = KINDS["bytes_list"](spans.data[start:stop].tobytes())
        except Garbled as error:
            raise _garbled(row, column, error) from error
        counts[row] = len(found[row])
    if column.length == RAGGED:
        return _ragged(counts, pa.array([value for row in rows.tolist() for value in found[row]], pa.binary()), column)
    _require_length(counts[rows], rows, column)
    nothing = [b""] * column.length
    flat = pa.array([value for row in range(len(counts)) for value in found.get(row, nothing)], pa.binary())
    return flat if column.length == 1 else pa.FixedSizeListArray.from_arrays(flat, type=column.arrow_type)


def _ragged(counts: np.ndarray, values: pa.Array, column: RecordColumn) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=column.arrow_type)
