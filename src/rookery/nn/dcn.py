"""DCN-v2: explicit feature crosses of bounded degree, beside or below a plain network.

Wang et al. 2021, "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to Rank Systems".
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from rookery.nn.config import DcnConfig
from rookery.nn.mlp import Linear, Mlp


class Dcn(nn.Module):
    """``[batch, in] -> [batch, out]``: cross layers, then (parallel) joined with an MLP of the input, then an MLP."""

    per_task: ClassVar[bool] = False
    out_features: int

    def __init__(self, config: DcnConfig, in_features: int) -> None:
        super().__init__()
        rank = config.projection_dim
        self.cross = nn.ModuleList(CrossLayer(in_features, rank) for _ in range(config.poly_degree - 1))
        width, self.parallel_mlp, self.output_mlp = in_features, None, None
        if config.use_parallel:
            assert config.parallel_mlp is not None  # the configuration sees to it
            self.parallel_mlp = Mlp(config.parallel_mlp, in_features)
            width += self.parallel_mlp.out_features
        if config.output_mlp is not None:
            self.output_mlp = Mlp(config.output_mlp, width)
            width = self.output_mlp.out_features
        self.out_features = width

    def forward(self, x: Tensor) -> Tensor:
        crossed = x
        for layer in self.cross:
            crossed = layer(x, crossed)
        if self.parallel_mlp is not None:
            crossed = torch.cat([crossed, self.parallel_mlp(x)], dim=1)
        return crossed if self.output_mlp is None else self.output_mlp(crossed)


class CrossLayer(nn.Module):
    """``x0 ⊙ (W x + b) + x``; of rank ``rank``, ``W = U V`` (``V`` first, ``b`` behind ``U``).

    One layer raises the degree in the input by one. A full matrix costs ``in²`` multiplications a row, the
    factors ``2 in rank``.
    """

    def __init__(self, in_features: int, rank: int | None) -> None:
        super().__init__()
        self.down = None
        if rank is not None:
            self.down = nn.Linear(in_features, rank, bias=False)
            nn.init.xavier_uniform_(self.down.weight)
        self.up = Linear(in_features if rank is None else rank, in_features)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """Both ``[batch, in]``."""
        mapped = self.up(x if self.down is None else self.down(x))
        return torch.addcmul(x, x0, mapped)
