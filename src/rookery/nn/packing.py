"""Weights laid out once for a CPU that only scores.

oneDNN multiplies fastest with a weight in blocks of its own (one row in bfloat16: four times as fast as with the
matrix as it is, a large batch: a tenth), and a weight that is rounded is rounded once instead of at every batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rookery.nn.products import multiply, scoring_dtype

# Weights of a matrix from which on a row is multiplied faster so.
MIN_WEIGHTS = 1 << 18


class Packed:
    """Layers side by side as laid out: ``weight [num, out, in]``, ``bias [num, out]``, neither changes any more.

    A layout is made when it is first asked for.
    """

    def __init__(self, weight: Tensor, bias: Tensor, *, rough: bool) -> None:
        self._weight, self._bias, self._rough = weight.detach(), bias.detach(), rough
        self._made: dict[tuple[bool, torch.dtype], list[tuple[Tensor, Tensor]]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """``[batch, in]``, which all layers read, or ``[batch, num, in]`` → float32 ``[batch, num, out]``."""
        dtype, is_shared = scoring_dtype(self._rough), x.dim() == 2
        layers, x = self._layers(is_shared, dtype), x.to(dtype)
        if is_shared:
            return multiply(x, *layers[0]).view(len(x), *self._bias.shape).float()
        products = [multiply(x[:, index], *layer) for index, layer in enumerate(layers)]
        return torch.stack(products).transpose(0, 1).float()

    def _layers(self, is_shared: bool, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each product: of one, or of one for each layer."""
        made = self._made.get((is_shared, dtype))
        if made is None:
            weights = [self._weight.flatten(0, 1)] if is_shared else list(self._weight)
            biases = [self._bias.flatten()] if is_shared else list(self._bias)
            made = [(_laid_out(weight.to(dtype)), bias.to(dtype)) for weight, bias in zip(weights, biases, strict=True)]
            self._made[is_shared, dtype] = made
        return made


def _laid_out(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)  # noqa: SLF001  # no other door
    return packed
