"""What the package imports is what pyproject.toml asks for."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys

EXTRAS = ("cluster", "onnx", "tune", "serve", "spark", "object-store")


def declared(extra: str | None) -> set[str]:
    """Distributions that the project asks for, in the base or in one extra, by normalized name."""
    lines = importlib.metadata.requires("rookery") or []
    chosen = [line for line in lines if (f'extra == "{extra}"' in line if extra else "extra ==" not in line)]
    return {normalized(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in chosen}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(modules: dict) -> set[str]:
    """Top-level names of everything imported that is neither ours nor Python's."""
    nodes = [node for tree in modules.values() for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"rookery"}


def distributions(module: str) -> set[str]:
    return {normalized(name) for name in importlib.metadata.packages_distributions().get(module, [module])}


def test_every_import_is_declared(modules):
    # pydantic brings its core in the matching version; the CPU build of fbgemm has another name than the extra's.
    known = declared(None).union(*map(declared, EXTRAS)) | {"pydantic-core", "fbgemm-gpu-cpu"}
    assert {module for module in imported(modules) if not distributions(module) & known} == set()


def test_every_base_dependency_is_used(modules):
    used = set().union(*(distributions(module) for module in imported(modules)))
    # torch writes TensorBoard's files through the package that is asked for here.
    assert declared(None) - used - {"tensorboard"} == set()
    assert any("torch.utils.tensorboard" in ast.unparse(tree) for tree in modules.values())


def test_every_import_of_tests_and_benchmarks_is_declared(root):
    trees = {
        path: ast.parse(path.read_text()) for room in ("tests", "benchmarks") for path in (root / room).rglob("*.py")
    }
    skips = re.compile(r"importorskip\(\s*[\"'](\w+)")
    asked = imported(trees) | {name for path in trees for name in skips.findall(path.read_text())}
    own = {path.stem for path in trees}
    extras = (*EXTRAS, "bench", "browser", "dev")
    known = declared(None).union(*map(declared, extras)) | {"pydantic-core", "fbgemm-gpu-cpu"}
    assert {module for module in asked - own - sys.stdlib_module_names if not distributions(module) & known} == set()
