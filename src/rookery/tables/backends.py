"""Which table back ends there are, what each refuses, and how to make one. Imports neither torchrec nor fbgemm."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Literal

import torch

from rookery.errors import ConfigError, MissingExtra
from rookery.parallel.config import ShardingConfig
from rookery.parallel.world import local_world_size, on_all, world_size
from rookery.tables.composite import CompositeTables
from rookery.tables.local import LocalTables
from rookery.tables.plan import (
    TablePlan,
    WorldShape,
    replicated_plan,
    replicated_refusals,
    sharding_refusals,
)
from rookery.tables.protocol import TableBackend, TableSpec

BackendName = Literal["local", "torchrec"]

_FIELDS = "model.embeddings"
_USE_LOCAL = f"set {_FIELDS}.backend to local"

# torchrec's metadata demands the CUDA build of fbgemm (493 MB), hence --no-deps.
_TORCHREC_COMMANDS = """\
  CPU:  pip install -r requirements/cluster-cpu.txt && pip install --no-deps -r requirements/cluster-cpu-no-deps.txt
  CUDA: pip install 'rookery[cluster]'"""


def make_tables(
    backend: BackendName,
    specs: Sequence[TableSpec],
    *,
    seed: int,
    device: torch.device | None = None,
    sharding: ShardingConfig | None = None,
) -> TableBackend:
    """The tables of a run behind one back end, with rows drawn from ``seed``: the same in every back end and world.

    ``device`` defaults to the CPU, ``sharding``, of which the local back end reads nothing, to row-wise. Of several
    processes all call it together. Raises ``MissingExtra`` or ``ConfigError`` where the back end cannot serve them.
    """
    if backend == "local":
        return LocalTables(specs, seed=seed, device=device)
    sharding, shape = sharding or ShardingConfig(), WorldShape(world_size(), local_world_size())
    on_all(lambda: _require_torchrec_for(specs, device, sharding, shape))
    replicated, sharded = _by_holder(backend, specs, sharding)
    if not sharded:
        return LocalTables(specs, seed=seed)
    from rookery.tables.torchrec import TorchrecTables  # 2 s to import, and an extra

    tables = TorchrecTables(sharded, seed=seed, sharding=sharding, shape=shape)
    return CompositeTables(specs, [LocalTables(replicated, seed=seed), tables]) if replicated else tables


def _require_torchrec_for(
    specs: Sequence[TableSpec], device: torch.device | None, sharding: ShardingConfig, shape: WorldShape
) -> None:
    require_torchrec()
    if device is not None and device.type != "cpu":
        raise ConfigError(
            f"runtime.device={device.type}: the torchrec back end runs on CPU so far; set it to cpu, or {_USE_LOCAL}"
        )
    problems = table_refusals("torchrec", specs, sharding=sharding, shape=shape)
    if problems:
        raise ConfigError("\n".join(problems))


def describe_plan(
    backend: BackendName, specs: Sequence[TableSpec], sharding: ShardingConfig, shape: WorldShape
) -> list[TablePlan]:
    """Where each table will lie in a world of this shape, without making any. Expects what is not refused.

    A table that is left to torchrec's planner (``auto``) is planned by the chief: of several processes all call it.
    """
    replicated, sharded = _by_holder(backend, specs, sharding)
    plans = {spec.name: replicated_plan(spec, shape.world_size) for spec in replicated}
    if sharded:
        from rookery.tables.torchrec_plan import described  # 2 s to import, and an extra

        plans |= {plan.table: plan for plan in described(sharded, sharding, shape)}
    return [plans[spec.name] for spec in specs]


def _by_holder(
    backend: BackendName, specs: Sequence[TableSpec], sharding: ShardingConfig
) -> tuple[list[TableSpec], list[TableSpec]]:
    """The tables that every process holds whole in a local table, and those that torchrec holds.

    torchrec's own data-parallel kernels drop the fused optimizer.
    """
    replicated = [spec for spec in specs if backend == "local" or sharding.kind_of(spec.name) == "data_parallel"]
    return replicated, [spec for spec in specs if spec not in replicated]


def require_torchrec() -> None:
    """Raise ``MissingExtra`` with the commands that bring torchrec and fbgemm, if either is absent."""
    missing = [name for name in ("torchrec", "fbgemm_gpu", "tensordict") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"the torchrec table back end needs {', '.join(missing)}, not installed here; install the cluster extra\n"
            f"{_TORCHREC_COMMANDS}\nor {_USE_LOCAL}, which needs nothing more"
        )


def table_refusals(
    backend: BackendName,
    specs: Sequence[TableSpec],
    *,
    gradient_accumulation: int = 1,
    sharding: ShardingConfig | None = None,
    shape: WorldShape | None = None,
) -> list[str]:
    """What a back end cannot do of what is asked: a line each with field, value, reason and remedy.

    ``sharding`` defaults to the back end's own, ``shape`` to a process alone. ``docs/tables.md`` has the list.
    """
    sharding, shape = sharding or ShardingConfig(), shape or WorldShape()
    if backend == "local":
        return replicated_refusals(specs, sharding)
    _, sharded = _by_holder(backend, specs, sharding)
    problems = [f"{_FIELDS}.tables.{spec.name}.{problem}" for spec in sharded for problem in _table_refusals(spec)]
    problems += sharding_refusals(specs, sharding, shape)
    if gradient_accumulation > 1 and sharded:
        problems.append(
            f"training.gradient_accumulation={gradient_accumulation}: the torchrec back end moves its rows in every "
            f"backward pass and cannot collect gradients; set it to 1 with larger batches, or {_USE_LOCAL}"
        )
    return problems


def _table_refusals(spec: TableSpec) -> list[str]:
    return [*_optimizer_refusals(spec), *_row_refusals(spec)]


def _optimizer_refusals(spec: TableSpec) -> list[str]:
    optimizer, problems = spec.optimizer, []
    if optimizer.adam is not None:
        problems.append(
            f"optimizer.adam: fbgemm has no fused Adam for CPU; use rowwise_adagrad or adagrad, or {_USE_LOCAL}"
        )
    if optimizer.sgd is not None and optimizer.sgd.momentum:
        problems.append(
            f"optimizer.sgd.momentum={optimizer.sgd.momentum}: torchrec drops the momentum of fused SGD silently; "
            f"set it to 0, or {_USE_LOCAL}"
        )
    adagrad = optimizer.adagrad or optimizer.rowwise_adagrad
    if adagrad is not None and adagrad.eps == 0:
        problems.append(
            f"optimizer.{optimizer.kind}.eps=0: fbgemm divides 0 by 0 where a gradient is 0; "
            f"set it to 1e-8, or {_USE_LOCAL}"
        )
    return problems


def _row_refusals(spec: TableSpec) -> list[str]:
    problems = []
    if spec.dtype not in (torch.float32, torch.float16):
        name = {torch.bfloat16: "bf16"}.get(spec.dtype, str(spec.dtype))
        problems.append(f"data_type={name}: fbgemm has fp32 and fp16 tables on CPU; use one of these, or {_USE_LOCAL}")
    if spec.embedding_dim % 4:
        problems.append(
            f"embedding_dim={spec.embedding_dim}: fbgemm needs a multiple of 4; "
            f"use {spec.embedding_dim + 4 - spec.embedding_dim % 4}, or {_USE_LOCAL}"
        )
    if spec.max_norm is not None:
        problems.append(f"max_norm={spec.max_norm}: fbgemm limits no norms on CPU; leave it out, or {_USE_LOCAL}")
    return problems
