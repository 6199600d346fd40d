"""The ``torchrec`` back end: ``EmbeddingBagCollection`` under ``DistributedModelParallel``, optimizer in backward.

Every id is a bag of length 1 with sum pooling, which fbgemm's kernels serve faster than their unpooled lookup.
``torchrec_plan`` says how tables lie over the processes, ``refusals`` what this back end cannot do.
Linux only; needs the ``cluster`` extra.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from rookery.optim.schedules import optimizer_schedule
from rookery.parallel.config import ShardingConfig
from rookery.parallel.process_group import default_process_group
from rookery.parallel.world import world_size
from rookery.tables.protocol import TableSpec, draw_initial
from rookery.tables.refusals import WorldShape
from rookery.tables.shards import Part, fill, held, parts_of, whole
from rookery.tables.together import tied
from rookery.tables.torchrec_ids import Arrived, IdExchange
from rookery.tables.torchrec_plan import SHARDER, Collections, inner_name, quiet, sharding_plan

with quiet():
    from torchrec.distributed.comm_ops import set_gradient_division
    from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.types import ShardingEnv
    from torchrec.optim.keyed import KeyedOptimizer


class TorchrecTables:
    """Every table of a run in torchrec on CPU, over all processes of the world (implements ``TableBackend``).

    ``backends.make_tables`` refuses specs that torchrec cannot serve. To start from the same rows in any world, each
    process draws each table whole, 16 MB at a time, and keeps its part.
    """

    def __init__(self, specs: Sequence[TableSpec], *, seed: int, sharding: ShardingConfig, shape: WorldShape) -> None:
        self.specs: Sequence[TableSpec] = tuple(specs)
        inner = {spec.name: inner_name(position) for position, spec in enumerate(specs)}
        set_gradient_division(False)  # ranks' gradients are summed
        # torchrec calls them in every lookup and backward pass.
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
        # fbgemm draws weights, overwritten below, from the global random stream: it must not move.
        with quiet(), torch.random.fork_rng(devices=[]):
            self._sharded = _shard(specs, sharding, shape)
            collections = dict(zip((spec.name for spec in specs), self._sharded.module.collections, strict=True))
            self._collections: Mapping[str, ShardedEmbeddingBagCollection] = collections
            self._optimizers: dict[str, KeyedOptimizer] = {
                name: module.fused_optimizer for name, module in collections.items()
            }
            self._weights = {name: _weight(module, inner[name]) for name, module in collections.items()}
            self._state = {
                f"{spec.name}.sum": _sum(self._optimizers[spec.name], inner[spec.name], spec)
                for spec in specs
                if spec.optimizer.sgd is None  # SGD has no state, both kinds of Adagrad have a sum
            }
            self._exchange = IdExchange(specs, collections)
            self.lookup({name: torch.empty(0, dtype=torch.int64) for name in collections})  # the first one warns
        for spec in specs:
            # Only now: weights that a collection had before sharding are discarded on CPU without a word.
            for offsets, part in parts_of(self._weights[spec.name]):
                draw_initial(part, spec, seed, offsets)
            self.set_learning_rate(spec.name, optimizer_schedule(spec.optimizer)(0))

    def lookup(self, ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = self._rows(self._exchange.take(ids))
        if world_size() == 1:
            return found
        together = tied(found)
        return {name: together[name][: len(row_numbers)] for name, row_numbers in ids.items()}

    def expect(self, ids: Mapping[str, Tensor]) -> None:
        if world_size() > 1:
            self._exchange.begin(ids)

    def _rows(self, arrived: Mapping[str, Arrived]) -> dict[str, Tensor]:
        rows = {name: self._collections[name].compute_and_output_dist(*each) for name, each in arrived.items()}
        return {name: pooled.values().float() for name, pooled in rows.items()}

    def rows(self, table: str) -> Tensor:
        return whole(self._weights[table])

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
            fill(weight, name, tensors)

    def load_optimizer_state(self, tensors: Mapping[str, Tensor]) -> None:
        for name, state in self._state.items():
            fill(state, name, tensors)


def _shard(specs: Sequence[TableSpec], sharding: ShardingConfig, shape: WorldShape) -> DistributedModelParallel:
    module = Collections(specs)
    return DistributedModelParallel(
        module,
        env=ShardingEnv.from_process_group(default_process_group()),
        device=torch.device("cpu"),
        plan=sharding_plan(module, specs, sharding, shape),
        sharders=[SHARDER],
        init_data_parallel=False,
        init_parameters=False,
    )


def _key(inner: str) -> str:
    return f"embedding_bags.{inner}.weight"


def _weight(module: nn.Module, inner: str) -> Tensor:
    sharded = module.state_dict()[_key(inner)]
    return held(_parts(sharded), sharded.size())


def _sum(optimizer: KeyedOptimizer, inner: str, spec: TableSpec) -> Tensor:
    """The kernel's sums of squares. torchrec knows of them only on ranks that have a part: ours are known to all."""
    state = optimizer.state_dict()["state"].get(_key(inner))
    parts = [] if state is None else _parts(state[f"{inner}.momentum1"])
    row_wise = spec.optimizer.rowwise_adagrad is not None
    return held(parts, (spec.num_embeddings,) if row_wise else (spec.num_embeddings, spec.embedding_dim))


def _parts(sharded: ShardedTensor) -> list[Part]:
    return [(shard.metadata.shard_offsets, shard.tensor.detach()) for shard in sharded.local_shards()]
