"""What a run must remember to go on bit for bit, and its way into a checkpoint and out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from rookery.checkpoint.files import Checkpoint
from rookery.checkpoint.shards import box, shards_of
from rookery.errors import ConfigError
from rookery.tables.protocol import TableBackend
from rookery.tables.shards import ReadsParts
from rookery.train.job import Stateful


class ModuleState:
    """Parameters and buffers of a module by their names."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def tensors(self) -> dict[str, Tensor]:
        return dict(self._module.state_dict())

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                tensor.copy_(tensors[name])


class OptimizerState:
    """State of a dense optimizer as ``<parameter>.<state>``; empty before its first step."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
        self._optimizer = optimizer
        self._parameters = parameters

    def tensors(self) -> dict[str, Tensor]:
        state = self._optimizer.state
        return {
            f"{name}.{key}": value
            for name, parameter in self._parameters.items()
            for key, value in state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        for full_name in tensors:
            name, key = full_name.rsplit(".", 1)
            tensor = tensors[full_name]
            parameter = self._parameters[name]
            # A step counter stays where it is, as torch's own optimizers expect; moments live beside their parameter.
            device = tensor.device if key == "step" else parameter.device
            self._optimizer.state[parameter][key] = tensor.to(device, copy=True)


class TableWeights:
    """The weights of all tables of a back end."""

    def __init__(self, tables: TableBackend) -> None:
        self._tables = tables

    def tensors(self) -> dict[str, Tensor]:
        return self._tables.weights()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self._tables.load_weights(tensors)


class TableOptimizerState:
    """The optimizer state of all tables of a back end."""

    def __init__(self, tables: TableBackend) -> None:
        self._tables = tables

    def tensors(self) -> dict[str, Tensor]:
        return self._tables.optimizer_state()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self._tables.load_optimizer_state(tensors)


class StateGroup:
    """Several states as one, each under a prefix: ``<prefix>.<name>``."""

    def __init__(self, parts: Mapping[str, Stateful]) -> None:
        self._parts = parts

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{prefix}.{name}": tensor
            for prefix, part in self._parts.items()
            for name, tensor in part.tensors().items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        for prefix, part in self._parts.items():
            part.load_tensors(Prefixed(tensors, f"{prefix}."))


class Prefixed(Mapping[str, Tensor]):
    """The entries of ``tensors`` whose names begin with ``prefix``, without it; reads nothing until asked."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        self._tensors = tensors
        self._prefix = prefix
        self._names = tuple(name.removeprefix(prefix) for name in tensors if name.startswith(prefix))

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._prefix + name]

    def part(self, name: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """The box of ``sizes`` that begins at ``offsets``, without reading the rest where that can be done."""
        if isinstance(self._tensors, ReadsParts):
            return self._tensors.part(self._prefix + name, offsets, sizes)
        return self[name][box(offsets, sizes)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def check_fit(states: Mapping[str, Stateful], checkpoint: Checkpoint, remedy: str) -> None:
    """Raise ``ConfigError``, with ``remedy``, unless every tensor is stored with the same shape and type."""
    for group, state in states.items():
        stored = checkpoint.tensors(group)
        for name, tensor in state.tensors().items():
            # Neither reads: a table may be larger than the memory of this process.
            then = _describe(stored.dtype(name), stored.shape(name)) if name in stored else "absent"
            held = shards_of(tensor)
            now = _describe(held.dtype, held.size)
            if then != now:
                raise ConfigError(f"{checkpoint.path}: {name} is {then} there, {now} in this configuration; {remedy}")


def _describe(dtype: torch.dtype, shape: torch.Size) -> str:
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"
