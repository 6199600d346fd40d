from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_columns import hashed

from rookery.data.ids import MISSING_ID, NoId, encode_ids


def test_hashes_never_change() -> None:
    # Vectors, vocabularies and models are stored under these numbers.
    assert encode_ids(pa.array(["", "a", "user_1", "Ωé"])).tolist() == [
        -5426141060434712860,
        3405396810240292928,
        -2334757229744694576,
        -7696024137941369068,
    ]


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()],
    ids=str,
)
@given(texts=st.lists(st.none() | st.text(max_size=6)))
@settings(max_examples=20, deadline=None)
def test_texts_of_all_types_hash_alike(kind: pa.DataType, texts: list[str | None]) -> None:
    encoded = encode_ids(pa.array(texts, pa.string()).cast(kind))
    assert encoded.dtype == np.int64
    assert encoded.tolist() == [hashed(text) for text in texts]


@given(texts=st.lists(st.none() | st.sampled_from(["a", "b", "cc"])), start=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_dictionaries_slices_and_chunks_are_their_values(texts: list[str | None], start: int) -> None:
    array = pa.array(texts, pa.string())
    expected = [hashed(text) for text in texts]
    assert encode_ids(array.dictionary_encode()).tolist() == expected
    assert encode_ids(array[start:]).tolist() == expected[start:]
    assert encode_ids(array.dictionary_encode()[start:]).tolist() == expected[start:]
    assert encode_ids(pa.chunked_array([array[:start], array[start:]], pa.string())).tolist() == expected


def test_a_dictionary_may_hold_nulls_and_numbers() -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([1, 0, None, 1], pa.int8()), pa.array(["a", None]))
    assert encode_ids(texts).tolist() == [MISSING_ID, hashed("a"), MISSING_ID, MISSING_ID]
    numbers = pa.DictionaryArray.from_arrays(pa.array([1, None, 0], pa.uint8()), pa.array([70, -5]))
    assert encode_ids(numbers).tolist() == [-5, MISSING_ID, 70]


def test_fixed_size_binary_hashes_its_bytes() -> None:
    assert encode_ids(pa.array([b"ab", None, b"cd"], pa.binary(2))).tolist() == [
        hashed(b"ab"),
        MISSING_ID,
        hashed(b"cd"),
    ]


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64()])
def test_integers_are_themselves(kind: pa.DataType) -> None:
    least, largest = np.iinfo(kind.to_pandas_dtype()).min, np.iinfo(kind.to_pandas_dtype()).max
    least = max(least, MISSING_ID + 1)
    assert encode_ids(pa.array([least, None, 7, largest], kind)).tolist() == [least, MISSING_ID, 7, largest]


def test_unsigned_integers_of_64_bits_wrap() -> None:
    assert encode_ids(pa.array([5, 2**63 + 1, 2**64 - 1], pa.uint64())).tolist() == [5, -(2**63) + 1, -1]


def test_booleans_floats_and_decimals_are_whole_numbers() -> None:
    assert encode_ids(pa.array([True, None, False])).tolist() == [1, MISSING_ID, 0]
    floats = [3.0, None, float("nan"), -(2.0**62)]
    assert encode_ids(pa.array(floats, pa.float64())).tolist() == [3, MISSING_ID, MISSING_ID, -(2**62)]
    assert encode_ids(pa.array(np.array([3, -2], np.float16))).tolist() == [3, -2]
    # Above 2^53 a decimal is exact where a float would not be.
    assert encode_ids(pa.array([Decimal(2**53 + 1), None], pa.decimal128(38, 0))).tolist() == [2**53 + 1, MISSING_ID]


@pytest.mark.parametrize(
    ("array", "value"),
    [
        (pa.array([1.0, None, 1.5]), "1.5"),
        (pa.array([1.0, 2.0, np.inf]), "inf"),
        (pa.array([1.0, 2.0, 2.0**63]), "9.22337203685477"),
        (pa.array([Decimal("1.0"), None, Decimal("0.5")]), "0.5"),
        (pa.array([Decimal(1), None, Decimal(2**63)], pa.decimal128(38, 0)), "9223372036854775808"),
    ],
)
def test_a_number_that_is_no_id_is_named(array: pa.Array, value: str) -> None:
    with pytest.raises(NoId, match="no whole number of 64 bits") as caught:
        encode_ids(array)
    assert caught.value.row == 2
    assert value in str(caught.value)


EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
MOMENTS = [EPOCH + timedelta(days=19116, seconds=45001.999), None, EPOCH - timedelta(seconds=0.001)]


@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_are_milliseconds_of_utc(unit: str, zone: str | None) -> None:
    moments = [moment and moment.replace(microsecond=0 if unit == "s" else moment.microsecond) for moment in MOMENTS]
    expected = [MISSING_ID if moment is None else (moment - EPOCH) // timedelta(milliseconds=1) for moment in moments]
    array = pa.array(moments, pa.timestamp(unit, zone))
    assert encode_ids(array).tolist() == expected


def test_finer_times_are_rounded_down() -> None:
    assert encode_ids(pa.array([1_999_999, -1], pa.timestamp("ns"))).tolist() == [1, -1]
    assert encode_ids(pa.array([1_999, -1], pa.timestamp("us"))).tolist() == [1, -1]


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()])
def test_dates_are_their_midnight(kind: pa.DataType) -> None:
    days = pa.array([date(2022, 5, 4), None, date(1969, 12, 31)], kind)
    assert encode_ids(days).tolist() == [1_651_622_400_000, MISSING_ID, -86_400_000]


def test_nothing_is_nothing() -> None:
    for kind in (pa.string(), pa.int64(), pa.float64(), pa.date32()):
        assert encode_ids(pa.array([], kind)).tolist() == []
        assert encode_ids(pa.chunked_array([], kind)).tolist() == []
