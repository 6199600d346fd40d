"""Wherever several agents of torchrun meet, they are told not to share the store of the first one.

Without that an agent that comes late or again cannot join, and ends the others (docs/failures.md).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

ROOT = Path(__file__).resolve().parents[2]
SETTING = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
MANIFESTS = sorted((ROOT / "docs" / "deploy" / "kubernetes").glob("*.yaml"))
SCRIPTS = sorted((ROOT / "docs" / "deploy" / "slurm").glob("*.sbatch"))
PAGES = sorted({ROOT / "README.md", *(ROOT / "docs").rglob("*.md")} - {ROOT / "docs" / "log.md"})


def members(data: Any) -> Iterator[dict[str, Any]]:
    """Every mapping within some YAML."""
    if isinstance(data, dict):
        yield data
    for value in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        yield from members(value)


def trainers_of(text: str) -> list[dict[str, Any]]:
    """The containers of a manifest that are agents of torchrun; each of ours is one of several."""
    mappings = [each for document in yaml.safe_load_all(text) for each in members(document)]
    return [each for each in mappings if each.get("command", [""])[0] == "torchrun"]


def launches(text: str) -> list[list[str]]:
    """Lines of a page or script that start torchrun over several machines, with the variables before it."""
    lines = [line.strip().removeprefix("$ ") for line in text.replace("\\\n", " ").splitlines()]
    starts = [
        shlex.split(line.removesuffix("&")) for line in lines if re.match(r"(\w+=\S+ |srun .*)*torchrun --", line)
    ]
    return [words for words in starts if most_machines(words) != "1"]


def most_machines(words: list[str]) -> str:
    after = words[words.index("torchrun") + 1 :]
    return get_args_parser().parse_args(after[: after.index("-m") + 2]).nnodes.rpartition(":")[2]


def is_told(words: list[str], text: str) -> bool:
    return f"{SETTING}=1" in words[: words.index("torchrun")] or f"export {SETTING}=1\n" in text


def test_of_every_manifest():
    found = [container for file in MANIFESTS for container in trainers_of(file.read_text(encoding="utf-8"))]
    assert len(found) == 2
    assert all({"name": SETTING, "value": "1"} in container.get("env", ()) for container in found)


@pytest.mark.parametrize("file", [*SCRIPTS, *PAGES], ids=lambda file: str(file.relative_to(ROOT)))
def test_of_every_script_and_page(file):
    text = file.read_text(encoding="utf-8")
    assert [words for words in launches(text) if not is_told(words, text)] == []


def test_there_are_some():
    assert {file.name for file in [*SCRIPTS, *PAGES] if launches(file.read_text(encoding="utf-8"))} == {
        "train.sbatch",
        "failures.md",
    }


@pytest.mark.parametrize(
    ("line", "is_right"),
    [
        ("torchrun --nnodes=1:2 -m rookery", False),
        (f"{SETTING}=1 torchrun --nnodes=1:2 -m rookery", True),
        (f"{SETTING}=0 torchrun --nnodes=2 -m rookery", False),
        ("srun --kill-on-bad-exit=1 torchrun --nnodes $N -m rookery &", False),
        (f"export {SETTING}=1\nsrun torchrun --nnodes $N -m rookery &", True),
        ("torchrun --nnodes=1 -m rookery", True),
        ("torchrun --nproc-per-node 2 -m rookery", True),
    ],
)
def test_a_line_that_forgets_it_would_be_found(line, is_right):
    assert all(is_told(words, line) for words in launches(line)) is is_right
