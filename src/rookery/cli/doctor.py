"""``rookery doctor``: what this machine offers, what is missing, and how to get it."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

import rookery
from rookery.cli.output import JsonFlag, emit

_MATRIX_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
_CLUSTER_ON_CPU = (
    "pip install -r requirements/cluster-cpu.txt && pip install --no-deps -r requirements/cluster-cpu-no-deps.txt"
)
_CLUSTER_ON_CUDA = "pip install 'rookery[cluster]'"


def register(app: typer.Typer) -> None:
    """Add the command ``doctor``."""
    app.command("doctor")(doctor)


def doctor(as_json: JsonFlag = False) -> None:
    """Show versions, threads, devices and what is missing. Exit 1 when Rookery cannot run as installed."""
    found = examine()
    emit(found, as_json, lambda: _render(found))
    if found["missing"]:
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """Facts about this machine and environment, all JSON-able; ``missing`` maps a base package to its remedy."""
    requirements = {
        _name(line): line for line in importlib.metadata.requires("rookery") or () if "extra ==" not in line
    }
    packages = {name: _version(name) for name in requirements}
    missing = {name: f"pip install '{requirements[name]}'" for name, version in packages.items() if version is None}
    torch = None if "torch" in missing else _torch()
    return {
        "rookery": rookery.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "missing": missing,
        "cpu": _cpu(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "torch": torch,
        "extras": {"cluster": _cluster(cuda=torch is not None and torch["build"] == "cuda")},
    }


def _name(requirement: str) -> str:
    """The distribution of a requirement: ``numpy`` of ``numpy>=1.26``."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> dict[str, Any]:
    """Model, cores that this process may use, and the instructions that decide the speed of matrix products."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    information = Path("/proc/cpuinfo")
    for line in information.read_text().splitlines() if information.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = set(value.split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    features = [feature for feature in _MATRIX_FEATURES if feature in flags]
    return {
        "model": model,
        "cores": cores,
        "features": features,
        "bf16": bool(flags & {"avx512_bf16", "amx_bf16", "bf16"}),
    }


def _torch() -> dict[str, Any]:
    import torch

    return {
        "build": "cuda" if torch.version.cuda else "cpu",
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _cluster(cuda: bool) -> dict[str, Any]:
    """Whether the sharded table back end loads: only a matching triple of torch, torchrec and fbgemm does."""
    versions = {"torchrec": _version("torchrec"), "fbgemm": _version("fbgemm-gpu-cpu") or _version("fbgemm-gpu")}
    try:
        for module in ("torchrec", "fbgemm_gpu"):
            importlib.import_module(module)
        problem = None
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        problem = f"{type(error).__name__}: {error}"
    return {"present": problem is None, "versions": versions, "problem": problem, "install": _cluster_install(cuda)}


def _cluster_install(cuda: bool) -> str:
    if sys.platform != "linux":
        return "not available: torchrec has no builds for this system; the local back end serves it"
    return _CLUSTER_ON_CUDA if cuda else _CLUSTER_ON_CPU


def _render(found: dict[str, Any]) -> Table:
    table = Table("what", "found", "remedy", title=f"rookery {found['rookery']}")
    cpu, torch = found["cpu"], found["torch"]
    table.add_row("python", f"{found['python']} on {found['platform']}")
    table.add_row(
        "processor", f"{cpu['model']}, {cpu['cores']} cores, {' '.join(cpu['features']) or 'no vector extensions'}"
    )
    table.add_row(
        "bf16 products", "in hardware" if cpu["bf16"] else "emulated, slow: leave runtime.enable_amp off on CPU"
    )
    table.add_row("memory", f"{found['memory_bytes'] / 2**30:.1f} GiB")
    if torch:
        table.add_row("torch build", f"{torch['build']}, {torch['threads']} threads")
        table.add_row("accelerators", ", ".join(torch["devices"]) or "none")
    for name, version in found["packages"].items():
        table.add_row(name, version or "missing", found["missing"].get(name, ""))
    cluster = found["extras"]["cluster"]
    versions = ", ".join(f"{name} {version}" for name, version in cluster["versions"].items() if version)
    table.add_row(
        "extra 'cluster'",
        versions if cluster["present"] else cluster["problem"],
        "" if cluster["present"] else cluster["install"],
    )
    return table
