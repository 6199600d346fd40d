"""A moving average of parameters: steadier than the parameters of any one step (Polyak, Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """``a += (1 - d_t) (w - a)`` behind every step t of ``optimizer``, ``d_t = min(decay, (1 + t) / (10 + t))``.

    The ramp of ``d_t`` lets the average forget where training began. ``applied`` puts the average in the parameters'
    place for a while.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, decay: float) -> None:
        self._parameters = dict(parameters)
        self._average = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._num_steps = torch.zeros((), dtype=torch.int64)
        self._decay = decay
        optimizer.register_step_post_hook(lambda *_: self._update())

    @torch.no_grad()
    def _update(self) -> None:
        step = int(self._num_steps)
        decay = min(self._decay, (1 + step) / (10 + step))
        # One pass over all of them; a loop would start a kernel each.
        torch._foreach_lerp_(list(self._average.values()), list(self._parameters.values()), 1 - decay)
        self._num_steps += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the parameters are their averages."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():
            kept = parameter.clone()
            parameter.copy_(self._average[name])
            self._average[name].copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        """The averages by parameter, and ``num_steps``."""
        return {**self._average, "num_steps": self._num_steps}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite both."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])


@torch.no_grad()
def load_average(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Overwrite parameters by the averages that ``WeightAverage.tensors`` gave."""
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
