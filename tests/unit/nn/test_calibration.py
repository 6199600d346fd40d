"""Calibration against scikit-learn and against what a maximum-likelihood map must satisfy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from rookery.nn.calibration import CalibrationMap, fit_platt

NUM_ROWS = 4000


def drawn(scale: float, offset: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels whose true logit is ``scale * logit + offset``, and weights, a tenth of them 0."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(NUM_ROWS, generator=generator) * 2 - 1
    labels = (torch.rand(NUM_ROWS, generator=generator) < torch.sigmoid(scale * logits + offset)).float()
    weights = torch.rand(NUM_ROWS, generator=generator) * 3
    return logits, labels, weights * (torch.rand(NUM_ROWS, generator=generator) > 0.1)


def mean_of(values: Tensor, weights: Tensor) -> float:
    return ((values.double() * weights.double()).sum() / weights.double().sum()).item()


def assert_mean_holds(fitted: CalibrationMap, logits: Tensor, labels: Tensor, weights: Tensor) -> None:
    probability = torch.sigmoid(fitted(logits.double()))
    assert mean_of(probability, weights) == pytest.approx(mean_of(labels, weights), rel=1e-9)


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (0.4, -3.0), (2.5, 1.0), (0.05, -5.0)])
def test_platt_is_logistic_regression_without_penalty(scale: float, offset: float) -> None:
    logits, labels, weights = drawn(scale, offset)
    fitted = fit_platt(logits, labels, weights, "platt")
    theirs = LogisticRegression(C=np.inf, tol=1e-12, max_iter=1000, solver="newton-cholesky")
    theirs.fit(logits.double().numpy()[:, None], labels.numpy(), sample_weight=weights.double().numpy())
    assert fitted.method == "platt"
    assert fitted.scale == pytest.approx(theirs.coef_.item(), rel=1e-7)
    assert fitted.offset == pytest.approx(theirs.intercept_.item(), rel=1e-7, abs=1e-7)
    assert_mean_holds(fitted, logits, labels, weights)


@pytest.mark.parametrize("offset", [-6.0, -1.0, 0.0, 3.0])
def test_the_offset_alone_brings_the_mean_to_that_of_the_labels(offset: float) -> None:
    logits, labels, weights = drawn(1.0, offset)
    fitted = fit_platt(logits, labels, weights, "bias")
    assert (fitted.scale, fitted.method) == (1.0, "bias")
    assert_mean_holds(fitted, logits, labels, weights)
    assert fitted.offset == pytest.approx(offset, abs=0.5)


def test_calibrated_logits_need_no_further_map() -> None:
    logits, labels, weights = drawn(0.4, -3.0)
    fitted = fit_platt(logits, labels, weights, "platt")
    again = fit_platt(fitted(logits.double()), labels, weights, "platt")
    assert (again.scale, again.offset) == (pytest.approx(1.0, abs=1e-8), pytest.approx(0.0, abs=1e-8))


def test_weights_count_as_repeated_rows() -> None:
    logits, labels, _ = drawn(1.5, -1.0)
    times = torch.arange(NUM_ROWS) % 4
    weighted = fit_platt(logits, labels, times.float(), "platt")
    repeated = fit_platt(
        logits.repeat_interleave(times), labels.repeat_interleave(times), torch.ones(int(times.sum())), "platt"
    )
    assert weighted.scale == pytest.approx(repeated.scale, rel=1e-9)
    assert weighted.offset == pytest.approx(repeated.offset, rel=1e-9)


@pytest.mark.parametrize(
    ("method", "scale"), [("platt", 1e-6), ("platt", 1e4), ("platt", 1e12), ("bias", 1e-6), ("bias", 1e4)]
)
def test_logits_of_any_size(method: str, scale: float) -> None:
    logits, labels, weights = drawn(1.0, -2.0)
    logits = logits * scale
    fitted = fit_platt(logits, labels, weights, method)  # type: ignore[arg-type]
    assert fitted.method == method
    assert_mean_holds(fitted, logits, labels, weights)


def test_the_same_input_gives_the_same_map() -> None:
    data = drawn(0.7, -2.0)
    assert fit_platt(*data, "platt") == fit_platt(*data, "platt")


@pytest.mark.parametrize("method", ["platt", "bias"])
@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("num_rows", [0, 1, 50])
def test_one_label_leaves_the_identity(method: str, label: float, num_rows: int) -> None:
    logits = torch.linspace(-2, 2, num_rows)
    fitted = fit_platt(logits, torch.full((num_rows,), label), torch.ones(num_rows), method)  # type: ignore[arg-type]
    assert fitted == CalibrationMap(1.0, 0.0, "identity")
    torch.testing.assert_close(fitted(logits), logits, rtol=0, atol=0)


def test_rows_of_weight_0_are_no_rows() -> None:
    labels, weights = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 1.0])
    assert fit_platt(torch.tensor([1.0, 0.0, -1.0]), labels, weights, "platt").method == "identity"


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        ([-2.0, -1.0, 1.0, 3.0], [0, 0, 1, 1]),  # a threshold parts them: the likelihood has no maximum
        ([-2.0, 1.0, 1.0, 3.0], [0, 0, 1, 1]),  # at one value they meet
        ([3.0, 1.0, -1.0, -2.0], [0, 0, 1, 1]),  # parted the wrong way round
        ([3.0, 1.0, 2.0, -2.0], [0, 0, 1, 1]),  # ranked the wrong way round
        ([0.5, 0.5, 0.5, 0.5], [0, 0, 1, 0]),  # not ranked at all
        ([-1.0, 1.0, -1.0, 1.0], [0, 0, 1, 1]),  # nor here
        ([0.0, 1.0], [0, 1]),
    ],
    ids=str,
)
def test_without_a_finite_positive_scale_the_offset_alone_is_fitted(logits: list[float], labels: list[int]) -> None:
    data = torch.tensor(logits), torch.tensor(labels).float(), torch.ones(len(labels))
    fitted = fit_platt(*data, "platt")
    assert (fitted.method, fitted.scale) == ("bias", 1.0)
    assert fitted == fit_platt(*data, "bias")
    assert_mean_holds(fitted, *data)


def test_labels_that_a_threshold_nearly_parts() -> None:
    """The scale is large and finite; one light row in the wrong place holds it."""
    logits = torch.cat([torch.linspace(-5, -1, 500), torch.linspace(1, 5, 500), torch.tensor([-1.5])])
    labels, weights = (logits > 0).float(), torch.ones(1001)
    labels[-1], weights[-1] = 1.0, 1e-9
    fitted = fit_platt(logits, labels, weights, "platt")
    assert fitted.method == "platt"
    assert fitted.scale > 5
    assert_mean_holds(fitted, logits, labels, weights)


@pytest.mark.parametrize("num_positives", [1, 2])
def test_a_very_rare_label(num_positives: int) -> None:
    logits = torch.randn(50_000, generator=torch.Generator().manual_seed(0)) - 8
    labels = torch.zeros_like(logits)
    labels[logits.argsort()[-800:][:num_positives]] = 1
    fitted = fit_platt(logits, labels, torch.ones_like(logits), "platt")
    assert fitted.method == "platt"
    assert_mean_holds(fitted, logits, labels, torch.ones_like(logits))


@pytest.mark.parametrize("method", ["platt", "bias"])
def test_saturated_logits(method: str) -> None:
    """At offset 0 every sigmoid is 0 or 1 to the last bit, so the curvature there is 0."""
    logits = torch.tensor([-1000.0, 1000.0]).repeat(50)
    labels = torch.zeros(100)
    labels[1:40:2] = 1.0
    labels[0] = 1.0
    fitted = fit_platt(logits, labels, torch.ones(100), method)  # type: ignore[arg-type]
    assert fitted.method == method
    assert_mean_holds(fitted, logits, labels, torch.ones(100))
