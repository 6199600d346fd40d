"""Packed layers give what they gave before, and round what scoring may round."""

from __future__ import annotations

import pytest
import torch
from naive_networks import randomise
from torch import Tensor, nn

from rookery.nn import mlp, packing, products
from rookery.nn.config import MaskNetConfig, MlpConfig
from rookery.nn.mask_net import MaskNet
from rookery.nn.mlp import Mlp, StackedLinear, StackedMlp, pack_for_scoring
from rookery.nn.packing import Packed

NUM, IN, OUT = 3, 33, 20
batches = pytest.mark.parametrize("num_rows", [1, 2, 50])


@pytest.fixture(autouse=True)
def _small_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.backends.mkldnn.is_available()
    monkeypatch.setattr(mlp, "MIN_WEIGHTS", 0)
    monkeypatch.setattr(mlp, "has_onednn", lambda: True)


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    block = {"output_size": OUT, "aggregation_size": 16, "input_layer_norm": True}
    mask_net = MaskNetConfig.model_validate({"mask_blocks": [block] * NUM, "mlp": {"layer_sizes": [8]}})
    layers = MlpConfig.model_validate({"layer_sizes": [OUT, 9], "batch_norm": {}})
    return {
        "mlp": (Mlp(layers, IN), (IN,)),
        "stacked on one input": (StackedMlp(layers, NUM, IN), (IN,)),
        "stacked on their own": (StackedMlp(layers, NUM, IN), (NUM, IN)),
        "mask net": (MaskNet(mask_net, IN), (IN,)),
    }


@batches
@pytest.mark.parametrize("name", list(networks()))
def test_packed_networks_give_the_same(name: str, num_rows: int) -> None:
    network, shape = networks()[name]
    randomise(network.eval(), 0)
    x = rows(num_rows, *shape)
    expected = network(x).detach()
    pack_for_scoring(network)
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected)
        for layer in network.modules():  # the layouts, not the matrices, are what is multiplied with
            if hasattr(layer, "pack"):
                layer.weight.zero_()
        torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("name", list(networks()))
def test_learning_and_exporting_pass_by_the_layouts(name: str) -> None:
    network, shape = networks()[name]
    randomise(network.eval(), 0)
    x = rows(4, *shape)
    pack_for_scoring(network)
    network(x).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in network.parameters())
    with torch.no_grad():
        exported = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        assert "mkldnn" not in exported.graph_module.code
        torch.testing.assert_close(exported.module()(x[:2]), network(x[:2]))


@pytest.mark.parametrize("kind", ["packed", "by oneDNN", "by torch"])
@pytest.mark.parametrize("shape", [(IN,), (NUM, IN)])
@batches
def test_scoring_under_autocast_rounds_rough_layers_alone(
    shape: tuple[int, ...], num_rows: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_MIN_SIZE", 0)
    monkeypatch.setattr(products, "has_onednn", lambda: kind == "by oneDNN")
    x = rows(num_rows, *shape)
    for rough in (True, False):
        layer = StackedLinear(NUM, IN, OUT, rough=rough)
        randomise(layer, 0)
        exact = layer(x).detach()
        if kind == "packed":
            layer.pack()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found = layer(x)
        assert found.dtype == torch.float32
        if rough:
            assert 1e-4 < (found - exact).abs().max() < 0.05
        else:
            torch.testing.assert_close(found, exact)


def test_mask_blocks_round_the_first_layer_of_masks_alone() -> None:
    """Where that layer gives what bfloat16 holds, nothing is rounded."""
    network, (width,) = networks()["mask net"]
    randomise(network, 0)
    x = rows(20, width)
    with torch.no_grad():
        exact = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(x)
        (blocks,) = network.blocks
        blocks.aggregate.weight.zero_()
        blocks.aggregate.bias.fill_(0.5)
        same = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(network(x), same)
    assert 1e-4 < (rough - exact).abs().max() < 0.1


def test_narrow_layers_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlp, "MIN_WEIGHTS", IN * OUT)
    network = networks()["mlp"][0]
    pack_for_scoring(network)
    assert [layer._packed is not None for layer in network.layers if hasattr(layer, "pack")] == [True, False]


def test_a_layout_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    laid_out = packing._laid_out
    monkeypatch.setattr(packing, "_laid_out", lambda weight: made.append(1) or laid_out(weight))
    packed = Packed(rows(NUM, OUT, IN), rows(NUM, OUT), rough=True)
    with torch.no_grad():
        for _ in range(3):
            packed(rows(2, IN))
        assert len(made) == 1
        packed(rows(2, NUM, IN))
        with torch.autocast("cpu", torch.bfloat16):
            packed(rows(2, IN))
    assert len(made) == 1 + NUM + 1
