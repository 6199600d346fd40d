"""What the debug loop says of every step."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rookery.train.job import Model, Outputs


def gradient_norms(model: Model) -> dict[str, float]:
    """Euclidean norms of the gradients of the dense parameters, as ``grad_norm/<parameter>``."""
    return {
        f"grad_norm/{name}": parameter.grad.norm().item()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def describe_step(metrics: Mapping[str, float], outputs: Outputs) -> str:
    """A line for each metric and each output of a step that is no scalar."""
    lines = [f"  {name:<32} {value:.6g}" for name, value in metrics.items()]
    tensors = {name: value for name, value in outputs.items() if isinstance(value, Tensor) and value.dim() > 0}
    return "\n".join(lines + [f"  {name:<32} {_describe(value)}" for name, value in tensors.items()])


def _describe(tensor: Tensor) -> str:
    kind = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
    if tensor.numel() == 0:
        return kind
    numbers = tensor.detach().double()
    low, mean, high = numbers.min().item(), numbers.mean().item(), numbers.max().item()
    return f"{kind}  min {low:.4g}  mean {mean:.4g}  max {high:.4g}"
