"""What the table back ends cannot do of what a configuration asks: told when it is read, hence without torch.

Each limit of torchrec was found by running torchrec 1.8.0 with fbgemm 1.8.0 on CPU over 1 to 4 processes.
``docs/tables.md`` has the list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rookery.optim.config import OptimizerConfig
from rookery.parallel.config import ShardingConfig, ShardingKind

BackendName = Literal["local", "torchrec"]

_SHARDING = "parallel.sharding"


@dataclass(frozen=True)
class WorldShape:
    """How many processes train together, and how many of them on each machine."""

    world_size: int = 1
    local_world_size: int = 1

    @property
    def num_machines(self) -> int:
        return self.world_size // self.local_world_size


@dataclass(frozen=True)
class TableAsked:
    """A table as far as a configuration tells; sizes that only the data tell are None, and nothing is said of them."""

    name: str
    field: str
    """The field of the configuration that describes it."""
    optimizer: OptimizerConfig
    num_embeddings: int | None = None
    embedding_dim: int | None = None
    data_type: str = "fp32"
    max_norm: float | None = None


@dataclass(frozen=True)
class TablesAsked:
    """All tables of a run, and what is asked of the back end that ``backend_field`` names."""

    backend_field: str
    backend: BackendName
    tables: Sequence[TableAsked]
    sharding: ShardingConfig
    gradient_accumulation: int = 1
    device: str = "cpu"

    @property
    def use_local(self) -> str:
        """A remedy for whatever torchrec cannot do."""
        return f"set {self.backend_field} to local"


def is_replicated(backend: BackendName, sharding: ShardingConfig, table: str) -> bool:
    """Whether every process holds this table whole, in a local table.

    torchrec's own data-parallel kernels drop the fused optimizer.
    """
    return backend == "local" or sharding.kind_of(table) == "data_parallel"


def table_refusals(asked: TablesAsked, shape: WorldShape | None = None) -> list[str]:
    """What the back end cannot do of what is asked: a line each with field, value, reason and remedy.

    Without a ``shape`` only what it refuses whatever the number of processes.
    """
    problems = _unknown_tables(asked)
    if not asked.tables:
        return problems
    if asked.backend == "local":
        return problems + _replicated_refusals(asked)
    sharded = [table for table in asked.tables if not is_replicated(asked.backend, asked.sharding, table.name)]
    problems += [
        f"{table.field}.{problem}, or {asked.use_local}"
        for table in sharded
        for problem in (*_optimizer_refusals(table.optimizer), *_row_refusals(table))
    ]
    problems += _sharding_refusals(asked, shape)
    if asked.device.startswith("cuda"):
        problems.append(
            f"runtime.device={asked.device}: the torchrec back end runs on CPU so far; set it to cpu, "
            f"or {asked.use_local}"
        )
    if asked.gradient_accumulation > 1 and sharded:
        problems.append(
            f"training.gradient_accumulation={asked.gradient_accumulation}: the torchrec back end moves its rows in "
            f"every backward pass and cannot collect gradients; set it to 1 with larger batches, or {asked.use_local}"
        )
    return problems


def kind_refusals(table: TableAsked, kind: ShardingKind, shape: WorldShape | None) -> list[str]:
    """Why torchrec cannot shard a table so in a world of this shape, or, without one, in any."""
    problems = []
    if kind == "column_wise" and table.optimizer.rowwise_adagrad is not None:
        problems.append(
            "row-wise Adagrad would keep a sum for each part of a row, and the result depend on the number of "
            "processes; use row_wise, or the optimizer adagrad"
        )
    if shape is not None and kind in _SHAPE_REFUSALS:
        problems += _SHAPE_REFUSALS[kind](table, shape)
    return problems


def _unknown_tables(asked: TablesAsked) -> list[str]:
    names = [table.name for table in asked.tables]
    there = f"the tables are {', '.join(names)}" if names else "no table has an optimizer of its own"
    return [
        f"{_SHARDING}.tables.{name}: there is no such table; {there}"
        for name in asked.sharding.tables
        if name not in names
    ]


def _replicated_refusals(asked: TablesAsked) -> list[str]:
    """What of the sharding the local back end, which holds every table whole in every process, cannot do."""
    kinds = {f"{_SHARDING}.default": asked.sharding.default}
    kinds |= {f"{_SHARDING}.tables.{name}": kind for name, kind in asked.sharding.tables.items()}
    return [
        f"{field}={kind}: the local back end holds every table whole in every process; "
        f"leave it out, or set {asked.backend_field} to torchrec"
        for field, kind in kinds.items()
        if kind not in (None, "data_parallel")
    ]


def _optimizer_refusals(optimizer: OptimizerConfig) -> list[str]:
    problems = []
    if optimizer.adam is not None:
        problems.append("optimizer.adam: fbgemm has no fused Adam for CPU; use rowwise_adagrad or adagrad")
    if optimizer.sgd is not None and optimizer.sgd.momentum:
        problems.append(
            f"optimizer.sgd.momentum={optimizer.sgd.momentum}: torchrec drops the momentum of fused SGD silently; "
            "set it to 0"
        )
    adagrad = optimizer.adagrad or optimizer.rowwise_adagrad
    if adagrad is not None and adagrad.eps == 0:
        problems.append(
            f"optimizer.{optimizer.kind}.eps=0: fbgemm divides 0 by 0 where a gradient is 0; set it to 1e-8"
        )
    return problems


def _row_refusals(table: TableAsked) -> list[str]:
    problems, dim = [], table.embedding_dim
    if table.data_type not in ("fp32", "fp16"):
        problems.append(f"data_type={table.data_type}: fbgemm has fp32 and fp16 tables on CPU; use one of these")
    if dim is not None and dim % 4:
        problems.append(f"embedding_dim={dim}: fbgemm needs a multiple of 4; use {dim + 4 - dim % 4}")
    if table.max_norm is not None:
        problems.append(f"max_norm={table.max_norm}: fbgemm limits no norms on CPU; leave it out")
    return problems


def _sharding_refusals(asked: TablesAsked, shape: WorldShape | None) -> list[str]:
    """What torchrec cannot do of the kinds that tables are given."""
    problems = []
    for table in asked.tables:
        kind = asked.sharding.kind_of(table.name)
        found = kind_refusals(table, kind, shape)
        if table.name in asked.sharding.tables:
            problems += [f"{_SHARDING}.tables.{table.name}={kind}: {problem}" for problem in found]
        else:
            remedied = f"; {_SHARDING}.tables.{table.name} gives it a kind of its own"
            problems += [f"{_SHARDING}.default={kind}: table {table.name}: {problem}{remedied}" for problem in found]
    return problems


def _row_wise_refusals(table: TableAsked, shape: WorldShape) -> list[str]:
    return _too_few_rows(table.num_embeddings, shape.world_size)


def _table_row_wise_refusals(table: TableAsked, shape: WorldShape) -> list[str]:
    here, world_size = shape.local_world_size, shape.world_size
    if world_size % here:
        return [f"machines need equally many processes, not {here} of {world_size} on this one; use row_wise"]
    return _too_few_rows(table.num_embeddings, here)


def _too_few_rows(rows: int | None, num_shards: int) -> list[str]:
    """torchrec deals blocks of equal size, and fbgemm fails on an empty one ("weights[0] must be a GPU tensor")."""
    if rows is None:
        return []
    block = -(-rows // num_shards)
    num_blocks = -(-rows // block)
    if num_blocks == num_shards:
        return []
    counted = f"{rows} rows in blocks of {block} are {num_blocks} blocks"
    return [f"{counted}, too few for {num_shards} processes; use table_wise or data_parallel"]


def _column_wise_refusals(table: TableAsked, shape: WorldShape) -> list[str]:
    dim, divisor = table.embedding_dim, 4 * shape.world_size
    if dim is None or dim % divisor == 0:
        return []
    counted = f"embedding_dim={dim} does not divide into multiples of 4 over {shape.world_size} processes"
    return [f"{counted}; use a multiple of {divisor}, or row_wise"]


# The other kinds refuse no world.
_SHAPE_REFUSALS: dict[ShardingKind, Callable[[TableAsked, WorldShape], list[str]]] = {
    "row_wise": _row_wise_refusals,
    "column_wise": _column_wise_refusals,
    "table_row_wise": _table_row_wise_refusals,
}
