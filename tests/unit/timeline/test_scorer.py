"""Pairs are predicted in few different numbers of rows, and each as if alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rookery.data.catalog import Catalog
from rookery.ranker.export import RankerExport
from rookery.timeline.scorer import Scorer, padded_rows


@given(st.integers(1, 10**7))
def test_little_is_added(num_rows):
    padded = padded_rows(num_rows)
    assert num_rows <= padded <= max(num_rows * 9 / 8, num_rows + 15)


def test_few_numbers_of_rows_are_met():
    assert len({padded_rows(num_rows) for num_rows in range(1, 50_001)}) < 80
    assert [padded_rows(num_rows) for num_rows in (1, 16, 17, 1500)] == [16, 16, 32, 1536]


@pytest.mark.parametrize("num_pairs", [1, 15, 33])
def test_each_pair_is_predicted_as_if_alone(parts, num_pairs):
    scorer = Scorer(Catalog.open(parts.catalog), RankerExport.open(parts.ranker))
    users, posts = np.arange(num_pairs) % 5, np.arange(num_pairs)
    together = scorer.probabilities(users, posts)
    alone = np.concatenate([scorer.probabilities(users[[row]], posts[[row]]) for row in range(num_pairs)])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert together.shape == (num_pairs, len(scorer.tasks))
