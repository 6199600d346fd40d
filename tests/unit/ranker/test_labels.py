from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rookery.data.stream import StreamPosition
from rookery.ranker.features_config import DownsampleNegatives
from rookery.ranker.labels import downsample_negatives

LIKE = torch.tensor([1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0])
SHARE = torch.zeros(20).index_fill(0, torch.tensor([4]), 1.0)
HIDE = torch.ones(20)


def at(num_batches: int, epoch: int = 0, seed: int = 0) -> StreamPosition:
    return StreamPosition(epoch, num_batches, batch_size=20, num_rows=1000, seed=seed)


def config(multiplier: float = 2.0, *tasks: str) -> DownsampleNegatives:
    return DownsampleNegatives(batch_multiplier=multiplier, engagements_list=tasks or ("like", "share"))


LABELS = {"like": LIKE, "share": SHARE, "hide": HIDE}


def test_engaged_rows_stay_and_others_are_as_many_as_asked_for() -> None:
    kept = downsample_negatives(config(2.0), LABELS, at(1))
    rows = kept.rows.tolist()
    assert rows == sorted(set(rows))
    assert len(rows) == 3 + 6
    assert {0, 4, 7} <= set(rows)
    weights = dict(zip(rows, kept.weights.tolist(), strict=True))
    assert [weights.pop(row) for row in (0, 4, 7)] == [1.0, 1.0, 1.0]
    assert list(weights.values()) == pytest.approx([17 / 6] * 6)


def test_the_expected_sum_is_that_of_the_whole_batch() -> None:
    values = torch.linspace(1, 3, 20, dtype=torch.float64)
    sums, unweighted = [], []
    for number in range(4000):
        kept = downsample_negatives(config(1.0), LABELS, at(number))
        sums.append(float((values[kept.rows] * kept.weights).sum()))
        unweighted.append(float(values[kept.rows].sum()))
    estimates = torch.tensor(sums, dtype=torch.float64)
    error = estimates.std() / len(sums) ** 0.5
    assert abs(estimates.mean() - values.sum()) < 4 * error
    assert abs(sum(unweighted) / len(unweighted) - values.sum()) > 100 * error


@settings(max_examples=50)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.sampled_from([0.01, 0.5, 1.0, 3.0, 100.0]))
def test_weights_sum_to_the_rows_of_the_batch(engaged: list[bool], multiplier: float) -> None:
    labels = {"like": torch.tensor(engaged, dtype=torch.float32)}
    kept = downsample_negatives(config(multiplier, "like"), labels, at(1))
    assert float(kept.weights.sum()) == pytest.approx(len(engaged))
    assert set(torch.tensor(engaged).nonzero().flatten().tolist()) <= set(kept.rows.tolist())


def test_a_batch_without_engagement_counts_as_one_with_one() -> None:
    kept = downsample_negatives(config(3.0, "like"), {"like": torch.zeros(12)}, at(1))
    assert len(kept.rows) == 3
    assert kept.weights.tolist() == [4.0, 4.0, 4.0]


def test_all_stay_where_there_are_few_others() -> None:
    kept = downsample_negatives(config(100.0), LABELS, at(1))
    assert kept.rows.tolist() == list(range(20))
    assert kept.weights.tolist() == [1.0] * 20


def test_the_draw_depends_on_seed_and_place_alone() -> None:
    def rows(position: StreamPosition) -> list[int]:
        return downsample_negatives(config(1.0), LABELS, position).rows.tolist()

    torch.manual_seed(5)
    first = rows(at(3))
    torch.manual_seed(6)
    assert rows(at(3)) == first
    others = [rows(at(4)), rows(at(3, epoch=1)), rows(at(3, seed=1))]
    assert all(other != first for other in others)


def test_every_row_of_the_others_is_kept_as_often() -> None:
    counts: Tensor = torch.zeros(20)
    for number in range(3000):
        counts[downsample_negatives(config(1.0), LABELS, at(number)).rows] += 1
    others = torch.tensor([row for row in range(20) if row not in {0, 4, 7}])
    # 3 of 17: 529 expected, deviation 21.
    assert counts[others].min() > 440 and counts[others].max() < 620
