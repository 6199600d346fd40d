"""What a table back end offers. The model, the loss, the loop and the checkpoint know nothing else.

A back end holds every table of a run. ``lookup`` returns rows that carry a gradient; the backward pass
of those rows applies the table's own optimizer in place, so no dense gradient of a table ever exists.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rookery.optim.config import OptimizerConfig

_DRAWN_NUMBERS = 1 << 22


@dataclass(frozen=True)
class TableSpec:
    """One table: ``num_embeddings`` rows of ``embedding_dim`` numbers and the optimizer that moves them.

    ``init_scale`` is the standard deviation of the normal that the rows are drawn from, ``max_norm`` the
    largest Euclidean norm that a row keeps after an update (None: no limit). ``field`` is that of the configuration
    which describes the table, for messages, where it is not among the ``tables`` beside the back end.
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    dtype: torch.dtype
    optimizer: OptimizerConfig
    init_scale: float
    max_norm: float | None = None
    field: str | None = None


class TableBackend(Protocol):
    """All tables of one run behind one object.

    The state of a back end is two flat maps of tensors, keyed by ``<table>`` for the weights and
    ``<table>.<state>`` for the optimizer (``momentum``, ``sum``, ``exp_avg``, ``exp_avg_sq``, ``step``),
    with shapes ``[num_embeddings, embedding_dim]``, ``[num_embeddings]`` or scalar. Both back ends use the same keys
    and shapes: a checkpoint of one loads into the other.
    """

    @property
    def specs(self) -> Sequence[TableSpec]: ...

    def lookup(self, ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rows ``[len(ids), embedding_dim]`` of each named table. Ids are int64, repeats allowed.

        Float32 whatever the dtype of the table: autograd gives a gradient the dtype of its rows, and one of 3e-8 (a
        mean over 20,000 edges of rows of 1e-3) would be 0 in fp16.

        The backward pass applies the optimizer once per table with the summed gradient of each distinct row. In a world
        of several processes gradients are summed over all of them. Each process looks up, and goes backward, as many
        times as the others; one that has no rows for a batch names its tables with 0 ids.
        """
        ...

    def expect(self, ids: Mapping[str, Tensor]) -> None:
        """Begin with what a later ``lookup`` of these very tensors can have done before it, while others compute.

        The rows are those of the time of the lookup. Each process expects the same lookups as the others. One that
        does not come costs nothing more: with the next that does, those expected before it are forgotten.
        """
        ...

    def rows(self, table: str) -> Tensor:
        """The whole table ``[num_embeddings, embedding_dim]`` without gradient; a view if the back end can give one."""
        ...

    def set_learning_rate(self, table: str, learning_rate: float) -> None:
        """The rate that the next backward pass of ``table`` uses."""
        ...

    def set_accumulating(self, accumulating: bool) -> None:
        """While True, backward passes only collect gradients; the next one after it is False applies their sum.

        The backward pass of the first lookup after it moves also the tables that this lookup does not name.

        A back end whose kernels cannot collect is refused when the config is read.
        """
        ...

    def weights(self) -> dict[str, Tensor]:
        """Weights by table name, for the checkpoint."""
        ...

    def optimizer_state(self) -> dict[str, Tensor]:
        """Optimizer state by ``<table>.<state>``, for the checkpoint."""
        ...

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite the weights of every table."""
        ...

    def load_optimizer_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite the optimizer state of every table."""
        ...


def initial_weight(spec: TableSpec, seed: int) -> Tensor:
    """Seeded normal rows ``[num_embeddings, embedding_dim]``; the same in every back end, in any order of tables."""
    weight = torch.empty(spec.num_embeddings, spec.embedding_dim, dtype=spec.dtype)
    draw_initial(weight, spec, seed, [0, 0])
    return weight


def draw_initial(part: Tensor, spec: TableSpec, seed: int, offsets: Sequence[int]) -> None:
    """Overwrite ``part``, the box of a table that begins at ``offsets``, with its share of ``initial_weight``.

    All of the table is drawn, 2.5 ns a number, and no more than 16 MB of it kept at a time.
    """
    (row, column), (num_rows, width) = offsets, part.shape
    generator = torch.Generator().manual_seed(seed ^ zlib.crc32(spec.name.encode()))
    for start, stop in _drawn_together(spec):
        drawn = torch.empty(stop - start, spec.embedding_dim).normal_(0.0, spec.init_scale, generator=generator)
        first, last = max(start, row), min(stop, row + num_rows)
        if first < last:
            part[first - row : last - row] = drawn[first - start : last - start, column : column + width]


def _drawn_together(spec: TableSpec) -> Iterator[tuple[int, int]]:
    """Blocks of rows. torch draws normals by 16: blocks of multiples of 16 rows, and at the end 16 or more, give the
    numbers of a single draw.
    """
    block = max(16, _DRAWN_NUMBERS // spec.embedding_dim // 16 * 16)
    start = 0
    while start < spec.num_embeddings:
        stop = start + block if spec.num_embeddings - start - block >= 16 else spec.num_embeddings
        yield start, stop
        start = stop
