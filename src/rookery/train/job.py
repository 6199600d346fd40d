"""What the loop is given: a model, its batches, its state, and what moves its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from rookery.data.prefetch import Transform
from rookery.data.stream import BatchStream
from rookery.parallel.world import IsUnwanted

B = TypeVar("B")
Outputs = Mapping[str, "Tensor | float"]
"""What a model reports beside its loss. Scalars are logged, as means over the steps since the last log."""


Validate = Callable[[IsUnwanted], Mapping[str, float]]
"""Metrics by name; ``Abandoned`` where they become unwanted meanwhile."""


class Model(Protocol):
    """What the loop asks of a model; an ``nn.Module`` with ``begin_step`` and ``expect`` is one.

    What it draws at random must follow from the batch: no generator's state is in a checkpoint, and the processes that
    share a batch may be of any number.
    """

    def __call__(self, batch: Any) -> tuple[Tensor, Outputs]:
        """The loss (a scalar, the mean over the batch) and outputs."""
        ...

    def begin_step(self, step: int, micro_step: int, num_micro_steps: int) -> None:
        """Told before each forward pass. Tables that move inside the backward pass collect gradients and move once, in
        the one of ``micro_step == num_micro_steps - 1``.
        """
        ...

    def expect(self, batch: Any) -> None:
        """Told of the first batch of the next step before this one: what it needs of other processes may come while
        this one computes. Each process is told at the same steps; where training ends, the batch is not trained on.
        """
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def train(self, mode: bool = True) -> object: ...


class Stateful(Protocol):
    """Something whose tensors are in the checkpoint."""

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name; no copies."""
        ...

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite the tensors with stored ones of the same names. ``tensors`` reads from disk on access."""
        ...


@dataclass(frozen=True)
class LearningRate:
    """One schedule: ``apply(schedule(step))`` runs before each step (0 the first), and is logged as ``lr/<name>``."""

    name: str
    schedule: Callable[[int], float]
    apply: Callable[[float], None]


@dataclass(frozen=True)
class Job(Generic[B]):
    """One training job.

    ``transform`` makes the model's batch, on its device, from a batch of columns and the stream's position behind it;
    it runs ahead in another thread. ``state`` names the groups of tensors of the checkpoint; ``model`` and
    ``optimizer`` are the usual two. ``optimizers`` step the dense parameters after the backward pass. ``validate``
    measures the model as it is and returns metrics by name, or gives that up. ``unit`` is what a row of the stream is
    called in the log. ``close`` lets go of what the stream holds besides memory.
    """

    model: Model
    stream: BatchStream
    transform: Transform[B]
    state: Mapping[str, Stateful]
    learning_rates: Sequence[LearningRate] = ()
    optimizers: Sequence[torch.optim.Optimizer] = ()
    validate: Validate | None = None
    unit: str = "examples"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    close: Callable[[], None] = lambda: None


def learning_rate_of(optimizer: torch.optim.Optimizer) -> Callable[[float], None]:
    """The ``apply`` of a schedule that moves every parameter group of a dense optimizer."""

    def apply(learning_rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate

    return apply
