from __future__ import annotations

import numpy as np
import pytest

from rookery.data.adjacency import Adjacency, distinct


@pytest.mark.parametrize("num_pairs", [0, 1, 500])
def test_values_of_a_row_are_its_pairs_sorted_and_once(num_pairs):
    rng = np.random.default_rng(0)
    rows, values = rng.integers(0, 40, num_pairs), rng.integers(0, 30, num_pairs)
    pairs = Adjacency.of_pairs(rows, values, 45)
    assert len(pairs) == 45
    for row in range(45):
        assert pairs.row(row).tolist() == sorted(set(values[rows == row].tolist()))
    assert pairs.lengths().tolist() == [len(pairs.row(row)) for row in range(45)]
    assert np.array_equal(pairs.values, np.concatenate([pairs.row(row) for row in range(45)]))
    assert np.array_equal(np.unique(pairs.owners()), np.unique(rows))


def test_places_in_order_rise_within_each_row():
    rows = np.array([2, 0, 2, 1, 0, 2])
    by_row = Adjacency.in_order(rows, 4)
    assert [by_row.row(row).tolist() for row in range(4)] == [[1, 4], [3], [0, 2, 5], []]
    assert by_row.owners().tolist() == [0, 0, 1, 2, 2, 2]


def test_distinct_is_unique():
    values = np.random.default_rng(1).integers(-50, 50, 200)
    assert np.array_equal(distinct(values), np.unique(values))
    assert distinct(values[:0]).tolist() == []
