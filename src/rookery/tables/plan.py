"""Which process holds what of which table: the plan that is shown when a run starts.

Imports neither torchrec nor fbgemm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from rookery.optim.rows import make_row_optimizer
from rookery.parallel.config import ShardingKind
from rookery.tables.protocol import TableSpec
from rookery.tables.refusals import TableAsked, WorldShape, kind_refusals

_DATA_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class TablePlan:
    """Where one table lies: ``ranks`` have a part of it; bytes are by rank of the world, 0 for those without."""

    table: str
    kind: str
    kernel: str
    ranks: tuple[int, ...]
    weight_bytes: tuple[int, ...]
    optimizer_bytes: tuple[int, ...]


def plan_of(
    spec: TableSpec, kind: str, kernel: str, shards: Iterable[tuple[int, int, int]], world_size: int
) -> TablePlan:
    """The plan of a table whose shards are given as rank, rows and columns."""
    weight_bytes, optimizer_bytes = [0] * world_size, [0] * world_size
    for rank, rows, columns in shards:
        weight_bytes[rank] += rows * columns * spec.dtype.itemsize
        optimizer_bytes[rank] += _optimizer_bytes(spec, rows, columns)
    ranks = tuple(rank for rank, held in enumerate(weight_bytes) if held)
    return TablePlan(spec.name, kind, kernel, ranks, tuple(weight_bytes), tuple(optimizer_bytes))


def replicated_plan(spec: TableSpec, world_size: int) -> TablePlan:
    """The plan of a table that every rank holds whole."""
    shards = [(rank, spec.num_embeddings, spec.embedding_dim) for rank in range(world_size)]
    return plan_of(spec, "data_parallel", "local", shards, world_size)


def _optimizer_bytes(spec: TableSpec, rows: int, columns: int) -> int:
    with torch.device("meta"):
        state = make_row_optimizer(spec.optimizer).initial_state(rows, columns)
    return sum(tensor.nbytes for tensor in state.values())


def dealt(sizes: Sequence[int], num_hands: int) -> list[int]:
    """The hand that each size goes to: the largest first, each to the hand that has least so far."""
    held, hands = [0] * num_hands, [0] * len(sizes)
    for item in sorted(range(len(sizes)), key=lambda item: -sizes[item]):
        hands[item] = held.index(min(held))
        held[hands[item]] += sizes[item]
    return hands


def kinds_for_planner(spec: TableSpec, shape: WorldShape) -> list[ShardingKind]:
    """The kinds that ``auto`` may choose among. table_wise is always one."""
    shardable: tuple[ShardingKind, ...] = ("table_wise", "row_wise", "column_wise", "table_row_wise")
    table = table_asked(spec, "")
    return [kind for kind in shardable if not kind_refusals(table, kind, shape)]


def table_asked(spec: TableSpec, field: str) -> TableAsked:
    """What is asked of a back end by a table that the configuration describes in ``field``."""
    return TableAsked(
        spec.name,
        field,
        spec.optimizer,
        num_embeddings=spec.num_embeddings,
        embedding_dim=spec.embedding_dim,
        data_type=_DATA_TYPES[spec.dtype],
        max_norm=spec.max_norm,
    )
