"""The parsed sources, shared by the architecture tests."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def modules() -> dict[Path, ast.Module]:
    """Every module of the package by its path relative to the package."""
    package = ROOT / "src" / "rookery"
    return {
        path.relative_to(package): ast.parse(path.read_text(encoding="utf-8"), str(path))
        for path in sorted(package.rglob("*.py"))
    }
