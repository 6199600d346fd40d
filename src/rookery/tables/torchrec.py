"""The ``torchrec`` back end: ``EmbeddingBagCollection`` under ``DistributedModelParallel``, optimizer in backward.

Every id is a bag of length 1 with sum pooling, which fbgemm's kernels serve faster than their unpooled lookup.
A table has a collection, and so a kernel, of its own: kernels are shared by tables with equal optimizer
settings, and a shared kernel has one learning rate. Sharding is row-wise with the fused kernel, never left
to the planner, which picks data-parallel and with it drops the optimizer. ``backends.refuse_torchrec`` lists what this
back end cannot do. Linux only; needs the ``cluster`` extra.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from rookery.optim.config import OptimizerConfig
from rookery.optim.schedules import optimizer_schedule
from rookery.parallel.process_group import single_process_group
from rookery.tables.backends import refuse_torchrec
from rookery.tables.protocol import TableSpec, initial_weight


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what torchrec says of its own use of torch: nobody who reads it could act on it."""
    fx_log = logging.getLogger("torch.fx._symbolic_trace")
    level = fx_log.level
    fx_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", "Please use DTensor instead", FutureWarning)
            yield
    finally:
        fx_log.setLevel(level)


with _quiet():
    from torch.distributed.optim.apply_optimizer_in_backward import _apply_optimizer_in_backward
    from torchrec.distributed.embedding_types import EmbeddingComputeKernel
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
    from torchrec.distributed.types import (
        BoundsCheckMode,
        EmbeddingModuleShardingPlan,
        ShardingEnv,
        ShardingPlan,
    )
    from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
    from torchrec.modules.embedding_modules import EmbeddingBagCollection
    from torchrec.optim import RowWiseAdagrad
    from torchrec.optim.keyed import KeyedOptimizer
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

_DATA_TYPES = {torch.float32: DataType.FP32, torch.float16: DataType.FP16}
# Inside torchrec every table and its only feature have this name: module names exclude some that users like ("items").
_TABLE = "table"
_WEIGHT = f"embedding_bags.{_TABLE}.weight"
_SUM = f"{_TABLE}.momentum1"


class TorchrecTables:
    """Every table of a run in torchrec, at world size 1 on CPU (implements ``TableBackend``).

    Raises ``ConfigError`` for specs that torchrec cannot serve.
    """

    def __init__(self, specs: Sequence[TableSpec], *, seed: int) -> None:
        refuse_torchrec(specs)
        self.specs: Sequence[TableSpec] = tuple(specs)
        # fbgemm draws weights, overwritten below, from the global random stream: it must not move.
        with _quiet(), torch.random.fork_rng(devices=[]):
            self._sharded = _shard(specs)
            names = [spec.name for spec in specs]
            collections = dict(zip(names, self._sharded.module.collections, strict=True))
            self._weights = {name: _local(module.state_dict()[_WEIGHT]) for name, module in collections.items()}
            self._optimizers = {name: module.fused_optimizer for name, module in collections.items()}
            self._state = _optimizer_state(self._optimizers)
            self.lookup({name: torch.empty(0, dtype=torch.int64) for name in collections})  # the first one warns
        for spec in specs:
            # Only now: weights that a collection had before sharding are discarded on CPU without a word.
            self._weights[spec.name].copy_(initial_weight(spec, seed))
            self.set_learning_rate(spec.name, optimizer_schedule(spec.optimizer)(0))

    def lookup(self, ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rows = self._sharded({name: _bags_of_one(row_numbers) for name, row_numbers in ids.items()})
        return {name: values.float() for name, values in rows.items()}

    def rows(self, table: str) -> Tensor:
        return self._weights[table]

    def set_learning_rate(self, table: str, learning_rate: float) -> None:
        optimizer = self._optimizers[table]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()  # moves no weight: it hands the rate to the kernel

    def set_accumulating(self, accumulating: bool) -> None:
        assert not accumulating, "refused when the config is read: fused optimizers act in every backward pass"

    def weights(self) -> dict[str, Tensor]:
        return dict(self._weights)

    def optimizer_state(self) -> dict[str, Tensor]:
        return dict(self._state)

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(tensors[name])

    def load_optimizer_state(self, tensors: Mapping[str, Tensor]) -> None:
        for name, state in self._state.items():
            state.copy_(tensors[name])


class _Collections(nn.Module):
    """One ``EmbeddingBagCollection`` for each table."""

    def __init__(self, specs: Sequence[TableSpec]) -> None:
        super().__init__()
        self.collections = nn.ModuleList(_collection(spec) for spec in specs)
        self._index = {spec.name: position for position, spec in enumerate(specs)}

    def forward(self, bags: Mapping[str, KeyedJaggedTensor]) -> dict[str, Tensor]:
        rows = {name: self.collections[self._index[name]](ids) for name, ids in bags.items()}
        return {name: pooled.values() for name, pooled in rows.items()}


def _collection(spec: TableSpec) -> EmbeddingBagCollection:
    table = EmbeddingBagConfig(
        name=_TABLE,
        num_embeddings=spec.num_embeddings,
        embedding_dim=spec.embedding_dim,
        feature_names=[_TABLE],
        pooling=PoolingType.SUM,
        data_type=_DATA_TYPES[spec.dtype],
    )
    collection = EmbeddingBagCollection(tables=[table], device=torch.device("meta"))
    weight = collection.embedding_bags[_TABLE].weight
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


def _shard(specs: Sequence[TableSpec]) -> DistributedModelParallel:
    module, sharder = _Collections(specs), EmbeddingBagCollectionSharder()
    plan = {
        f"collections.{position}": _row_wise_plan(collection, sharder)
        for position, collection in enumerate(module.collections)
    }
    return DistributedModelParallel(
        module,
        env=ShardingEnv.from_process_group(single_process_group()),
        device=torch.device("cpu"),
        plan=ShardingPlan(plan),
        sharders=[sharder],
        init_data_parallel=False,
        init_parameters=False,
    )


def _row_wise_plan(
    collection: EmbeddingBagCollection, sharder: EmbeddingBagCollectionSharder
) -> EmbeddingModuleShardingPlan:
    plan = construct_module_sharding_plan(
        collection,
        {_TABLE: row_wise(compute_kernel=EmbeddingComputeKernel.FUSED.value)},
        sharder=sharder,
        world_size=1,
        local_size=1,
        device_type="cpu",
    )
    # By default an id out of range is looked up as row 0, with a warning.
    plan[_TABLE].bounds_check_mode = BoundsCheckMode.FATAL
    return plan


def _bags_of_one(row_numbers: Tensor) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(keys=[_TABLE], values=row_numbers, lengths=torch.ones_like(row_numbers))


def _local(sharded: ShardedTensor) -> Tensor:
    """The rows of this process as a view; at world size 1 all of them."""
    (shard,) = sharded.local_shards()
    return shard.tensor.detach()


def _optimizer_state(optimizers: Mapping[str, KeyedOptimizer]) -> dict[str, Tensor]:
    """Views of the kernels' state under the protocol's keys. SGD has none, both kinds of Adagrad have a sum."""
    states = {name: optimizer.state_dict()["state"][_WEIGHT] for name, optimizer in optimizers.items()}
    return {f"{name}.sum": _local(state[_SUM]) for name, state in states.items() if _SUM in state}
