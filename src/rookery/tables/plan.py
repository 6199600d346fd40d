"""Which process holds what of which table: refusals before a run starts, and the plan that is shown when it does.

Imports neither torchrec nor fbgemm. Each limit was found by running torchrec 1.8.0 with fbgemm 1.8.0 on CPU over 1 to 4
processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from rookery.optim.rows import make_row_optimizer
from rookery.parallel.config import ShardingConfig, ShardingKind
from rookery.tables.protocol import TableSpec

_FIELD = "parallel.sharding"


@dataclass(frozen=True)
class WorldShape:
    """How many processes train together, and how many of them on each machine."""

    world_size: int = 1
    local_world_size: int = 1

    @property
    def num_machines(self) -> int:
        return self.world_size // self.local_world_size


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


def replicated_refusals(specs: Sequence[TableSpec], sharding: ShardingConfig) -> list[str]:
    """What of ``sharding`` the local back end, which holds every table whole in every process, cannot do."""
    problems = _unknown_tables(specs, sharding)
    asked = {f"{_FIELD}.default": sharding.default}
    asked |= {f"{_FIELD}.tables.{name}": kind for name, kind in sharding.tables.items()}
    problems += [
        f"{field}={kind}: the local back end holds every table whole in every process; "
        "leave it out, or set model.embeddings.backend to torchrec"
        for field, kind in asked.items()
        if kind not in (None, "data_parallel")
    ]
    return problems


def sharding_refusals(specs: Sequence[TableSpec], sharding: ShardingConfig, shape: WorldShape) -> list[str]:
    """What of ``sharding`` torchrec cannot do in a world of this shape: a line each with field, value and remedy."""
    problems = _unknown_tables(specs, sharding)
    for spec in specs:
        kind = sharding.kind_of(spec.name)
        found = _kind_refusals(spec, kind, shape)
        if spec.name in sharding.tables:
            problems += [f"{_FIELD}.tables.{spec.name}={kind}: {problem}" for problem in found]
        else:
            remedied = f"; {_FIELD}.tables.{spec.name} gives it a kind of its own"
            problems += [f"{_FIELD}.default={kind}: table {spec.name}: {problem}{remedied}" for problem in found]
    return problems


def _unknown_tables(specs: Sequence[TableSpec], sharding: ShardingConfig) -> list[str]:
    names = [spec.name for spec in specs]
    return [
        f"{_FIELD}.tables.{name}: there is no such table; the tables are {', '.join(names)}"
        for name in sharding.tables
        if name not in names
    ]


def _row_wise_refusals(spec: TableSpec, shape: WorldShape) -> list[str]:
    return _too_few_rows(spec, shape.world_size)


def _table_row_wise_refusals(spec: TableSpec, shape: WorldShape) -> list[str]:
    here, world_size = shape.local_world_size, shape.world_size
    if world_size % here:
        return [f"machines need equally many processes, not {here} of {world_size} on this one; use row_wise"]
    return _too_few_rows(spec, here)


def _too_few_rows(spec: TableSpec, num_shards: int) -> list[str]:
    """torchrec deals blocks of equal size, and fbgemm fails on an empty one ("weights[0] must be a GPU tensor")."""
    rows = spec.num_embeddings
    block = -(-rows // num_shards)
    num_blocks = -(-rows // block)
    if num_blocks == num_shards:
        return []
    counted = f"{rows} rows in blocks of {block} are {num_blocks} blocks"
    return [f"{counted}, too few for {num_shards} processes; use table_wise or data_parallel"]


def _column_wise_refusals(spec: TableSpec, shape: WorldShape) -> list[str]:
    problems, dim, divisor = [], spec.embedding_dim, 4 * shape.world_size
    if spec.optimizer.rowwise_adagrad is not None:
        problems.append(
            "row-wise Adagrad would keep a sum for each part of a row, and the result depend on the number of "
            "processes; use row_wise, or the optimizer adagrad"
        )
    if dim % divisor:
        problems.append(
            f"embedding_dim={dim} does not divide into multiples of 4 over {shape.world_size} processes; "
            f"use a multiple of {divisor}, or row_wise"
        )
    return problems


# The other kinds refuse nothing.
_REFUSALS: dict[ShardingKind, Callable[[TableSpec, WorldShape], list[str]]] = {
    "row_wise": _row_wise_refusals,
    "column_wise": _column_wise_refusals,
    "table_row_wise": _table_row_wise_refusals,
}


def _kind_refusals(spec: TableSpec, kind: ShardingKind, shape: WorldShape) -> list[str]:
    return _REFUSALS[kind](spec, shape) if kind in _REFUSALS else []


def kinds_for_planner(spec: TableSpec, shape: WorldShape) -> list[ShardingKind]:
    """The kinds that ``auto`` may choose among. table_wise is always one."""
    shardable: tuple[ShardingKind, ...] = ("table_wise", "row_wise", "column_wise", "table_row_wise")
    return [kind for kind in shardable if not _kind_refusals(spec, kind, shape)]
