"""MLPs, mask blocks and towers as modules that stand alone, one ``nn.Linear`` after the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rookery.nn.config import MaskBlockConfig, MlpConfig


def naive_mlp(config: MlpConfig, in_features: int) -> nn.Sequential:
    """Linear, batch normalisation, ReLU, dropout; the last layer linear unless the configuration says otherwise."""
    layers: list[nn.Module] = []
    for index, size in enumerate(config.layer_sizes):
        layers.append(nn.Linear(in_features, size))
        if index < len(config.layer_sizes) - 1 or config.final_layer_activation:
            if config.batch_norm is not None:
                layers.append(
                    nn.BatchNorm1d(size, affine=config.batch_norm.affine, momentum=config.batch_norm.momentum)
                )
            layers.append(nn.ReLU())
            if config.dropout is not None:
                layers.append(nn.Dropout(config.dropout.rate))
        in_features = size
    return nn.Sequential(*layers)


class NaiveMaskBlock(nn.Module):
    def __init__(self, config: MaskBlockConfig, in_features: int, mask_features: int) -> None:
        super().__init__()
        hidden = config.aggregation_size or int(mask_features * config.reduction_factor)
        self.input_norm = nn.LayerNorm(in_features) if config.input_layer_norm else nn.Identity()
        self.aggregate = nn.Linear(mask_features, hidden)
        self.project = nn.Linear(hidden, in_features)
        self.hidden = nn.Linear(in_features, config.output_size)
        self.norm = nn.LayerNorm(config.output_size)
        self.activation = nn.ReLU() if config.activation == "relu" else nn.Identity()

    def forward(self, x: Tensor, m: Tensor) -> Tensor:
        mask = self.project(torch.relu(self.aggregate(m)))
        return self.activation(self.norm(self.hidden(self.input_norm(x) * mask)))


def randomise(module: nn.Module, seed: int) -> None:
    """Parameters and running statistics away from the zeros and ones that they start from."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
                if name.endswith(("running_var", "norm.weight")):
                    tensor.abs_().add_(0.5)


def slices(stacked: nn.Module, index: int | None, prefix: str = "") -> dict[str, Tensor]:
    """Parameters and buffers of the ``index``-th of the networks in ``stacked`` (None: it holds one alone)."""
    tensors = {**dict(stacked.named_parameters()), **dict(stacked.named_buffers())}
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name: tensor if index is None else tensor[index] for name, tensor in found.items()}


def named(naive: nn.Module) -> dict[str, Tensor]:
    tensors = {**dict(naive.named_parameters()), **dict(naive.named_buffers())}
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


def copy_from(naive: nn.Module, ours: dict[str, Tensor]) -> None:
    """Give the slices of a stacked module what a naive one has; their names must be the same."""
    theirs = named(naive)
    assert theirs.keys() == ours.keys()
    with torch.no_grad():
        for name, tensor in ours.items():
            tensor.copy_(theirs[name])


def gradients(stacked: nn.Module, index: int | None, prefix: str = "") -> dict[str, Tensor]:
    """Gradients by the names of ``slices``; every parameter must have one."""
    found = {name.removeprefix(prefix): p.grad for name, p in stacked.named_parameters() if name.startswith(prefix)}
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in found.values())
    return {name: gradient if index is None else gradient[index] for name, gradient in found.items()}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], **tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, msg=lambda text, name=name: f"{name}: {text}", **tolerance)
