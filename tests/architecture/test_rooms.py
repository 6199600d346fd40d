"""Rooms, their contracts and the page that describes them say the same."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOM_ROW = re.compile(r"^\| `(\w+)/` \|.*\| ([^|]*) \|$", re.MULTILINE)


@pytest.fixture(scope="session")
def described(root: Path) -> dict[str, set[str]]:
    """The rooms of docs/architecture.md and what each may import."""
    page = (root / "docs" / "architecture.md").read_text()
    return {room: set(re.findall(r"`(\w+)`", allowed)) for room, allowed in ROOM_ROW.findall(page)}


def room_of(path: Path) -> str | None:
    return path.parts[0] if len(path.parts) > 1 else None


def imported_rooms(tree: ast.Module) -> set[str]:
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("rookery.")}


def test_every_room_is_described(modules, described):
    assert {room for path in modules if (room := room_of(path))} == set(described)


def test_rooms_import_what_the_page_says(modules, described):
    everywhere = {"errors", "types"}
    surprises = {
        f"{path} imports {room}"
        for path, tree in modules.items()
        if (own := room_of(path))
        for room in imported_rooms(tree) - described[own] - everywhere - {own}
    }
    assert surprises == set()


def test_import_contracts_hold(root):
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter, "--no-cache"], cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
