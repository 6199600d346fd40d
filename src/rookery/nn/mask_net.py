"""MaskNet: features multiplied with masks that are computed from the features (Wang, She, Zhang 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from rookery.nn.config import MaskBlockConfig, MaskNetConfig
from rookery.nn.mlp import Mlp, StackedLinear

C = TypeVar("C")


class MaskBlocks(nn.Module):
    """``num`` mask blocks of equal shape as batched products: ``LayerNorm(Linear(x ⊙ Linear(ReLU(Linear(m)))))``.

    All read the same ``x`` and ``m``. Of every parameter ``[i]`` along the first dimension is the ``i``-th block's.
    Their first layer is rough: rounded to bfloat16, it moves a logit least of all wide layers.
    """

    def __init__(self, config: MaskBlockConfig, num: int, in_features: int, mask_features: int) -> None:
        super().__init__()
        self.out_features = config.output_size
        self._activation = config.activation
        hidden = _hidden_size(config, mask_features)
        self.input_norm = StackedLayerNorm(num, in_features) if config.input_layer_norm else None
        self.aggregate = StackedLinear(num, mask_features, hidden, rough=True)
        self.project = StackedLinear(num, hidden, in_features)
        self.hidden = StackedLinear(num, in_features, config.output_size)
        self.norm = StackedLayerNorm(num, config.output_size)

    def forward(self, x: Tensor, m: Tensor) -> Tensor:
        """``x [batch, in_features]``, ``m [batch, mask_features]`` → ``[batch, num, out_features]``."""
        features = x.unsqueeze(1)  # [batch, 1, in_features]
        if self.input_norm is not None:
            features = self.input_norm(features)  # [batch, num, in_features]
        mask = self.project(self.aggregate(m).relu())  # [batch, num, in_features]
        # Training in half precision rounds both anyway; a float32 product of all blocks is slow to write and to cast.
        out: Tensor = self.norm(self.hidden(features.to(mask.dtype) * mask))
        return out.relu() if self._activation == "relu" else out


class StackedLayerNorm(nn.Module):
    """Layer normalisation over the last dimension of ``[batch, num or 1, size]``, with weights of each of ``num``."""

    def __init__(self, num: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num, size))
        self.bias = nn.Parameter(torch.zeros(num, size))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, functional.layer_norm(x, x.shape[-1:]), self.weight)


class MaskNet(nn.Module):
    """Mask blocks side by side, concatenated, or one behind the other; then an MLP: ``[batch, in] → [batch, out]``.

    Side by side, blocks of equal configuration run together.
    """

    per_task: ClassVar[bool] = False
    places: tuple[tuple[int, int], ...]
    """Of each block of the configuration the module of ``blocks`` that it is in, and its index there."""

    def __init__(self, config: MaskNetConfig, in_features: int) -> None:
        super().__init__()
        blocks = config.mask_blocks
        self._parallel = config.use_parallel
        if config.use_parallel:
            groups, self.places = group_equal(blocks)
            self.blocks = nn.ModuleList(MaskBlocks(block, num, in_features, in_features) for block, num in groups)
            width = sum(block.output_size for block in blocks)
        else:
            widths = (in_features, *(block.output_size for block in blocks))
            self.blocks = nn.ModuleList(
                MaskBlocks(block, 1, width, in_features) for block, width in zip(blocks, widths, strict=False)
            )
            self.places = tuple((number, 0) for number in range(len(blocks)))
            width = widths[-1]
        self.mlp = Mlp(config.mlp, width) if config.mlp is not None else None
        self.out_features = width if self.mlp is None else self.mlp.out_features

    def forward(self, x: Tensor) -> Tensor:
        out = self._side_by_side(x) if self._parallel else self._one_by_one(x)
        return out if self.mlp is None else self.mlp(out)

    def _side_by_side(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = [blocks(x, x) for blocks in self.blocks]  # a group each: [batch, num, output_size]
        if len(outputs) == 1:
            return outputs[0].flatten(1)
        return torch.cat([outputs[group][:, member] for group, member in self.places], dim=1)

    def _one_by_one(self, x: Tensor) -> Tensor:
        out = x
        for block in self.blocks:
            out = block(out, x).squeeze(1)
        return out


def group_equal(configs: Sequence[C]) -> tuple[list[tuple[C, int]], tuple[tuple[int, int], ...]]:
    """Equal configurations with how many there are, and for each of ``configs`` its group and its place there."""
    groups: list[list[C]] = []
    order = []
    for config in configs:
        index = next((i for i, group in enumerate(groups) if group[0] == config), len(groups))
        if index == len(groups):
            groups.append([])
        order.append((index, len(groups[index])))
        groups[index].append(config)
    return [(group[0], len(group)) for group in groups], tuple(order)


def _hidden_size(config: MaskBlockConfig, mask_features: int) -> int:
    if config.aggregation_size is not None:
        return config.aggregation_size
    assert config.reduction_factor is not None
    return max(1, int(mask_features * config.reduction_factor))
