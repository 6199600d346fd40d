"""A learned vector for the position at which an impression was shown."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rookery.nn.config import PositionDebiasConfig
from rookery.nn.dropout import Dropout


class PositionDebias(nn.Module):
    """Rows 0 to ``max_position - 1`` of the table are those positions, then one for all later, then the unknown.

    The network explains by it that what stands first is engaged with more. Outside of training every row counts as of
    unknown position, so scores do not depend on it; ``drop_probability`` is what teaches the unknown one's vector.
    """

    def __init__(self, config: PositionDebiasConfig) -> None:
        super().__init__()
        self.max_position = config.max_position
        self.dropout = Dropout(config.drop_probability)
        self.out_features = config.num_dims
        self.table = nn.Parameter(torch.empty(config.max_position + 2, config.num_dims))
        nn.init.xavier_uniform_(self.table)

    def forward(self, position: Tensor | None, batch: int) -> Tensor:
        """``[batch, num_dims]``; ``position [batch]`` counts from 0, below 0 is unknown, None: all are."""
        unknown = self.max_position + 1
        if position is None or not self.training:
            return self.table[unknown].expand(batch, -1)
        row = position.clamp(max=self.max_position)
        dropped = self.dropout.kept(row) == 0
        # Not table[row]: its backward adds in the order in which threads come, and a run would not repeat itself.
        return functional.embedding(row.masked_fill(dropped | (row < 0), unknown), self.table)
