"""All kinds of featurization against their formulas, in NumPy and float64."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from rookery.errors import ConfigError
from rookery.nn.config import FeaturizationConfig, LayerNormConfig
from rookery.nn.featurization import BatchMoments, Featurizer, LogMoments, read_analysis
from rookery.nn.normalization import LayerNorm

Array = np.ndarray[Any, np.dtype[np.float64]]
NUM_ROWS, NUM_CONTINUOUS, NUM_BINARY = 7, 5, 3
MEAN, STD = torch.linspace(-1, 1, NUM_CONTINUOUS), torch.linspace(0.5, 2, NUM_CONTINUOUS)


def counts(num_rows: int = NUM_ROWS) -> Tensor:
    """Numbers over many powers of ten, of both signs."""
    generator = torch.Generator().manual_seed(num_rows)
    exponents = torch.randn(num_rows, NUM_CONTINUOUS, generator=generator) * 3
    return torch.randn(num_rows, NUM_CONTINUOUS, generator=generator).sign() * 10**exponents


def bits(num_rows: int = NUM_ROWS) -> Tensor:
    return (torch.arange(num_rows * NUM_BINARY).view(num_rows, NUM_BINARY) % 3 == 0).float()


def logs(x: Array) -> Array:
    x = np.where(np.isfinite(x), x, 0)
    return np.where(x < 0, -1, 1) * np.log(1 + np.abs(x))


def double_norm(x: Array, binary: Array) -> Array:
    """With the parameters that ``build`` gives the norms."""
    x = logs(x)
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    x = np.concatenate([np.clip(x, -1.2, 1.2), binary], axis=1)
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-3)
    return x * np.linspace(1, 2, x.shape[1]) + np.linspace(-1, 0, x.shape[1])


def piecewise_linear(x: Array, binary: Array) -> Array:
    """Fitted to the very rows: quantiles of each column, interpolated as numpy does."""
    x = logs(x)
    columns = [np.clip((x - x.mean(0)) / x.std(0), -2, 2)]
    for column in x.T:
        edges = np.quantile(column, [0, 0.25, 0.5, 0.75, 1])
        columns += [np.stack([np.interp(column, [low, high], [0, 1]) for low, high in pairwise(edges)], 1)]
    return np.concatenate([*columns, binary], 1)


Formula = Callable[[Array, Array], Array]
KINDS: dict[str, tuple[dict[str, Any], Formula]] = {
    "log1p_abs_config": ({}, lambda x, b: np.concatenate([logs(x), b], 1)),
    "clip_log1p_abs_config": (
        {"clip_magnitude": 2.5},
        lambda x, b: np.concatenate([np.clip(logs(x), -2.5, 2.5), b], 1),
    ),
    "z_score_log_config": (
        {"clip_magnitude": 3.0},
        lambda x, b: np.concatenate([np.clip((logs(x) - MEAN.numpy()) / STD.numpy(), -3, 3), b], 1),
    ),
    "piecewise_linear_config": ({"num_bins": 4, "clip_magnitude": 2.0}, piecewise_linear),
    "double_norm_log_config": ({"clip_magnitude": 1.2, "layer_norm_config": {"epsilon": 1e-3}}, double_norm),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def build(kind: str, body: dict[str, Any] | None = None) -> Featurizer:
    config = FeaturizationConfig.model_validate({kind: KINDS[kind][0] if body is None else body})
    featurizer = Featurizer(config, NUM_CONTINUOUS, NUM_BINARY)
    if kind == "z_score_log_config":
        featurizer.continuous.fit(MEAN, STD)
    if kind == "piecewise_linear_config":
        featurizer.continuous.fit(counts())
    if isinstance(featurizer.layer_norm, LayerNorm) and featurizer.layer_norm.weight is not None:
        width = featurizer.out_features
        with torch.no_grad():
            featurizer.layer_norm.weight.copy_(torch.linspace(1, 2, width))
            featurizer.layer_norm.bias.copy_(torch.linspace(-1, 0, width))
    return featurizer


def test_every_kind_of_the_configuration_has_a_formula() -> None:
    (group,) = FeaturizationConfig.one_of
    assert set(KINDS) == set(group.fields)


@each_kind
def test_values(kind: str) -> None:
    found = build(kind)(counts(), bits()).detach().numpy()
    expected = KINDS[kind][1](counts().double().numpy(), bits().double().numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert found.shape == expected.shape == (NUM_ROWS, build(kind).out_features)


@each_kind
def test_what_is_not_finite_counts_as_zero(kind: str) -> None:
    wrong = torch.tensor([math.nan, math.inf, -math.inf, 1.0, 2.0]).expand(2, -1)
    right = torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0]).expand(2, -1)
    wrong_bits, right_bits = torch.tensor([[math.nan, 1.0, math.inf]] * 2), torch.tensor([[0.0, 1.0, 0.0]] * 2)
    found, expected = (build(kind)(*pair) for pair in ((wrong, wrong_bits), (right, right_bits)))
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@each_kind
@pytest.mark.parametrize("value", [0.0, 1e-38, 3e38, -3e38])
@pytest.mark.parametrize("training", [True, False])
def test_extremes(kind: str, value: float, training: bool) -> None:
    featurizer = build(kind).train(training)
    for num_rows in (1, 2):
        x = torch.full((num_rows, NUM_CONTINUOUS), value)
        assert featurizer(x, torch.zeros(num_rows, NUM_BINARY)).isfinite().all()


@each_kind
@pytest.mark.parametrize(("num_continuous", "num_binary"), [(0, 3), (5, 0), (0, 0)])
def test_a_block_without_columns(kind: str, num_continuous: int, num_binary: int) -> None:
    featurizer = Featurizer(FeaturizationConfig.model_validate({kind: {}}), num_continuous, num_binary)
    for _ in range(2):
        out = featurizer(torch.ones(4, num_continuous), torch.ones(4, num_binary))
        assert out.shape == (4, featurizer.out_features)
        assert out.isfinite().all()
        featurizer.eval()


def test_a_column_of_few_values_has_bins_where_they_change() -> None:
    config = FeaturizationConfig.model_validate({"piecewise_linear_config": {"num_bins": 4}})
    featurizer = Featurizer(config, 2, 0)
    rows = torch.tensor([[0.0, 7.0]] * 6 + [[1.0, 7.0]] * 4)  # quantiles 0, 0, 0, 1, 1; a constant
    featurizer.continuous.fit(rows)
    out = featurizer(torch.tensor([[0.0, 7.0], [1.0, 7.0], [5.0, 9.0]]), torch.empty(3, 0))
    assert out[:, 2:6].tolist() == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]]
    assert out[:, 6:].abs().max() == 0
    assert out[:2, 1].tolist() == [0, 0]


@each_kind
def test_bfloat16_products_leave_it_as_it_is(kind: str) -> None:
    featurizer = build(kind).eval()
    exact = featurizer(counts(), bits())
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(featurizer(counts(), bits()).float(), exact)


@each_kind
def test_it_exports_for_any_number_of_rows(kind: str) -> None:
    featurizer = build(kind).eval()
    rows = {0: torch.export.Dim("batch")}
    exported = torch.export.export(featurizer, (counts(), bits()), dynamic_shapes=(rows, rows), strict=False).module()
    for num_rows in (1, 9):
        inputs = counts(num_rows), bits(num_rows)
        torch.testing.assert_close(exported(*inputs), featurizer(*inputs))


def test_without_a_configuration_finite_features_pass() -> None:
    x = counts()
    x[0, 0] = math.nan
    out = Featurizer(None, NUM_CONTINUOUS, NUM_BINARY)(x, bits())
    torch.testing.assert_close(out, torch.cat([x.nan_to_num(0), bits()], 1), rtol=0, atol=0)


def test_the_batch_norm_of_training_is_that_of_its_running_statistics_in_evaluation() -> None:
    body = {"batch_norm_config": {"momentum": 0.25, "affine": True}, "clip_magnitude": 100.0, "layer_norm_config": None}
    featurizer = build("double_norm_log_config", body)
    mean, var = np.zeros(NUM_CONTINUOUS), np.ones(NUM_CONTINUOUS)
    for num_rows in (5, 6, 7):
        featurizer(counts(num_rows), bits(num_rows))
        x = logs(counts(num_rows).double().numpy())
        mean, var = 0.75 * mean + 0.25 * x.mean(0), 0.75 * var + 0.25 * x.var(0, ddof=1)
    featurizer(counts(1), bits(1))  # one row has no variance and leaves no trace
    found = featurizer.eval()(counts(), bits())[:, :NUM_CONTINUOUS].detach()
    np.testing.assert_allclose(found, (logs(counts().double().numpy()) - mean) / np.sqrt(var + 1e-5), rtol=1e-4)
    assert len(list(featurizer.parameters())) == 2  # factor and offset of the batch norm


class TestLayerNorm:
    WIDTH = 6

    def rows(self) -> Tensor:
        return torch.randn(5, self.WIDTH, generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize("epsilon", [0.0, 1e-5, 0.1])
    @pytest.mark.parametrize(("center", "scale"), [(True, True), (False, True), (True, False), (False, False)])
    def test_values_and_gradients(self, epsilon: float, center: bool, scale: bool) -> None:
        norm = LayerNorm(LayerNormConfig(epsilon=epsilon, center=center, scale=scale), self.WIDTH).double()
        assert (norm.bias is not None, norm.weight is not None) == (center, scale)
        for parameter in norm.parameters():
            parameter.data += torch.linspace(0, 1, self.WIDTH)
        x = self.rows().double().requires_grad_()
        leaves = [x, *norm.parameters()]
        deviation = x - x.mean(1, keepdim=True)
        expected = deviation / (deviation.square().sum(1, keepdim=True) / self.WIDTH + epsilon).sqrt()
        expected = expected if norm.weight is None else expected * norm.weight
        expected = expected if norm.bias is None else expected + norm.bias
        out = norm(x)
        torch.testing.assert_close(out, expected)
        coefficients = torch.linspace(-1, 2, out.numel()).view_as(out).double().square()
        ours, theirs = (torch.autograd.grad((y * coefficients).sum(), leaves) for y in (out, expected))
        for our, their in zip(ours, theirs, strict=True):
            assert their.abs().max() > 1e-2
            torch.testing.assert_close(our, their)

    @pytest.mark.parametrize("value", [0.0, 0.1, -1e-38, 1 / 3, 1e30])
    def test_epsilon_0_makes_zeros_of_a_row_of_equal_numbers(self, value: float) -> None:
        norm = LayerNorm(LayerNormConfig(epsilon=0, center=False), self.WIDTH)
        x = torch.cat([torch.full((1, self.WIDTH), value), self.rows()]).requires_grad_()
        out = norm(x)
        assert out[0].count_nonzero() == 0
        torch.testing.assert_close(out[1:].square().mean(1), torch.ones(5))
        for gradient in torch.autograd.grad((out * torch.arange(6)).sum(), [x, *norm.parameters()]):
            assert gradient.isfinite().all()

    @pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
    def test_epsilon_0_sees_no_scale(self, scale: float) -> None:
        norm = LayerNorm(LayerNormConfig(epsilon=0), self.WIDTH)
        torch.testing.assert_close(norm(self.rows() * scale), norm(self.rows()), rtol=1e-4, atol=1e-5)


def test_either_norm_may_be_left_out() -> None:
    body = {"batch_norm_config": None, "clip_magnitude": 2.5, "layer_norm_config": None}
    featurizer = build("double_norm_log_config", body)
    assert not list(featurizer.state_dict())
    x, binary = counts(), bits()
    expected = np.concatenate([np.clip(logs(x.double().numpy()), -2.5, 2.5), binary.double().numpy()], 1)
    np.testing.assert_allclose(featurizer(x, binary).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_second_norm_of_an_all_zero_row_with_epsilon_0_is_zero() -> None:
    """Defect 15 of the reference: its shipped epsilon gives NaN here."""
    body = {"batch_norm_config": {"affine": False}, "layer_norm_config": {"epsilon": 0.0}}
    featurizer = Featurizer(
        FeaturizationConfig.model_validate({"double_norm_log_config": body}), NUM_CONTINUOUS, NUM_BINARY
    ).eval()
    x = torch.zeros(2, NUM_CONTINUOUS, requires_grad=True)
    out = featurizer(x, torch.zeros(2, NUM_BINARY))
    assert out.count_nonzero() == 0
    (gradient,) = torch.autograd.grad(out.sum(), [x])
    assert gradient.isfinite().all()


class TestStatistics:
    def test_moments_of_batches_are_those_of_all_rows(self) -> None:
        x = counts(50)
        x[3, 2] = math.inf
        moments = LogMoments(NUM_CONTINUOUS)
        for batch in (x[:20], x[20:20], x[20:21], x[21:]):
            moments.add(BatchMoments.of(batch))
        expected = logs(x.double().numpy())
        np.testing.assert_allclose(moments.mean, expected.mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.std, expected.std(0), rtol=1e-12)

    def test_a_large_nearly_constant_column_keeps_its_deviation(self) -> None:
        x = 1e30 * (1 + 1e-6 * torch.arange(1000, dtype=torch.float64)).view(-1, 1)
        moments = LogMoments(1)
        for batch in x.split(100):
            moments.add(BatchMoments.of(batch))
        np.testing.assert_allclose(moments.std, np.log1p(x.numpy()).std(0), rtol=1e-6)

    def test_a_column_that_never_varied_is_zero_at_its_value(self) -> None:
        moments = LogMoments(NUM_CONTINUOUS)
        x = torch.arange(1.0, 6.0).expand(4, -1)
        moments.add(BatchMoments.of(x))
        featurizer = build("z_score_log_config")
        featurizer.continuous.fit(moments.mean, moments.std)
        out = featurizer(x, bits(4))[:, :NUM_CONTINUOUS]
        torch.testing.assert_close(out, torch.zeros_like(out), rtol=0, atol=1e-6)

    def test_without_rows_there_is_nothing(self) -> None:
        moments = LogMoments(2)
        assert moments.mean.tolist() == moments.std.tolist() == [0.0, 0.0]

    def test_fitted_statistics_are_part_of_the_state(self) -> None:
        fresh = Featurizer(
            FeaturizationConfig.model_validate({"z_score_log_config": {"clip_magnitude": 3.0}}), NUM_CONTINUOUS, 3
        )
        assert not torch.allclose(fresh(counts(), bits()), build("z_score_log_config")(counts(), bits()))
        fresh.load_state_dict(build("z_score_log_config").state_dict())
        torch.testing.assert_close(fresh(counts(), bits()), build("z_score_log_config")(counts(), bits()))


class TestAnalysis:
    WIDTHS: ClassVar[dict[str, int]] = {"likes": 2, "age": 1}

    def write(self, tmp_path: Path, content: object) -> Path:
        path = tmp_path / "analysis.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def test_features_come_in_the_order_that_is_asked_for(self, tmp_path: Path) -> None:
        age, likes = {"mean": [3.0], "std": [0.0]}, {"mean": [1, 2.5], "std": [4, 5]}
        path = self.write(tmp_path, {"age": age, "other": 1, "likes": likes})
        mean, std = read_analysis(path, self.WIDTHS)
        assert mean.tolist() == [1.0, 2.5, 3.0]
        assert std.tolist() == [4.0, 5.0, 0.0]
        assert read_analysis(path, {})[0].shape == (0,)

    @pytest.mark.parametrize(
        ("likes", "problem"),
        [
            (None, r"likes\.mean: missing or not a list; give 2 finite numbers"),
            ({"mean": [1, 2]}, r"likes\.std: missing or not a list; give 2 finite numbers from 0"),
            ({"mean": 1, "std": [1, 1]}, r"likes\.mean: missing or not a list"),
            ({"mean": ["a", 1], "std": [1, 1]}, r"likes\.mean: missing or not a list"),
            ({"mean": [1], "std": [1, 1]}, r"likes\.mean: \[1\.0\]; give 2"),
            ({"mean": [1, 2], "std": [1, -1]}, r"likes\.std: \[1\.0, -1\.0\]; give 2 finite numbers from 0"),
            ({"mean": [1, math.nan], "std": [1, 1]}, r"likes\.mean: \[1\.0, nan\]"),
        ],
    )
    def test_what_is_wrong_is_said(self, tmp_path: Path, likes: object, problem: str) -> None:
        content = {"likes": likes, "age": {"mean": [1], "std": [1]}}
        with pytest.raises(ConfigError, match=r"analysis_path=.*analysis\.json: " + problem):
            read_analysis(self.write(tmp_path, content), self.WIDTHS)

    def test_a_file_that_is_not_there_or_no_json(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot be read: No such file or directory; name an existing file"):
            read_analysis(tmp_path / "nothing.json", self.WIDTHS)
        with pytest.raises(ConfigError, match="is no JSON"):
            read_analysis(self.write(tmp_path, "{"), self.WIDTHS)
        with pytest.raises(ConfigError, match=r"likes\.mean: missing"):
            read_analysis(self.write(tmp_path, [1, 2]), self.WIDTHS)
