"""Each metric of one binary prediction against plain loops, scikit-learn and torchmetrics, with weights and ties."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_engagement import Row, naive_metrics
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from rookery.metrics.binary import Predictions, RankingMetrics, ScaledLoss, SumMetrics, auroc
from rookery.metrics.bootstrap import Resampling

LEVELS = st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75, 1.0])
ROWS = st.lists(
    st.tuples(LEVELS | st.floats(0, 1, width=32), st.booleans(), st.sampled_from([0.0, 0.5, 1.0, 3.0])), max_size=25
)


def predictions(rows: list[Row], users: list[int] | None = None) -> Predictions:
    owners = torch.tensor(users if users is not None else [0] * len(rows), dtype=torch.int64)
    return Predictions(
        torch.tensor([p for p, _, _ in rows], dtype=torch.float32),
        torch.tensor([y for _, y, _ in rows], dtype=torch.bool),
        torch.tensor([w for _, _, w in rows], dtype=torch.float64),
        owners,
        int(owners.max()) + 1 if len(owners) else 1,
    )


def under(task: Predictions, multiplicity: torch.Tensor, num_bins: int = 20) -> dict[str, torch.Tensor]:
    statistics = (SumMetrics.of(task, num_bins), ScaledLoss.of(task), RankingMetrics.of(task))
    return {name: value for each in statistics for name, value in each.under(multiplicity).items()}


def measured(task: Predictions, num_bins: int = 20) -> dict[str, float]:
    once = torch.ones(task.num_users, 1, dtype=torch.float64)
    return {name: value.item() for name, value in under(task, once, num_bins).items()}


@settings(deadline=None, max_examples=50)
@given(ROWS, st.integers(2, 25))
def test_every_metric_equals_its_definition(rows: list[Row], num_bins: int) -> None:
    expected = naive_metrics(rows, num_bins)
    assert measured(predictions(rows), num_bins) == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True)


@settings(deadline=None, max_examples=50)
@given(ROWS.filter(lambda rows: len(rows) > 1), st.integers(0, 1000))
def test_a_weighting_of_users_is_a_repetition_of_their_rows(rows: list[Row], seed: int) -> None:
    random = np.random.default_rng(seed)
    users = random.integers(0, 4, len(rows)).tolist()
    task = predictions(rows, users)
    (multiplicity,) = Resampling(task.num_users, 3, seed).chunks(10)
    found = under(task, multiplicity)
    for column in range(4):
        times = multiplicity[:, column].int().tolist()
        repeated = [row for row, user in zip(rows, users, strict=True) for _ in range(times[user])]
        expected = naive_metrics(repeated)
        assert {name: value[column].item() for name, value in found.items()} == pytest.approx(
            expected, rel=1e-9, abs=1e-9, nan_ok=True
        )


def drawn(levels: int | None, seed: int, num_rows: int = 2000) -> tuple[Predictions, tuple[np.ndarray, ...]]:
    """A task, and its probabilities, labels and weights in float64."""
    random = np.random.default_rng(seed)
    logit = random.normal(-1, 1.5, num_rows)
    p = 1 / (1 + np.exp(-logit))
    y = random.random(num_rows) < p
    p = (p if levels is None else np.round(p * levels) / levels).astype(np.float32)
    weights = random.choice([0.25, 1.0, 7.0], num_rows)
    users = torch.from_numpy(random.integers(0, 50, num_rows))
    task = Predictions(torch.from_numpy(p), torch.from_numpy(y), torch.from_numpy(weights), users, 50)
    return task, (p.astype(np.float64), y.astype(np.float64), weights)


@pytest.mark.parametrize("levels", [None, 8])
@pytest.mark.parametrize("seed", range(3))
def test_against_scikit_learn(levels: int | None, seed: int) -> None:
    task, (p, y, weights) = drawn(levels, seed)
    found = measured(task)
    assert found["auroc"] == pytest.approx(roc_auc_score(y, p, sample_weight=weights), abs=1e-12)
    assert found["prauc"] == pytest.approx(average_precision_score(y, p, sample_weight=weights), abs=1e-12)
    held = np.clip(p, 2.0**-24, 1 - 2.0**-24)
    assert found["logloss"] == pytest.approx(log_loss(y, held, sample_weight=weights), abs=1e-12)
    mean = np.average(y, weights=weights)
    always = log_loss(y, np.full_like(p, mean), sample_weight=weights)
    assert found["rce"] == pytest.approx(100 * (1 - found["logloss"] / always), abs=1e-9)
    scaled = np.clip(p * mean / np.average(p, weights=weights), 2.0**-24, 1 - 2.0**-24)
    assert found["nrce"] == pytest.approx(100 * (1 - log_loss(y, scaled, sample_weight=weights) / always), abs=1e-9)


@pytest.fixture(scope="module")
def torchmetrics() -> Any:
    return pytest.importorskip("torchmetrics.functional.classification", reason="torchmetrics comes with 'dev'")


@pytest.mark.parametrize("seed", range(3))
def test_against_torchmetrics(torchmetrics: Any, seed: int) -> None:
    task, _ = drawn(None, seed)
    found = measured(Predictions(task.p, task.y, torch.ones_like(task.weights), task.users, 50), num_bins=15)
    y = task.y.long()
    assert found["auroc"] == pytest.approx(float(torchmetrics.binary_auroc(task.p, y)), abs=1e-6)
    assert found["prauc"] == pytest.approx(float(torchmetrics.binary_average_precision(task.p, y)), abs=1e-6)
    ece = torchmetrics.binary_calibration_error(task.p, y, n_bins=15, norm="l1")
    assert found["ece"] == pytest.approx(float(ece), abs=1e-6)


@pytest.mark.parametrize("label", [False, True])
def test_one_class_has_no_auroc_and_no_rce(label: bool) -> None:
    found = measured(predictions([(0.2, label, 1.0), (0.7, label, 1.0)]))
    assert math.isnan(found["auroc"])
    assert math.isnan(found["rce"])
    assert math.isnan(found["nrce"])
    assert math.isnan(found["calibration"]) is not label
    assert math.isnan(found["prauc"]) is not label
    assert found["logloss"] > 0


def test_nothing_to_measure_is_not_a_number() -> None:
    for rows in ([], [(0.3, True, 0.0), (0.6, False, 0.0)]):
        assert all(math.isnan(value) for value in measured(predictions(rows)).values())


def test_a_constant_prediction_of_the_mean_is_worth_nothing() -> None:
    found = measured(predictions([(0.25, number == 0, 1.0) for number in range(4)]))
    assert found["auroc"] == 0.5
    assert found["rce"] == pytest.approx(0, abs=1e-12)
    assert found["calibration"] == 1.0
    assert found["ece"] == 0.0
    assert found["prauc"] == 0.25


def test_a_perfect_and_a_saturated_prediction_stay_finite() -> None:
    found = measured(predictions([(1.0, True, 1.0), (0.0, False, 1.0)]))
    assert (found["auroc"], found["prauc"]) == (1.0, 1.0)
    assert found["rce"] == pytest.approx(100, abs=1e-4)
    wrong = measured(predictions([(0.0, True, 1.0), (1.0, False, 1.0)]))
    assert wrong["auroc"] == 0.0
    assert wrong["logloss"] == pytest.approx(24 * math.log(2))


def test_nrce_does_not_feel_a_factor() -> None:
    rows = [(0.3, True, 1.0), (0.1, False, 1.0), (0.2, True, 2.0), (0.05, False, 3.0)]
    halved = [(p / 2, y, w) for p, y, w in rows]
    assert measured(predictions(halved))["nrce"] == pytest.approx(measured(predictions(rows))["nrce"], abs=1e-5)
    assert measured(predictions(halved))["rce"] < measured(predictions(rows))["rce"]


def test_auroc_of_bare_tensors_is_the_same_number() -> None:
    task, (p, y, weights) = drawn(8, 5)
    expected = roc_auc_score(y, p, sample_weight=weights)
    assert auroc(task.p, task.y, task.weights) == pytest.approx(expected, abs=1e-12)
