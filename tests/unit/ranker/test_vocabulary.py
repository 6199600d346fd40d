from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from naive_impressions import mix as naive_mix
from torch import Tensor

from rookery.data.ids import MISSING_ID
from rookery.ranker.vocabulary import (
    HashBuckets,
    KeyLookup,
    RangeLookup,
    RowNumbers,
    last_not_above,
    lookup_of_keys,
    mix,
    search_by_gathers,
)

int64s = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-5, 5))


def tensor(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


@given(st.lists(int64s, min_size=1, max_size=50))
def test_the_mix_is_that_of_splitmix64(ids: list[int]) -> None:
    assert mix(tensor(ids)).tolist() == [naive_mix(number) for number in ids]


def test_the_mix_has_known_values() -> None:
    # The first outputs of SplitMix64 seeded with 0 are the finaliser of multiples of its increment.
    increment = 0x9E3779B97F4A7C15
    states = [np.uint64(increment * k % 2**64).astype(np.int64).item() for k in (1, 2, 3)]
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert mix(tensor(states)).tolist() == [value % 2**63 for value in published]


def test_buckets_fill_evenly() -> None:
    rows = HashBuckets(65)(torch.arange(64_000))
    counts = torch.bincount(rows, minlength=65)
    assert counts[64] == 0
    # Binomial: 1000 expected, deviation 31.
    assert counts[:64].min() > 850 and counts[:64].max() < 1150


def test_the_missing_has_the_last_bucket() -> None:
    assert HashBuckets(5)(tensor([MISSING_ID])).tolist() == [4]


@given(st.lists(int64s.filter(lambda key: key != MISSING_ID), unique=True, max_size=30), st.lists(int64s, max_size=20))
def test_keys_have_rows_in_their_order(keys: list[int], ids: list[int]) -> None:
    ids = ids + keys + [MISSING_ID]
    expected = [keys.index(number) if number in keys else len(keys) for number in ids]
    lookup = KeyLookup(tensor(keys))
    assert lookup.num_rows == len(keys) + 1
    assert lookup(tensor(ids)).tolist() == expected
    assert lookup(tensor([ids, ids])).tolist() == [expected, expected]


@given(
    st.lists(st.integers(-50, 50), unique=True, min_size=1, max_size=30),
    st.sampled_from([0, -(2**63) + 51, 2**63 - 51, 10**12]),
    st.lists(int64s, max_size=20),
)
def test_keys_that_lie_close_together_are_found_as_well(offsets: list[int], middle: int, ids: list[int]) -> None:
    keys = [middle + offset for offset in offsets]
    near = [number for key in keys for number in (key - 1, key, key + 1) if -(2**63) <= number < 2**63]
    wanted = tensor([*ids, *near, MISSING_ID])
    lookup = RangeLookup(tensor(keys))
    assert lookup.num_rows == len(keys) + 1
    assert torch.equal(lookup(wanted), KeyLookup(tensor(keys))(wanted))


def test_the_lookup_is_chosen_by_the_spread_of_the_keys() -> None:
    assert isinstance(lookup_of_keys(torch.arange(100) * 600), RangeLookup)
    assert isinstance(lookup_of_keys(torch.arange(100) * 700), KeyLookup)
    assert isinstance(lookup_of_keys(torch.arange(100_000) * 3), RangeLookup)
    assert isinstance(lookup_of_keys(torch.arange(100_000) * 5), KeyLookup)
    assert isinstance(lookup_of_keys(tensor([])), KeyLookup)


@given(st.lists(int64s, unique=True, max_size=70), st.lists(int64s, min_size=1, max_size=20))
def test_the_search_by_gathers_finds_the_same(keys: list[int], ids: list[int]) -> None:
    ordered = tensor(sorted({MISSING_ID, *keys}))
    wanted = tensor(ids + keys)
    assert torch.equal(search_by_gathers(ordered, wanted), last_not_above(ordered, wanted))


def test_row_numbers_are_themselves() -> None:
    lookup = RowNumbers(4)
    ids = tensor([0, 2, 3, -1, MISSING_ID, 2**40])
    assert lookup(ids).tolist() == [0, 2, 3, 3, 3, 3]
    assert lookup.is_wrong(ids).tolist() == [False, False, True, True, False, True]


@pytest.mark.parametrize("length", [1, 7])
def test_lists_keep_their_shape(length: int) -> None:
    ids = torch.arange(2 * length).view(2, length)
    for lookup in (RowNumbers(100), HashBuckets(9), KeyLookup(torch.arange(50))):
        assert lookup(ids).shape == (2, length)
