"""Which table back ends there are, and how to make one. Imports neither torchrec nor fbgemm."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch

from rookery.errors import ConfigError, MissingExtra
from rookery.parallel.config import ShardingConfig
from rookery.parallel.world import local_world_size, on_all, world_size
from rookery.tables.composite import CompositeTables
from rookery.tables.local import LocalTables
from rookery.tables.plan import TablePlan, replicated_plan, table_asked
from rookery.tables.protocol import TableBackend, TableSpec
from rookery.tables.refusals import BackendName, TablesAsked, WorldShape, is_replicated, table_refusals

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
    fields: str = "model.embeddings",
) -> TableBackend:
    """The tables of a run behind one back end, with rows drawn from ``seed``: the same in every back end and world.

    ``device`` defaults to the CPU, ``sharding``, of which the local back end reads nothing, to row-wise; ``fields`` is
    where the configuration describes tables and back end. Of several processes all call it together. Raises
    ``MissingExtra`` or ``ConfigError`` where the back end cannot serve them.
    """
    if backend == "local":
        return LocalTables(specs, seed=seed, device=device)
    sharding, shape = sharding or ShardingConfig(), WorldShape(world_size(), local_world_size())
    asked = TablesAsked(
        f"{fields}.backend",
        backend,
        [table_asked(spec, spec.field or f"{fields}.tables.{spec.name}") for spec in specs],
        sharding,
        device="cpu" if device is None else device.type,
    )
    on_all(lambda: _require(asked, shape, fields))
    replicated, sharded = _by_holder(backend, specs, sharding)
    if not sharded:
        return LocalTables(specs, seed=seed)
    from rookery.tables.torchrec import TorchrecTables  # 2 s to import, and an extra

    tables = TorchrecTables(sharded, seed=seed, sharding=sharding, shape=shape)
    return CompositeTables(specs, [LocalTables(replicated, seed=seed), tables]) if replicated else tables


def _require(asked: TablesAsked, shape: WorldShape, fields: str) -> None:
    require_torchrec(fields)
    problems = table_refusals(asked, shape)
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
    """The tables that every process holds whole in a local table, and those that torchrec holds."""
    replicated = [spec for spec in specs if is_replicated(backend, sharding, spec.name)]
    return replicated, [spec for spec in specs if spec not in replicated]


def require_torchrec(fields: str = "model.embeddings") -> None:
    """Raise ``MissingExtra`` with the commands that bring torchrec and fbgemm, if either is absent."""
    missing = [name for name in ("torchrec", "fbgemm_gpu", "tensordict") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"the torchrec table back end needs {', '.join(missing)}, not installed here; install the cluster extra\n"
            f"{_TORCHREC_COMMANDS}\nor set {fields}.backend to local, which needs nothing more"
        )
