"""MaskNet against blocks that stand alone: values and gradients, side by side and one behind the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from naive_networks import NaiveMaskBlock, assert_same, copy_from, gradients, naive_mlp, randomise, slices
from torch import Tensor, nn

from rookery.nn.config import MaskBlockConfig, MaskNetConfig
from rookery.nn.mask_net import MaskBlocks, MaskNet

BATCH, IN = 6, 8
PLAIN = {"output_size": 5, "aggregation_size": 7}
REDUCED = {"output_size": 4, "reduction_factor": 0.5}
NORMED = {"output_size": 5, "aggregation_size": 3, "input_layer_norm": True}
ACTIVATED = {"output_size": 5, "reduction_factor": 2.0, "activation": "relu"}
MLP = {"layer_sizes": [6, 4], "final_layer_activation": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "equal": {"mask_blocks": [PLAIN] * 3, "mlp": MLP},
    "equal_with_input_norm": {"mask_blocks": [NORMED] * 3},
    "one": {"mask_blocks": [ACTIVATED]},
    "mixed": {"mask_blocks": [PLAIN, REDUCED, PLAIN, ACTIVATED, NORMED, REDUCED], "mlp": MLP},
    "serial": {"mask_blocks": [PLAIN] * 3, "mlp": MLP, "use_parallel": False},
    "serial_mixed": {"mask_blocks": [REDUCED, NORMED, ACTIVATED], "use_parallel": False},
}
each = pytest.mark.parametrize("name", list(CONFIGS))


class NaiveMaskNet(nn.Module):
    """Each block by itself; side by side all read the inputs, else a block reads the one before it."""

    def __init__(self, config: MaskNetConfig, in_features: int) -> None:
        super().__init__()
        self.parallel = config.use_parallel
        widths = [in_features, *(block.output_size for block in config.mask_blocks)]
        self.blocks = nn.ModuleList(
            NaiveMaskBlock(block, in_features if self.parallel else widths[i], in_features)
            for i, block in enumerate(config.mask_blocks)
        )
        width = sum(widths[1:]) if self.parallel else widths[-1]
        self.mlp = naive_mlp(config.mlp, width) if config.mlp is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.parallel:
            return self.mlp(torch.cat([block(x, x) for block in self.blocks], dim=1))
        out = x
        for block in self.blocks:
            out = block(out, x)
        return self.mlp(out)


def config_of(name: str) -> MaskNetConfig:
    return MaskNetConfig.model_validate(CONFIGS[name])


def places(config: MaskNetConfig, ours: MaskNet) -> list[tuple[MaskBlocks, int]]:
    """For each block of the configuration the module that holds it, and its index there."""
    if not config.use_parallel:
        return [(block, 0) for block in ours.blocks]
    kinds = list(dict.fromkeys(config.mask_blocks))
    return [
        (ours.blocks[kinds.index(block)], config.mask_blocks[:index].count(block))
        for index, block in enumerate(config.mask_blocks)
    ]


def pair(name: str) -> tuple[MaskNet, NaiveMaskNet]:
    config = config_of(name)
    ours, naive = MaskNet(config, IN), NaiveMaskNet(config, IN)
    randomise(naive, 3)
    for (blocks, index), block in zip(places(config, ours), naive.blocks, strict=True):
        copy_from(block, slices(blocks, index))
    if ours.mlp is not None:
        copy_from(naive.mlp, slices(ours.mlp, None, "layers."))
    return ours, naive


def rows(num_rows: int = BATCH) -> Tensor:
    return torch.randn(num_rows, IN, generator=torch.Generator().manual_seed(5)).requires_grad_()


@each
def test_equals_blocks_that_stand_alone(name: str) -> None:
    ours, naive = pair(name)
    x, x_naive = rows(), rows()
    out, expected = ours(x), naive(x_naive)
    assert out.shape == (BATCH, ours.out_features)
    torch.testing.assert_close(out, expected)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(6))
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad, x_naive.grad)
    for (blocks, index), block in zip(places(config_of(name), ours), naive.blocks, strict=True):
        assert_same(gradients(blocks, index), {n: p.grad for n, p in block.named_parameters()}, rtol=1e-4, atol=1e-5)
    if ours.mlp is not None:
        assert_same(gradients(ours.mlp, None, "layers."), {n: p.grad for n, p in naive.mlp.named_parameters()})


def test_equal_blocks_share_a_module() -> None:
    ours, _ = pair("mixed")
    assert [len(blocks.hidden.weight) for blocks in ours.blocks] == [2, 2, 1, 1]
    assert ours.blocks[0].aggregate.weight.shape == (2, 7, IN)


def test_a_reduction_factor_leaves_at_least_one_unit() -> None:
    config = MaskBlockConfig(output_size=2, reduction_factor=0.01)
    assert MaskBlocks(config, 1, IN, IN).aggregate.out_features == 1


@each
def test_half_precision_is_close(name: str) -> None:
    ours, naive = pair(name)
    with torch.autocast("cpu", torch.bfloat16):
        out = ours(rows())
    torch.testing.assert_close(out.float(), naive(rows()), rtol=0, atol=0.1)
    out.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().max() > 0 for p in ours.parameters())


@each
def test_exports_with_any_number_of_rows(name: str) -> None:
    ours = pair(name)[0].eval()
    exported = torch.export.export(ours, (rows(),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for num_rows in (1, 3):
        torch.testing.assert_close(exported.module()(rows(num_rows)), ours(rows(num_rows)))
