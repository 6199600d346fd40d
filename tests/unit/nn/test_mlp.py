"""MLPs, one and many side by side, against ``nn.Sequential`` for each: values, gradients, running statistics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from naive_networks import assert_same, copy_from, gradients, naive_mlp, named, randomise, slices
from torch import Tensor, nn

from rookery.nn.config import MlpConfig
from rookery.nn.mlp import Mlp, StackedMlp

BATCH, NUM, IN = 9, 3, 7
CONFIGS: dict[str, dict[str, Any]] = {
    "one_layer": {"layer_sizes": [4]},
    "one_layer_activated": {"layer_sizes": [4], "final_layer_activation": True},
    "three_layers": {"layer_sizes": [6, 5, 2]},
    "batch_norm": {"layer_sizes": [6, 5, 1], "batch_norm": {"affine": False, "momentum": 0.2}},
    "affine_batch_norm": {"layer_sizes": [6, 4], "batch_norm": {}, "final_layer_activation": True},
    "dropout": {"layer_sizes": [6, 4], "dropout": {"rate": 0.0}, "batch_norm": {}},
}
each = pytest.mark.parametrize("name", list(CONFIGS))
training = pytest.mark.parametrize("training", [True, False])


def config_of(name: str) -> MlpConfig:
    return MlpConfig.model_validate(CONFIGS[name])


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5)).requires_grad_()


def naive_of(name: str, seed: int, training: bool) -> nn.Sequential:
    naive = naive_mlp(config_of(name), IN).train(training)
    randomise(naive, seed)
    return naive


@training
@each
def test_mlp_is_a_chain_of_torch_layers(name: str, training: bool) -> None:
    ours, naive = Mlp(config_of(name), IN).train(training), naive_of(name, 0, training)
    copy_from(naive, slices(ours, None, "layers."))
    x, x_naive = rows(BATCH, IN), rows(BATCH, IN)
    out, expected = ours(x), naive(x_naive)
    assert out.shape == (BATCH, ours.out_features)
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, x_naive.grad)
    assert_same(gradients(ours, None, "layers."), {n: p.grad for n, p in naive.named_parameters()})
    assert_same(slices(ours, None, "layers."), named(naive))


@pytest.mark.parametrize("shared", [True, False])
@training
@each
def test_stacked_mlps_are_mlps_side_by_side(name: str, training: bool, shared: bool) -> None:
    ours = StackedMlp(config_of(name), NUM, IN).train(training)
    naive = [naive_of(name, seed, training) for seed in range(NUM)]
    for index, each_naive in enumerate(naive):
        copy_from(each_naive, slices(ours, index, "layers."))
    shape = (BATCH, IN) if shared else (BATCH, NUM, IN)
    x, x_naive = rows(*shape), rows(*shape)
    out = ours(x)
    expected = torch.stack([each(x_naive if shared else x_naive[:, i]) for i, each in enumerate(naive)], dim=1)
    assert out.shape == (BATCH, NUM, ours.out_features)
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, x_naive.grad)
    for index, each_naive in enumerate(naive):
        assert_same(gradients(ours, index, "layers."), {n: p.grad for n, p in each_naive.named_parameters()})
        assert_same(slices(ours, index, "layers."), named(each_naive))


@training
def test_one_row_is_normalised_by_running_statistics(training: bool) -> None:
    ours = StackedMlp(config_of("batch_norm"), NUM, IN).train(training)
    randomise(ours, 1)
    before = {name: buffer.clone() for name, buffer in ours.named_buffers()}
    x = rows(1, IN)
    torch.testing.assert_close(ours(x), ours.eval()(x.repeat(4, 1))[:1])
    assert_same(dict(ours.named_buffers()), before)


def test_dropout_drops_after_the_activation_and_only_in_training() -> None:
    config = MlpConfig.model_validate(
        {"layer_sizes": [4_000], "dropout": {"rate": 0.25}, "final_layer_activation": True}
    )
    torch.manual_seed(0)
    ours = StackedMlp(config, 2, IN)
    x = rows(3, IN)
    kept = ours.eval()(x)
    dropped = ours.train()(x)
    there = dropped > 0
    torch.testing.assert_close(dropped[there], kept[there] / 0.75)
    assert abs(there.sum() / (kept > 0).sum() - 0.75) < 0.02  # 12,000 draws: a deviation of 0.004


def test_starts_from_xavier_weights_and_zero_biases() -> None:
    torch.manual_seed(0)
    ours = StackedMlp(MlpConfig(layer_sizes=(300,)), 2, 200)
    weight, bias = ours.layers[0].weight, ours.layers[0].bias
    bound = (6 / (200 + 300)) ** 0.5
    assert 0.999 * bound < weight.max() <= bound
    assert -bound <= weight.min() < -0.999 * bound
    assert not torch.equal(weight[0], weight[1])
    assert not bias.any()
    torch.manual_seed(0)
    assert torch.equal(Mlp(MlpConfig(layer_sizes=(300,)), 200).layers[0].weight, weight[0])


@pytest.mark.parametrize("shared", [True, False])
def test_half_precision_products_are_as_close_as_naive_ones(shared: bool) -> None:
    ours = StackedMlp(config_of("batch_norm"), NUM, IN)
    naive = [naive_of("batch_norm", seed, True) for seed in range(NUM)]
    for index, each_naive in enumerate(naive):
        copy_from(each_naive, slices(ours, index, "layers."))
    x = rows(BATCH, IN) if shared else rows(BATCH, NUM, IN)
    exact = torch.stack([each(x if shared else x[:, i]) for i, each in enumerate(naive)], dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        out = ours(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=0, atol=0.05)
    out.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().max() > 0 for p in ours.parameters())


def test_exports_with_any_number_of_rows() -> None:
    ours = StackedMlp(config_of("affine_batch_norm"), NUM, IN).eval()
    randomise(ours, 2)
    exported = torch.export.export(ours, (rows(4, IN),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for num_rows in (1, 5):
        x = rows(num_rows, IN)
        torch.testing.assert_close(exported.module()(x), ours(x))
