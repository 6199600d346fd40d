"""What README.md shows is run, and the names that it lists exist."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COPIED = ("README.md", "Makefile", "pyproject.toml", "requirements", "scripts", "configs", "examples", "src")
NOT_RUN = re.compile(r"(git clone|cd|pip install|python3? -m venv|source)\b")
BLOCK = re.compile(
    r"(?P<note><!-- not run: .+? -->\n+)?^```(?P<language>console|bash)\n(?P<body>.*?)^```$", re.M | re.S
)
HOP = re.compile(r"`(src/rookery/[\w/]+\.py)::(\w+)`")


@dataclass(frozen=True)
class Block:
    line: int
    commands: tuple[str, ...]


def commands(language: str, body: str) -> tuple[str, ...]:
    """The commands of a block: in a console, what follows ``$ `` and its continued lines; in bash, every line."""
    joined = body.replace("\\\n", " ")
    if language == "console":
        return tuple(line[2:] for line in joined.splitlines() if line.startswith("$ "))
    lines = (re.sub(r"\s+#.*$|^#.*$", "", line).strip() for line in joined.splitlines())
    return tuple(line for line in lines if line)


def blocks(text: str) -> list[Block]:
    return [
        Block(text.count("\n", 0, found.start()) + 1, commands(found["language"], found["body"]))
        for found in BLOCK.finditer(text)
        if not found["note"]
    ]


def runnable(command: str) -> str | None:
    """The command as the test runs it: make only says what it would do; getting the project is not repeated."""
    parts = [part for part in command.split(" && ") if not NOT_RUN.match(part)]
    return " && ".join(re.sub(r"^make\b", "make -n", part) for part in parts) or None


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("readme") / "rookery"
    target.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        elif source.exists():
            shutil.copy(source, target / name)
    return target


# One copy for all blocks, in order: a later block goes on from what an earlier one left.
@pytest.mark.parametrize("block", blocks(README), ids=lambda block: f"line{block.line}")
def test_readme_block_runs(block: Block, copy: Path):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120"}
    environment |= {"MAKEFLAGS": "", "MFLAGS": ""}
    for command in filter(None, map(runnable, block.commands)):
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, (
            f"README.md, block at line {block.line}: {command}\n{result.stdout}{result.stderr}"
        )


def test_readme_lists_three_hops_that_exist():
    hops = HOP.findall(README)
    assert len(hops) >= 3
    for path, name in hops:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        defined = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        assert name in defined, f"README.md names {path}::{name}"


SAMPLE = """
```console
$ git clone https://example.org/x && cd x
$ make demo
Epoch 1
$ rookery twhin train \\
    config.yaml
```
<!-- not run: takes an hour -->
```bash
rookery data prepare
```
```bash
# a comment
rookery doctor  # another
make test
```
```python
import x
```
"""


def test_blocks_are_read_as_meant():
    console, bash = blocks(SAMPLE)
    assert [runnable(command) for command in console.commands] == [
        None,
        "make -n demo",
        "rookery twhin train      config.yaml",
    ]
    assert bash.commands == ("rookery doctor", "make test")
