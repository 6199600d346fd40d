"""Rows gathered in parts give what they give as a whole, to the last bit, and what each task gives on its own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from naive_engagement import naive_gauc, naive_metrics, naive_ndcg

from rookery.metrics.engagement import METRICS, EngagementMeter, EngagementMetrics, MeasureOptions
from rookery.metrics.engagement_rows import EngagementRows

Made = Callable[..., EngagementRows]
TASKS, STRATA = ("like", "reply", "report"), ("new", "old")


def meter_of(*parts: EngagementRows) -> EngagementMeter:
    meter = EngagementMeter(TASKS, STRATA)
    for part in parts:
        meter.update(part)
    return meter


def without_nan(value: object) -> object:
    """The same with NaN, which does not equal itself, as text."""
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    if isinstance(value, dict):
        return {key: without_nan(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(member) for member in value]
    return value


def numbers(results: tuple[EngagementMetrics, dict[str, EngagementMetrics]]) -> object:
    whole, strata = results
    return without_nan(
        [dataclasses.asdict(whole), {name: dataclasses.asdict(stratum) for name, stratum in strata.items()}]
    )


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1000), st.integers(0, 60), st.integers(1, 5), st.sampled_from([None, 4]))
def test_merged_parts_in_any_order_equal_the_whole_to_the_last_bit(
    made: Made, seed: int, num_rows: int, num_parts: int, levels: int | None
) -> None:
    rows = made(num_rows, seed=seed, levels=levels)
    random = np.random.default_rng(seed)
    owner = torch.from_numpy(random.integers(0, num_parts, num_rows))
    meters = []
    for number in random.permutation(num_parts):
        mine = torch.from_numpy(random.permutation((owner == number).nonzero().squeeze(1).numpy()))
        meters.append(meter_of(*(rows.select(half) for half in mine.tensor_split(2))))
    merged = EngagementMeter(TASKS, STRATA)
    for meter in meters:
        merged.merge(meter)
    options = MeasureOptions(num_replicates=5)
    assert numbers(merged.compute(options)) == numbers(meter_of(rows).compute(options))


@pytest.mark.parametrize("levels", [None, 6])
def test_all_tasks_and_strata_equal_their_definitions(made: Made, levels: int | None) -> None:
    rows = made(150, levels=levels)
    whole, strata = meter_of(rows).compute(MeasureOptions())
    assert_is_defined(whole, rows)
    for number, name in enumerate(STRATA):
        assert_is_defined(strata[name], rows.select(rows.strata[:, number]))


def assert_is_defined(found: EngagementMetrics, rows: EngagementRows) -> None:
    users = rows.users.tolist()
    for number, name in enumerate(TASKS):
        columns = (rows.probabilities, rows.labels, rows.weights)
        own = list(zip(*(column[:, number].tolist() for column in columns), strict=True))
        expected = {**naive_metrics(own), "gauc": naive_gauc(own, users)}
        task = found.tasks[name]
        assert dict(task.values) == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True)
        assert tuple(task.values) == METRICS
        assert task.count == sum(w > 0 for _, _, w in own)
        assert task.positives == sum(y for _, y, w in own if w > 0)
    assert (found.num_rows, found.num_users) == (len(rows), len(set(users)))
    per_user = []
    for user in set(users):
        mine = rows.select(rows.users == user)
        per_user.append(naive_ndcg(mine.scores.tolist(), mine.gains.tolist()))
    ranked = [value for value in per_user if not math.isnan(value)]
    assert found.num_ranked == len(ranked)
    assert found.ndcg == pytest.approx(np.mean(ranked), abs=1e-12)


def test_intervals_are_percentiles_over_rows_of_drawn_users(made: Made) -> None:
    rows = made(120, num_users=15)
    options = MeasureOptions(num_replicates=20, seed=7)
    whole, _ = meter_of(rows).compute(options)
    ids = rows.users.unique()
    replicates: list[EngagementMetrics] = []
    for number in range(1, 21):
        drawn = np.random.default_rng((7, number)).integers(15, size=15)
        parts = [
            # The same user drawn twice is two users.
            dataclasses.replace(part, users=torch.full((len(part),), place))
            for place, part in enumerate(rows.select(rows.users == ids[user]) for user in drawn)
        ]
        replicates.append(meter_of(*parts).compute(MeasureOptions())[0])
    for name in TASKS:
        for metric in METRICS:
            low, high = np.nanpercentile([each.tasks[name].values[metric] for each in replicates], [2.5, 97.5])
            assert whole.tasks[name].intervals[metric] == pytest.approx((low, high), abs=1e-9), metric
    assert whole.ndcg_interval == pytest.approx(np.percentile([each.ndcg for each in replicates], [2.5, 97.5]))


def test_intervals_come_out_the_same_in_small_pieces(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, options = made(100), MeasureOptions(num_replicates=20)
    whole, _ = meter_of(rows).compute(options)
    monkeypatch.setattr("rookery.metrics.engagement._MAX_CELLS", 300)
    pieces, _ = meter_of(rows).compute(options)
    for name in TASKS:
        for metric in METRICS:
            assert pieces.tasks[name].intervals[metric] == pytest.approx(whole.tasks[name].intervals[metric], rel=1e-12)


def test_more_rows_of_the_same_users_do_not_narrow_the_interval(made: Made) -> None:
    rows = made(300, num_users=30)
    once, _ = meter_of(rows).compute(MeasureOptions(num_replicates=100))
    thrice, _ = meter_of(rows, rows, rows).compute(MeasureOptions(num_replicates=100))
    for metric in ("auroc", "logloss", "ctr"):
        assert thrice.tasks["like"].intervals[metric] == pytest.approx(once.tasks["like"].intervals[metric], rel=1e-9)


def test_without_users_rows_are_drawn_and_nothing_is_grouped(made: Made) -> None:
    rows = made(80)
    alone = dataclasses.replace(rows, users=None)
    found, _ = meter_of(alone).compute(MeasureOptions(num_replicates=10))
    each_its_own = dataclasses.replace(rows, users=torch.arange(80))
    expected, _ = meter_of(each_its_own).compute(MeasureOptions())
    assert found.num_users is None
    assert math.isnan(found.ndcg)
    for name in TASKS:
        assert math.isnan(found.tasks[name].values["gauc"])
        assert found.tasks[name].values["auroc"] == pytest.approx(expected.tasks[name].values["auroc"], abs=1e-12)
        low, high = found.tasks[name].intervals["auroc"]
        assert low < found.tasks[name].values["auroc"] < high


def test_no_rows_one_row_and_no_weight_are_not_a_number(made: Made) -> None:
    one = made(1)
    nothing = dataclasses.replace(made(30), weights=torch.zeros(30, 3))
    for meter in (meter_of(), meter_of(made(0)), meter_of(nothing)):
        found, strata = meter.compute(MeasureOptions(num_replicates=3))
        for each in (found, *strata.values()):
            assert all(math.isnan(value) for task in each.tasks.values() for value in task.values.values())
            assert all(task.count == task.positives == 0 for task in each.tasks.values())
            assert all(math.isnan(value) for value in each.means().values())
    weighted = dataclasses.replace(one, weights=torch.ones(1, 3))
    found, _ = meter_of(weighted).compute(MeasureOptions())
    assert math.isnan(found.tasks["like"].values["auroc"])
    assert found.tasks["like"].values["mean_prediction"] == pytest.approx(one.probabilities[0, 0].item())
    assert math.isnan(found.ndcg)


def test_means_are_over_the_tasks_that_have_the_metric(made: Made) -> None:
    rows = made(60)
    labels = rows.labels.clone()
    labels[:, 2] = False
    found, _ = meter_of(dataclasses.replace(rows, labels=labels)).compute(MeasureOptions())
    first, second, third = (found.tasks[name].values["auroc"] for name in TASKS)
    assert math.isnan(third)
    assert found.means()["auroc"] == pytest.approx((first + second) / 2)


def test_meters_of_other_tasks_do_not_merge() -> None:
    with pytest.raises(AssertionError, match="different tasks"):
        meter_of().merge(EngagementMeter(("like",), STRATA))
