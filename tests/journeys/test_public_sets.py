"""The four commands on real data, shortened: ingest, init, train, neighbors, without editing anything.

The whole runs are benchmarks/fb15k237.py, gowalla.py and higgs.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SHORT = (
    "evaluation.max_edges=200",
    "evaluation.chunk_memory_mib=64",
)


@dataclass(frozen=True)
class PublicSet:
    """A data set as it is found, the metric that init chooses for it, and what random scores would reach."""

    adapter: str
    folder: str
    entity_type: str
    metric: str
    chance: float
    num_steps: int
    overrides: tuple[str, ...] = ()


SETS = (
    PublicSet(
        "fb15k237", "fb15k237", "entity", "mrr", 10 / 14_541, 30, ("model.embeddings.tables.entity.embedding_dim=64",)
    ),
    PublicSet("lightgcn", "gowalla", "user", "recall@20", 20 / 40_981, 500),
    PublicSet("higgs", "higgs", "user", "mrr", 12 / 304_691, 200),
)


def rookery(*arguments: object, cwd: Path) -> str:
    command = [sys.executable, "-m", "rookery", *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{arguments}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def train(one: PublicSet, folder: Path) -> dict[str, Any]:
    (folder / "config.yaml").write_text(rookery("twhin", "init", "graph", cwd=folder))
    sets = [
        part
        for override in (*SHORT, f"training.num_train_steps={one.num_steps}", *one.overrides)
        for part in ("--set", override)
    ]
    return dict(json.loads(rookery("twhin", "train", "config.yaml", "--save-dir", "run", "--json", *sets, cwd=folder)))


@pytest.mark.parametrize("one", SETS, ids=lambda one: one.folder)
def test_four_commands(one: PublicSet, tmp_path: Path) -> None:
    source = DATA / one.folder
    if not source.exists():
        pytest.skip(f"{source} is absent: the raw files of {one.folder} go there")
    rookery("data", "prepare", one.adapter, source, "edges", cwd=tmp_path)
    rookery("twhin", "ingest", "edges", "graph", cwd=tmp_path)
    result = train(one, tmp_path)
    assert result["step"] == one.num_steps
    assert result["best_value"] > 3 * one.chance

    ids = pq.read_table(tmp_path / "graph" / "vocab" / f"{one.entity_type}.parquet").column("id")
    arguments = ("--id", ids[0].as_py(), "-k", 20, "--json")
    typed = ("--type", one.entity_type) if one.folder == "gowalla" else ()  # its users and items share their numbers
    found = json.loads(rookery("twhin", "neighbors", "run", *arguments, *typed, cwd=tmp_path))
    names = [neighbor["id"] for neighbor in found["neighbors"]]
    scores = [neighbor["score"] for neighbor in found["neighbors"]]
    assert len(set(names)) == 20
    assert str(ids[0].as_py()) not in map(str, names)
    assert scores == sorted(scores, reverse=True)
    assert set(map(str, names)) <= set(map(str, ids.to_pylist()))
