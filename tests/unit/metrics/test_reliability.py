"""Bins of diagrams against scikit-learn and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve

from rookery.metrics.reliability import histogram, reliability


def drawn(num_rows: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(0)
    p = random.beta(1, 8, num_rows).astype(np.float32)
    return torch.from_numpy(p), torch.from_numpy(random.random(num_rows) < p)


def test_bins_of_equal_weight_against_scikit_learn() -> None:
    p, y = drawn()
    bins = reliability(p, y, torch.ones(2000), 20)
    ctr, prediction = calibration_curve(y.numpy(), p.double().numpy(), n_bins=20, strategy="quantile")
    assert [each.ctr for each in bins] == pytest.approx(ctr.tolist(), abs=1e-9)
    assert [each.mean_prediction for each in bins] == pytest.approx(prediction.tolist(), abs=1e-9)
    assert [each.count for each in bins] == [100.0] * 20


def test_weights_count_as_repetitions() -> None:
    p, y = drawn(300)
    weights = torch.from_numpy(np.random.default_rng(1).integers(0, 4, 300))
    weighted = reliability(p, y, weights.float(), 8)
    repeated = reliability(
        p.repeat_interleave(weights), y.repeat_interleave(weights), torch.ones(int(weights.sum())), 8
    )
    assert [each.ctr for each in weighted] == pytest.approx([each.ctr for each in repeated])
    assert [(each.low, each.high) for each in weighted] == [(each.low, each.high) for each in repeated]
    assert all(few.count < many.count for few, many in zip(weighted, repeated, strict=True))


def test_equal_predictions_share_a_bin() -> None:
    p = torch.tensor([0.1] * 90 + [0.6] * 10)
    y = torch.tensor([number % 3 == 0 for number in range(100)])
    low, high = reliability(p, y, torch.ones(100), 20)
    assert (low.count, low.ctr, high.count) == (90, pytest.approx(1 / 3), 10)


def test_histogram_by_label_against_numpy() -> None:
    p, y = drawn()
    weights = torch.from_numpy(np.random.default_rng(2).choice([0.5, 2.0], 2000))
    values = torch.logit(p.double())
    found = histogram(values, y, weights)
    for label, bins in ((True, found.positives), (False, found.negatives)):
        chosen = y.numpy() == label
        expected, edges = np.histogram(
            values.numpy()[chosen], 40, (values.min().item(), values.max().item()), weights=weights.numpy()[chosen]
        )
        assert list(bins) == expected.tolist()
        assert edges[:-1].tolist() == pytest.approx([found.low + place * found.width for place in range(40)])


def test_nothing_and_one_value() -> None:
    nothing = torch.empty(0)
    assert reliability(nothing, nothing.bool(), nothing, 20) == []
    assert sum(histogram(nothing, nothing.bool(), nothing).negatives) == 0
    single = histogram(torch.tensor([1.0]), torch.tensor([True]), torch.tensor([3.0]))
    assert (single.positives[0], single.width) == (3.0, 1 / 40)
