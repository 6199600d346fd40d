from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_impressions import planted_config, planted_log, write_log
from small_ranker import small_config
from torch import Tensor

from rookery.data.ids import MISSING_ID
from rookery.data.stream import StreamPosition
from rookery.ranker.columns import ColumnPlan
from rookery.ranker.features_config import DownsampleNegatives
from rookery.ranker.inputs import Inputs
from rookery.ranker.labels import Labels, downsample_negatives
from rookery.ranker.partition import open_partition
from rookery.ranker.preprocess import Preprocessor

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


@pytest.mark.parametrize(("rows_per_kept", "num_others"), [(2, 7), (4, 2), (5, 1), (20, 1), (1, 17)])
def test_one_row_of_so_many_is_kept_and_the_engaged_first(rows_per_kept: int, num_others: int) -> None:
    one_of = DownsampleNegatives(rows_per_kept=rows_per_kept, engagements_list=("like", "share"))
    kept = downsample_negatives(one_of, LABELS, at(1))
    weights = dict(zip(kept.rows.tolist(), kept.weights.tolist(), strict=True))
    assert [weights.pop(row) for row in (0, 4, 7)] == [1.0, 1.0, 1.0]
    # (rows read - engaged) / (rows kept - engaged), as long as that leaves one of the others
    assert list(weights.values()) == pytest.approx([17 / num_others] * num_others)


Minutes = list[int | None]


def rectified(served: Minutes, impressed: Minutes, engaged: Minutes, like: list[int]) -> list[float]:
    """Labels of rows whose times are in minutes; the window is an hour."""
    rectify = {
        "label_rectification_window_in_hours": 1,
        "served_timestamp_field": "served_at",
        "impressed_timestamp_field": "seen_at",
        "label_to_engaged_timestamp_field": {"like": "liked_at"},
    }
    config = small_config(preprocess={"rectify_labels": rectify})
    times = {
        name: torch.tensor([MISSING_ID if minute is None else 60_000 * minute for minute in minutes])
        for name, minutes in (("served_at", served), ("seen_at", impressed), ("liked_at", engaged))
    }
    others = {task: torch.ones(len(like)) for task in ("click", "hide")}
    labels = Labels(config, ColumnPlan(config)).read({**times, **others, "like": torch.tensor(like).float()})
    assert torch.equal(labels["click"], others["click"])
    return labels["like"].tolist()


def test_an_engagement_counts_for_less_than_the_window() -> None:
    assert rectified([100] * 4, [101] * 4, [120, 159, 160, 500], [1, 1, 1, 1]) == [1, 1, 0, 0]
    assert rectified([100] * 4, [100, 159, 160, 161], [100] * 4, [1, 1, 1, 1]) == [1, 1, 0, 0]
    assert rectified([100] * 2, [101] * 2, [101, 500], [0, 0]) == [0, 0]


def test_a_time_that_is_unknown_changes_no_label() -> None:
    served: Minutes = [None, 100, 100, -90, -90]
    impressed: Minutes = [500, None, 101, None, 30]
    engaged: Minutes = [500, 101, None, None, 30]
    assert rectified(served, impressed, engaged, [1] * 5) == [1, 1, 1, 1, 0]


def test_a_training_batch_is_downsampled_whole(tmp_path: Path) -> None:
    write_log(tmp_path / "log", planted_log(400))
    downsample = {"batch_multiplier": 2, "engagements_list": ["like"]}
    config = planted_config(
        tmp_path / "log", tmp_path / "run", preprocess={"downsample_negatives": downsample}, train_data__batch_size=100
    )
    preprocessor = Preprocessor(config, Inputs.build(config))
    stream = open_partition(config, config.train_data, preprocessor, shuffle=True, num_epochs=1)
    columns = next(stream)
    whole = preprocessor.batch(columns)
    assert whole.num_rows == 100
    settings_of = DownsampleNegatives.model_validate(downsample)
    kept = downsample_negatives(settings_of, {"like": whole.labels[:, 1]}, stream.position())
    assert 0 < len(kept.rows) < 100
    batch = preprocessor.batch(columns, training=True, position=stream.position())
    assert torch.equal(batch.loss_weights, whole.loss_weights[kept.rows] * kept.weights)
    assert torch.equal(batch.weights, whole.weights[kept.rows] * kept.weights.unsqueeze(1))
    for name in ("labels", "groups"):
        assert torch.equal(getattr(batch, name), getattr(whole, name)[kept.rows])
    assert torch.equal(batch.features.continuous, whole.features.continuous[kept.rows])
    assert torch.equal(batch.features.ragged["recent_items"], whole.features.ragged["recent_items"][kept.rows])
    again = preprocessor.batch(columns, training=True, position=stream.position())
    assert torch.equal(again.groups, batch.groups) and torch.equal(again.loss_weights, batch.loss_weights)
