"""Which table back ends there are, what each refuses, and how to make one. Imports neither torchrec nor fbgemm."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Literal

import torch

from rookery.errors import ConfigError, MissingExtra
from rookery.tables.local import LocalTables
from rookery.tables.protocol import TableBackend, TableSpec

BackendName = Literal["local", "torchrec"]

_FIELDS = "model.embeddings"
_USE_LOCAL = f"set {_FIELDS}.backend to local"

# torchrec's metadata demands the CUDA build of fbgemm (493 MB), hence --no-deps.
_TORCHREC_COMMANDS = """\
  CPU:  pip install -r requirements/cluster-cpu.txt && pip install --no-deps -r requirements/cluster-cpu-no-deps.txt
  CUDA: pip install 'rookery[cluster]'"""


def make_tables(
    backend: BackendName, specs: Sequence[TableSpec], *, seed: int, device: torch.device | None = None
) -> TableBackend:
    """The tables of a run behind one back end, with rows drawn from ``seed`` (the same rows in every back end).

    ``device`` defaults to the CPU. Raises ``MissingExtra`` or ``ConfigError`` where the back end cannot serve them.
    """
    if backend == "local":
        return LocalTables(specs, seed=seed, device=device)
    require_torchrec()
    if device is not None and device.type != "cpu":
        raise ConfigError(
            f"runtime.device={device.type}: the torchrec back end runs on CPU so far; set it to cpu, or {_USE_LOCAL}"
        )
    from rookery.tables.torchrec import TorchrecTables  # 2 s to import, and an extra

    return TorchrecTables(specs, seed=seed)


def require_torchrec() -> None:
    """Raise ``MissingExtra`` with the commands that bring torchrec and fbgemm, if either is absent."""
    missing = [name for name in ("torchrec", "fbgemm_gpu", "tensordict") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"the torchrec table back end needs {', '.join(missing)}, not installed here; install the cluster extra\n"
            f"{_TORCHREC_COMMANDS}\nor {_USE_LOCAL}, which needs nothing more"
        )


def torchrec_refusals(specs: Sequence[TableSpec], *, gradient_accumulation: int = 1) -> list[str]:
    """What the torchrec back end cannot do of what is asked: a line each with field, value, reason and remedy.

    Each limit was found by running torchrec 1.8.0 with fbgemm 1.8.0 on CPU; ``docs/tables.md`` has the list.
    """
    problems = [f"{_FIELDS}.tables.{spec.name}.{problem}" for spec in specs for problem in _table_refusals(spec)]
    if gradient_accumulation > 1:
        problems.append(
            f"training.gradient_accumulation={gradient_accumulation}: the torchrec back end moves its rows in every "
            f"backward pass and cannot collect gradients; set it to 1 with larger batches, or {_USE_LOCAL}"
        )
    return problems


def refuse_torchrec(specs: Sequence[TableSpec]) -> None:
    """Raise ``ConfigError`` with every line of ``torchrec_refusals``, if there is one."""
    problems = torchrec_refusals(specs)
    if problems:
        raise ConfigError("\n".join(problems))


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
