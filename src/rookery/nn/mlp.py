"""Multi-layer perceptrons: one, or many of equal shape side by side."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from rookery.nn.config import BatchNormConfig, MlpConfig
from rookery.nn.dropout import Dropout
from rookery.nn.packing import MIN_WEIGHTS, Packed
from rookery.nn.products import batched_linear, has_onednn, is_scoring, linear, wide_linear


class Linear(nn.Module):
    """``x W^T + b``: ``[batch, in] → [batch, out]``. Xavier-uniform weight, zero bias."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        nn.init.xavier_uniform_(self.weight)
        self._packed: Packed | None = None

    def pack(self) -> None:
        """Lay the weight out for scoring; it does not change any more."""
        self._packed = Packed(self.weight.unsqueeze(0), self.bias.unsqueeze(0), rough=False)

    def forward(self, x: Tensor) -> Tensor:
        if self._packed is not None and is_scoring(x):
            return self._packed(x).squeeze(1)
        return linear(x, self.weight, self.bias)


class StackedLinear(nn.Module):
    """``num`` linear layers of equal shape; each is initialised as if it stood alone.

    ``rough``: under autocast, scoring rounds the operands as training does.
    """

    def __init__(self, num: int, in_features: int, out_features: int, *, rough: bool = False) -> None:
        super().__init__()
        self.out_features = out_features
        self._rough = rough
        self._packed: Packed | None = None
        self.weight = nn.Parameter(torch.empty(num, out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(num, out_features))
        for weight in self.weight.detach():
            nn.init.xavier_uniform_(weight)

    def pack(self) -> None:
        """Lay the weights out for scoring; they do not change any more."""
        self._packed = Packed(self.weight, self.bias, rough=self._rough)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, in]``, which all layers read, or ``[batch, num, in]`` → ``[batch, num, out]``."""
        if self._packed is not None and is_scoring(x):
            return self._packed(x)
        product = wide_linear if x.dim() == 2 else batched_linear
        return product(x, self.weight, self.bias, rough=self._rough)


def pack_for_scoring(network: nn.Module) -> None:
    """Lay out the weights of the wide layers of ``network``, on a CPU, for scoring alone: none may change any more."""
    for layer in network.modules():
        if isinstance(layer, (Linear, StackedLinear)) and _is_wide(layer.weight):
            layer.pack()


def _is_wide(weight: Tensor) -> bool:
    """Whether products with ``weight [.., out, in]`` are worth it here."""
    out_features, in_features = weight.shape[-2:]
    return weight.device.type == "cpu" and has_onednn() and out_features * in_features >= MIN_WEIGHTS


_EPS = 1e-5
"""Of ``functional.batch_norm``."""


class BatchNorm(nn.Module):
    """Batch normalisation of ``[batch, *shape]``, every element of ``shape`` a channel (Ioffe, Szegedy 2015).

    Running statistics take ``momentum`` of each batch, with the unbiased variance, as in ``nn.BatchNorm1d``. A batch
    of one row has no variance; it is normalised by the running statistics and leaves them as they are.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, config: BatchNormConfig, *shape: int) -> None:
        super().__init__()
        self._momentum = config.momentum
        self.weight = nn.Parameter(torch.ones(shape)) if config.affine else None
        self.bias = nn.Parameter(torch.zeros(shape)) if config.affine else None
        self.register_buffer("running_mean", torch.zeros(shape))
        self.register_buffer("running_var", torch.ones(shape))

        self.sum_over_processes: Callable[[Tensor], Tensor] | None = None
        """Differentiable; set where the batch is the rows of several processes."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.sum_over_processes is not None:
            return self._normalised(x, self.sum_over_processes)
        normalised = functional.batch_norm(
            x.flatten(1),
            self.running_mean.flatten(),
            self.running_var.flatten(),
            None if self.weight is None else self.weight.flatten(),
            None if self.bias is None else self.bias.flatten(),
            training=self.training and x.shape[0] > 1,
            momentum=self._momentum,
        )
        return normalised.view(x.shape)

    def _normalised(self, x: Tensor, summed: Callable[[Tensor], Tensor]) -> Tensor:
        """The same of rows that are a part of the batch, by two sums: of the values, then of their squared distances
        from the mean.
        """
        num_rows = float(summed(x.new_tensor(float(x.shape[0]))))
        x32 = x.float()
        if num_rows > 1:
            mean = summed(x32.sum(0)) / num_rows
            var = summed((x32 - mean).square().sum(0)) / num_rows
            with torch.no_grad():
                self.running_mean.lerp_(mean, self._momentum)
                self.running_var.lerp_(var * (num_rows / (num_rows - 1)), self._momentum)
        else:
            mean, var = self.running_mean, self.running_var
        normalised = (x32 - mean) * torch.rsqrt(var + _EPS)
        if self.weight is not None and self.bias is not None:
            normalised = normalised * self.weight + self.bias
        return normalised.to(x.dtype)


class Mlp(nn.Module):
    """Linear layers with ReLU between them: ``[batch, in_features] → [batch, layer_sizes[-1]]``."""

    per_task: ClassVar[bool] = False

    def __init__(self, config: MlpConfig, in_features: int) -> None:
        super().__init__()
        self.out_features = config.layer_sizes[-1]
        layers: list[nn.Module] = []
        for (size_in, size_out), activated in _layers(config, in_features):
            layers.append(Linear(size_in, size_out))
            if activated:
                layers.extend(_activation(config, size_out))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(x)  # [batch, out_features]
        assert isinstance(out, Tensor)
        return out


class StackedMlp(nn.Module):
    """``num`` networks of equal shape as batched products: the first layer reads a shared input as one wide product.

    Equals ``num`` modules ``Mlp``; of every parameter and buffer, ``[i]`` along the first dimension is the ``i``-th's.
    """

    def __init__(self, config: MlpConfig, num: int, in_features: int) -> None:
        super().__init__()
        self.out_features = config.layer_sizes[-1]
        layers: list[nn.Module] = []
        for (size_in, size_out), activated in _layers(config, in_features):
            layers.append(StackedLinear(num, size_in, size_out))
            if activated:
                layers.extend(_activation(config, num, size_out))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, in]``, which all networks read, or ``[batch, num, in]`` → ``[batch, num, out_features]``."""
        out = self.layers(x)
        assert isinstance(out, Tensor)
        return out


def _layers(config: MlpConfig, in_features: int) -> list[tuple[tuple[int, int], bool]]:
    """Input and output size of each layer, and whether it is activated."""
    sizes = list(itertools.pairwise((in_features, *config.layer_sizes)))
    return [(size, i < len(sizes) - 1 or config.final_layer_activation) for i, size in enumerate(sizes)]


def _activation(config: MlpConfig, *shape: int) -> list[nn.Module]:
    """What follows an activated linear layer with outputs ``[batch, *shape]``."""
    parts: list[nn.Module] = [BatchNorm(config.batch_norm, *shape)] if config.batch_norm is not None else []
    parts.append(nn.ReLU())
    if config.dropout is not None:
        parts.append(Dropout(config.dropout.rate))
    return parts
