"""The torchrec modules of a run's tables and the plan by which they are sharded, before any of it exists.

A table has a collection, and so a kernel, of its own: kernels are shared by tables with equal optimizer
settings, and a shared kernel has one learning rate. All kernels are fused ones: data-parallel kernels, which
torchrec's planner likes best, drop the optimizer without a word.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from rookery.errors import ConfigError
from rookery.optim.config import OptimizerConfig
from rookery.parallel.config import ShardingConfig, ShardingKind
from rookery.parallel.world import is_chief, share_object
from rookery.tables.plan import TablePlan, dealt, kinds_for_planner, plan_of
from rookery.tables.protocol import TableSpec
from rookery.tables.refusals import WorldShape


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back what torchrec says of itself and of its own use of torch: nobody who reads it could act on it."""
    logs = [logging.getLogger(name) for name in ("torch.fx._symbolic_trace", "torchrec")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", "Please use DTensor instead", FutureWarning)
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


with quiet():
    from torch.distributed.optim.apply_optimizer_in_backward import _apply_optimizer_in_backward
    from torchrec.distributed.embedding_types import EmbeddingComputeKernel
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.planner.types import ParameterConstraints, PlannerError
    from torchrec.distributed.sharding_plan import (
        ParameterShardingGenerator,
        column_wise,
        construct_module_sharding_plan,
        row_wise,
        table_row_wise,
        table_wise,
    )
    from torchrec.distributed.types import (
        BoundsCheckMode,
        EmbeddingModuleShardingPlan,
        ParameterSharding,
        ShardingPlan,
    )
    from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
    from torchrec.modules.embedding_modules import EmbeddingBagCollection
    from torchrec.optim import RowWiseAdagrad

FUSED = EmbeddingComputeKernel.FUSED.value
SHARDER = EmbeddingBagCollectionSharder()
_RESERVED = 0.15  # of the memory, for all but the tables
_DATA_TYPES = {torch.float32: DataType.FP32, torch.float16: DataType.FP16}


def inner_name(position: int) -> str:
    """What a table and its only feature are called in torchrec: module names exclude some that users like ("items")."""
    return f"table_{position}"


class Collections(nn.Module):
    """One ``EmbeddingBagCollection``, without memory so far, for each table."""

    def __init__(self, specs: Sequence[TableSpec]) -> None:
        super().__init__()
        self.collections = nn.ModuleList(_collection(spec, position) for position, spec in enumerate(specs))


def _collection(spec: TableSpec, position: int) -> EmbeddingBagCollection:
    name = inner_name(position)
    table = EmbeddingBagConfig(
        name=name,
        num_embeddings=spec.num_embeddings,
        embedding_dim=spec.embedding_dim,
        feature_names=[name],
        pooling=PoolingType.SUM,
        data_type=_DATA_TYPES[spec.dtype],
    )
    collection = EmbeddingBagCollection(tables=[table], device=torch.device("meta"))
    weight = collection.embedding_bags[name].weight
    _apply_optimizer_in_backward(*_fused(spec.optimizer, [weight]), register_hook=False)
    return collection


def _fused(
    config: OptimizerConfig, parameters: list[nn.Parameter]
) -> tuple[type[torch.optim.Optimizer], list[nn.Parameter], dict[str, float]]:
    """The class by which torchrec finds the fused kernel, what it moves, and its settings."""
    if config.sgd is not None:
        return torch.optim.SGD, parameters, {"lr": config.sgd.lr}
    if config.adagrad is not None:
        return torch.optim.Adagrad, parameters, {"lr": config.adagrad.lr, "eps": config.adagrad.eps}
    assert config.rowwise_adagrad is not None
    return RowWiseAdagrad, parameters, {"lr": config.rowwise_adagrad.lr, "eps": config.rowwise_adagrad.eps}


def sharding_plan(
    collections: Collections, specs: Sequence[TableSpec], sharding: ShardingConfig, shape: WorldShape
) -> ShardingPlan:
    """The plan of all tables, the same on every rank: named kinds by formula, ``auto`` by the chief's planner.

    Raises ``ConfigError`` where the planner finds no room.
    """
    plans = {}
    for position, parameter in _parameters(collections, specs, sharding, shape).items():
        assert parameter.compute_kernel == FUSED, parameter
        # By default an id out of range is looked up as row 0, with a warning.
        parameter.bounds_check_mode = BoundsCheckMode.FATAL
        plans[f"collections.{position}"] = EmbeddingModuleShardingPlan({inner_name(position): parameter})
    return ShardingPlan(plans)


def _parameters(
    collections: Collections, specs: Sequence[TableSpec], sharding: ShardingConfig, shape: WorldShape
) -> dict[int, ParameterSharding]:
    """By position of the table."""
    kinds = [sharding.kind_of(spec.name) for spec in specs]
    automatic = [position for position, kind in enumerate(kinds) if kind == "auto"]
    planned = _planned_by_chief([specs[position] for position in automatic], shape) if automatic else []
    parameters = dict(zip(automatic, planned, strict=True))
    for position, generator in _generators(specs, kinds, shape).items():
        name = inner_name(position)
        parameters[position] = construct_module_sharding_plan(
            collections.collections[position],
            {name: generator},
            sharder=SHARDER,
            world_size=shape.world_size,
            local_size=shape.local_world_size,
            device_type="cpu",
        )[name]
    return parameters


def _generators(
    specs: Sequence[TableSpec], kinds: Sequence[ShardingKind], shape: WorldShape
) -> dict[int, ParameterShardingGenerator]:
    """By position of the table, what torchrec makes its plan with; none for ``auto``."""
    owners, machines = (
        _dealt(specs, [position for position, kind in enumerate(kinds) if kind == wanted], num_hands)
        for wanted, num_hands in (("table_wise", shape.world_size), ("table_row_wise", shape.num_machines))
    )
    found = {position: table_wise(rank=owner, compute_kernel=FUSED) for position, owner in owners.items()}
    found |= {position: table_row_wise(host_index=machine) for position, machine in machines.items()}
    for position, kind in enumerate(kinds):
        if kind == "row_wise":
            found[position] = row_wise(compute_kernel=FUSED)
        if kind == "column_wise":
            found[position] = column_wise(ranks=list(range(shape.world_size)), compute_kernel=FUSED)
    return found


def _dealt(specs: Sequence[TableSpec], positions: Sequence[int], num_hands: int) -> dict[int, int]:
    sizes = [specs[position].num_embeddings * specs[position].embedding_dim for position in positions]
    return dict(zip(positions, dealt(sizes, num_hands), strict=True))


def _planned_by_chief(specs: Sequence[TableSpec], shape: WorldShape) -> list[ParameterSharding]:
    """What torchrec's planner chooses on the chief; every rank learns what went wrong there, too."""
    planned, problem = share_object(_planned(specs, shape) if is_chief() else ([], ""))
    if problem:
        raise ConfigError(f"parallel.sharding=auto: torchrec's planner finds no plan; name the kinds: {problem}")
    return planned


def _planned(specs: Sequence[TableSpec], shape: WorldShape) -> tuple[list[ParameterSharding], str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // shape.local_world_size
    planner = EmbeddingShardingPlanner(
        topology=Topology(
            world_size=shape.world_size,
            local_world_size=shape.local_world_size,
            compute_device="cpu",
            ddr_cap=memory,
        ),
        constraints={
            inner_name(position): ParameterConstraints(
                sharding_types=list(kinds_for_planner(spec, shape)),
                compute_kernels=[FUSED],
                min_partition=spec.embedding_dim // shape.world_size,
            )
            for position, spec in enumerate(specs)
        },
        storage_reservation=FixedPercentageStorageReservation(_RESERVED),
        stats=[],
        debug=False,
    )
    try:
        plan = planner.plan(Collections(specs), [SHARDER]).plan
    except PlannerError as error:
        return [], str(error)
    return [plan[f"collections.{position}"][inner_name(position)] for position in range(len(specs))], ""


def described(specs: Sequence[TableSpec], sharding: ShardingConfig, shape: WorldShape) -> list[TablePlan]:
    """The plan of these tables as it is shown."""
    with quiet(), torch.random.fork_rng(devices=[]):
        plan = sharding_plan(Collections(specs), specs, sharding, shape).plan
    return [
        _described(spec, plan[f"collections.{position}"][inner_name(position)], shape)
        for position, spec in enumerate(specs)
    ]


def _described(spec: TableSpec, parameter: ParameterSharding, shape: WorldShape) -> TablePlan:
    shards = [(shard.placement.rank(), *shard.shard_sizes) for shard in parameter.sharding_spec.shards]
    return plan_of(spec, parameter.sharding_type, parameter.compute_kernel, shards, shape.world_size)
