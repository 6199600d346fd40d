"""DLRM: dense features as one more field, and the dot product of each pair of fields.

Naumov et al. 2019, "Deep Learning Recommendation Model for Personalization and Recommendation Systems".
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from rookery.errors import ConfigError
from rookery.nn.config import DlrmConfig
from rookery.nn.layout import InputLayout
from rookery.nn.mlp import Mlp


class Dlrm(nn.Module):
    """``[batch, in] -> [batch, out]``.

    The dense stretches of the layout pass the bottom MLP and become a vector of its last size, ``dim``. Fields of
    another width are mapped to ``dim``, without a bias, so that a field of zeros stays one. The top MLP reads the
    dense vector and the products of all pairs. A row without dense features has no dense vector.
    """

    per_task: ClassVar[bool] = False
    out_features: int
    pairs: Tensor

    def __init__(self, config: DlrmConfig, layout: InputLayout) -> None:
        super().__init__()
        self.layout = layout
        dense_width = sum(width for _, width in layout.dense)
        self.bottom_mlp = Mlp(config.bottom_mlp, dense_width) if dense_width else None
        dim = config.bottom_mlp.layer_sizes[-1]
        self.projections = nn.ModuleList(_projection(width, dim) for _, width in layout.fields)
        num_vectors = len(layout.fields) + (self.bottom_mlp is not None)
        upper = torch.triu_indices(num_vectors, num_vectors, offset=1)
        self.register_buffer("pairs", upper[0] * num_vectors + upper[1], persistent=False)
        top_width = upper.shape[1] + (dim if self.bottom_mlp is not None else 0)
        if top_width == 0:
            raise ConfigError(
                "dlrm_config: one embedding and no dense features make no pair; add a feature or use mlp_config"
            )
        self.top_mlp = Mlp(config.top_mlp, top_width)
        self.out_features = self.top_mlp.out_features

    def forward(self, x: Tensor) -> Tensor:
        stretches = zip(self.projections, self.layout.fields, strict=True)
        vectors = [projection(x[:, start : start + width]) for projection, (start, width) in stretches]
        own = []  # what the top MLP reads besides products
        if self.bottom_mlp is not None:
            own = [self.bottom_mlp(torch.cat([x[:, start : start + width] for start, width in self.layout.dense], 1))]
        products = self._products(torch.stack([*own, *vectors], dim=1))
        out: Tensor = self.top_mlp(torch.cat([*own, products], dim=1))
        return out

    def _products(self, vectors: Tensor) -> Tensor:
        """``[batch, n, dim] -> [batch, n (n - 1) / 2]``: each vector with each later one."""
        gram = torch.bmm(vectors, vectors.transpose(1, 2))  # [batch, n, n]
        return gram.flatten(1).index_select(1, self.pairs)


def _projection(width: int, dim: int) -> nn.Module:
    if width == dim:
        return nn.Identity()
    projection = nn.Linear(width, dim, bias=False)
    nn.init.xavier_uniform_(projection.weight)
    return projection
